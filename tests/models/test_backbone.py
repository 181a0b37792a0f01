import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder


@pytest.fixture
def folder(tmp_path: Path, tiny_backbone: nn.Module) -> Path:
    return save_timm_folder(
        tiny_backbone, tmp_path / "model", preprocessing=Preprocessing(32), provenance={}, license="mit"
    )


def test_random_weights_follow_the_seed_and_are_timms_own() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model, origin = load_backbone("test_resnet", init="random")
        states.append(model.state_dict())
    assert origin.kind == "random"
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_tag_in_the_architecture_does_not_matter_for_random_weights() -> None:
    model, _ = load_backbone("resnet18.tv_in1k", init="random")
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_folder_and_its_file_load_exactly(folder: Path, tiny_backbone: nn.Module, as_file: bool) -> None:
    path = folder / "model.safetensors" if as_file else folder
    model, origin = load_backbone("test_resnet", init=str(path))
    for name, value in tiny_backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert origin.sha256 is not None and len(origin.sha256) == 64
    assert str(folder.parent) not in json.dumps(origin.as_dict()), "a private path must not travel with the weights"
    if not as_file:
        assert origin.license == "mit"


def test_a_classifier_in_the_file_is_left_out(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "fc.weight": torch.zeros(10, 9), "fc.bias": torch.zeros(10)}, folder / "model.safetensors")
    load_backbone("test_resnet", init=str(folder))


def test_missing_unexpected_and_misshapen_keys_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    first = next(k for k in tensors if tensors[k].ndim == 4)
    second = next(k for k in tensors if k.endswith("running_mean"))
    broken = {k: v for k, v in tensors.items() if k != second}
    broken[first] = broken[first][:1].clone()
    broken["stray.weight"] = torch.zeros(1)
    save_file(broken, folder / "model.safetensors")
    with pytest.raises(InputError) as refused:
        load_backbone("test_resnet", init=str(folder))
    message = str(refused.value)
    assert f"1 missing ({second})" in message
    assert "1 unexpected (stray.weight)" in message
    assert f"1 of another shape ({first})" in message


def test_another_architecture_in_the_folder_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="holds a test_resnet, not a resnet18"):
        load_backbone("resnet18", init=str(folder))


def test_a_run_folder_instead_of_its_model_is_understood(folder: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean {folder}"):
        load_backbone("test_resnet", init=str(folder.parent))


@pytest.mark.parametrize("damage", [b"", b"not a safetensors file", b"\xff" * 64])
def test_a_damaged_file_is_one_sentence(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_backbone("test_resnet", init=str(folder))


def test_a_damaged_config_is_one_sentence(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not readable JSON"):
        load_backbone("test_resnet", init=str(folder))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"cos\nsystem\n")
    with pytest.raises(InputError, match=r"not a \.safetensors file"):
        load_backbone("test_resnet", init=str(file))


@pytest.mark.parametrize(
    ("architecture", "init", "sentence"),
    [
        ("resnet19", "random", "did you mean resnet18"),
        ("test_resnet", "somebody/something", "the Hub did not deliver it"),
        ("test_resnet", "./nowhere", "is not random, timm"),
        ("test_resnet", "resnet18.tv_in1k", "another architecture"),
        ("test_resnet", "timm", "could not be loaded, offline"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(architecture: str, init: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_backbone(architecture, init=init)


@torch.inference_mode()
def test_a_vit_takes_the_size_of_the_images_from_random_weights_and_from_a_folder(tmp_path: Path) -> None:
    large, _ = load_backbone("test_vit", init="random", image_size=96)
    folder = save_timm_folder(large, tmp_path / "model", preprocessing=Preprocessing(96), provenance={})
    again, _ = load_backbone("test_vit", init=str(folder), image_size=96)
    assert torch.equal(again.eval()(torch.ones(1, 3, 96, 96)), large.eval()(torch.ones(1, 3, 96, 96)))
    small, _ = load_backbone("test_vit", init=str(folder), image_size=64)
    assert small.eval()(torch.ones(1, 3, 64, 64)).shape == (1, 64)
    assert torch.equal(small.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("prefix", ["module.", "backbone.encoder_q.", "state_dict.model."])
def test_a_prefix_is_named_with_the_command_that_takes_it_off(folder: Path, prefix: str) -> None:
    file = folder / "model.safetensors"
    tensors = {f"{prefix}{key}": value for key, value in load_file(file).items()}
    save_file({**tensors, "queue": torch.zeros(3)}, file)
    with pytest.raises(InputError) as refused:
        load_backbone("test_resnet", init=str(file))
    command = f"tpssl-hf convert {file} --backbone test_resnet --output_dir"
    assert f"behind the prefix {prefix!r}" in str(refused.value) and command in str(refused.value)


@pytest.mark.parametrize(
    ("architecture", "size", "sentence"),
    [
        ("test_vit2", 50, "patches of 16 pixels do not divide it.*--image_size 48 or 64"),
        ("test_vit", 50, "--image_size 48 or 64"),
        ("swin_tiny_patch4_window7_224", 50, "patches of 4 pixels do not divide it.*--image_size 48 or 56"),
        ("densenet121", 16, "too small.*--image_size 2[0-9]|--image_size 32"),
        ("efficientformer_l1", 64, "--image_size 224"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_ones(
    architecture: str, size: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **_: None)
    for init in ("random", "timm"):
        with pytest.raises(InputError, match=f"image_size {size} does not suit.*{sentence}"):
            load_backbone(architecture, init=init, image_size=size)


def test_looking_for_sizes_does_not_move_the_random_stream() -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError):
        load_backbone("test_vit2", init="random", image_size=50)
    after = torch.rand(1)
    torch.manual_seed(0)
    timm.create_model("test_vit2", num_classes=0, img_size=50)
    assert torch.equal(after, torch.rand(1))


def test_what_depends_on_the_size_and_cannot_be_resampled_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large, _ = load_backbone("levit_128s", init="random", image_size=96)
    folder = save_timm_folder(large, tmp_path / "model", preprocessing=Preprocessing(96), provenance={})
    with pytest.raises(InputError, match="give the --image_size that the weights were made for"):
        load_backbone("levit_128s", init=str(folder), image_size=64)
