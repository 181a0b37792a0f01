"""Damaged and strange folders of weights are told from sound ones."""

import json
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.tasks.predict.model import load_model


def save(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=2)
    return save_timm_folder(
        network, folder, preprocessing=Preprocessing(32), provenance={}, label_names=["a", "b"], more_files={}
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "model", 0)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


LOADERS: list[Callable[[Path], Any]] = [
    lambda folder: load_model(str(folder), "cpu"),
    lambda folder: load_backbone("test_resnet", init=str(folder)),
]


def refused(folder: Path, message: str) -> None:
    for load in LOADERS:
        with pytest.raises(InputError, match=message):
            load(folder)


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_sound_folder_is_loaded_without_a_word(model: Path) -> None:
    for load in LOADERS:
        load(model)


def test_the_same_model_is_the_same_file(model: Path, tmp_path: Path) -> None:
    for number in range(4):
        again = save(tmp_path / f"{number}", 0)
        assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_one_flipped_bit_of_the_weights_is_noticed(model: Path, place: float) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[int(place * len(data))] ^= 1
    (model / "model.safetensors").write_bytes(data)
    refused(model, "is damaged|damaged or incomplete|not a readable|not finite|does not fit")


def test_weights_of_another_model_are_noticed(model: Path, tmp_path: Path) -> None:
    shutil.copyfile(save(tmp_path / "other", 1) / "model.safetensors", model / "model.safetensors")
    refused(model, "are not of the same model")


def test_a_changed_config_is_said(model: Path) -> None:
    facts = json.loads((model / "config.json").read_text())["pretrained_cfg"]
    edited(model, pretrained_cfg={**facts, "mean": [0.485, 0.456, 0.416]})
    for load in LOADERS:
        with pytest.warns(UserWarning, match="config.json in .* was changed after it had been saved"):
            load(model)


def test_weights_that_somebody_saved_again_are_not_compared(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, model / "model.safetensors")
    for load in LOADERS:
        load(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(model: Path, value: float) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["layer1.0.conv1.weight"].view(-1)[3] = value
    save_file(tensors, model / "model.safetensors")
    refused(model, r"not finite in 1 tensors \(layer1.0.conv1.weight\)")


def test_a_name_twice_and_complex_numbers_are_refused(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)["fc.bias"]).encode()
    twice = header[:-1] + b', "fc.bias": ' + entry + b"}"
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(twice)) + twice + content[8 + length :])
    refused(model, "holds 'fc.bias' twice")
    (model / "model.safetensors").write_bytes(content)
    tensors = {name: tensor.to(torch.complex64) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors")
    refused(model, "complex numbers")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "checkpoint_path among its model_args"),
        ({"num_classes": 10**9}, "lack 2 tensors|in another shape"),
        ({"model_args": {"in_chans": 10**9}}, "in another shape"),
        ({"pretrained_cfg": {"mean": [float("nan")] * 3}}, "mean"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "input_size"),
        ({"pretrained_cfg": {"crop_pct": 0.0}}, "crop_pct"),
    ],
)
def test_a_config_of_what_cannot_be_is_refused(model: Path, changes: dict[str, Any], message: str) -> None:
    edited(model, **changes)
    with pytest.raises(InputError, match=message):
        load_model(str(model), "cpu")


def test_json_nested_beyond_reading_is_refused(model: Path) -> None:
    (model / "config.json").write_text("[" * 100_000)
    refused(model, "cannot be read|not readable JSON")


def test_code_in_the_folder_is_not_run(model: Path, tmp_path: Path) -> None:
    (model / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Config: pass\n")
    names = {"AutoConfig": "evil.Config", "AutoImageProcessor": "evil.Config"}
    edited(model, auto_map=names)
    (model / "preprocessor_config.json").write_text(json.dumps({"auto_map": names}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the changed config
        assert load_model(str(model), "cpu").class_names == ("a", "b")
    assert not (tmp_path / "canary").exists()
