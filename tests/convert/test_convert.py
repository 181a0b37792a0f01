"""Weights of every family we know of, made small: the folder holds the same network, and nothing else."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from tpssl_hf.convert import match as convert_match
from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.run import Converted, convert
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone

# timm 1.0 opens config.json of a local-dir without closing it
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
State = dict[str, Tensor]
Convert = Callable[..., Converted]


@pytest.fixture(autouse=True)
def few_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_match, "HINTS", ("resnet18", "resnet34"))


@pytest.fixture
def run(tmp_path: Path) -> Convert:
    """Save a tree with torch, convert it with these settings."""

    def make(tree: Any, backbone: str = "test_resnet", **settings: Any) -> Converted:
        file = tmp_path / "weights.pth"
        torch.save(tree, file)
        settings = {"weights": str(file), "output_dir": str(tmp_path / "model"), **settings}
        if backbone == "test_resnet":
            settings.setdefault("image_size", 32)
        return convert(ConvertConfig(backbone=backbone, **settings))

    return make


def network(name: str = "test_resnet", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """Another copy, as a key encoder or a student is."""
    return {key: value + 1 for key, value in state.items()}


def head(prefix: str, width: int = 4) -> State:
    return {f"{prefix}.weight": torch.zeros(width, width), f"{prefix}.bias": torch.zeros(width)}


def sequential(state: State) -> State:
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{places[key.split('.')[0]]}.{key.partition('.')[2]}": value for key, value in state.items()}


def mm_stem(state: State) -> State:
    return {
        key.replace("conv1.", "stem.", 1)
        if key.startswith("conv1.")
        else f"stem.7.{key[4:]}"
        if key.startswith("bn1.")
        else key: value
        for key, value in state.items()
    }


def families(s: State) -> dict[str, tuple[Any, str | None, str]]:
    """Title to (what the file holds, the family that is said, the prefix that is found)."""
    args, best = argparse.Namespace(lr=0.1), np.float32(70.0)
    return {
        "torchvision or timm": (s | head("fc"), None, ""),
        "SimCLR": ({"state_dict": s | head("fc")}, None, "state_dict."),
        "MoCo v2": (
            {"arch": "resnet50", "best_acc1": best, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
             "state_dict": under("module.encoder_k.", other(s)) | under("module.encoder_q.", s)
             | head("module.encoder_q.fc.0") | {"module.queue": torch.ones(4, 9), "module.queue_ptr": torch.zeros(1)}},
            "MoCo", "state_dict.module.encoder_q."),
        "MoCo v3": (
            {"state_dict": under("module.momentum_encoder.", other(s)) | under("module.base_encoder.", s)
             | head("module.predictor.0")}, "MoCo v3", "state_dict.module.base_encoder."),
        "BYOL": (under("target_encoder.net.", other(s)) | under("online_encoder.net.", s), "BYOL",
                 "online_encoder.net."),
        "SwAV": (under("module.", s) | head("module.projection_head.0") | {"module.prototypes.weight": torch.ones(2)},
                 "SwAV", "module."),
        "DINO": ({"student": under("module.backbone.", other(s)) | head("module.head.mlp.0"),
                  "teacher": under("backbone.", s) | head("head.mlp.0"), "args": args}, "DINO", "teacher.backbone."),
        "Barlow Twins": ({"epoch": 9, "model": under("module.backbone.", s) | head("module.projector.0")},
                         "VICReg or Barlow Twins", "model.module.backbone."),
        "PixPro": ({"opt": args, "model": under("module.encoder_k.", other(s)) | under("module.encoder.", s)
                    | head("module.projector.linear1") | head("module.projector_k.linear1")
                    | head("module.value_transform")}, "PixPro", "model.module.encoder."),
        "DenseCL": ({"state_dict": under("encoder_q.0.", s) | head("encoder_q.1.mlp.0")
                     | under("encoder_k.0.", other(s)) | {"queue": torch.ones(4), "queue2": torch.ones(4)}},
                    "DenseCL", "state_dict.encoder_q.0."),
        "lightly": ({"state_dict": under("backbone.", sequential(s)) | head("projection_head.layers.0")}, "lightly",
                    "state_dict.backbone."),
        "lightly-train": (
            {"pytorch-lightning_version": "2",
             "state_dict": under("student_embedding_model.wrapped_model._model.", other(s))
             | under("teacher_embedding_model.wrapped_model._model.", s)}, "lightly-train",
            "state_dict.teacher_embedding_model.wrapped_model._model."),
        "solo-learn": ({"state_dict": under("momentum_backbone.", other(s)) | under("backbone.", s)
                        | head("projector.0") | head("classifier")}, "solo-learn", "state_dict.backbone."),
        "solo-learn, older": ({"state_dict": under("encoder.", s) | head("classifier")}, None, "state_dict.encoder."),
        "mmpretrain": ({"meta": {"epoch": 1}, "state_dict": under("backbone.", mm_stem(s)) | head("head.fc")},
                       "mmpretrain", "state_dict.backbone."),
        "Lightning": ({"pytorch-lightning_version": "2", "hyper_parameters": {"lr": 1},
                       "state_dict": under("model.", s)}, "Lightning", "state_dict.model."),
        "DDP": (under("module.", s), None, "module."),
        "EMA": ({"state_dict": other(s), "state_dict_ema": s}, None, "state_dict_ema."),
        "EMA of a wrapped model": ({"model": other(s), "model_ema": under("module.", s)}, None, "model_ema.module."),
        "torch.compile": ({"model": under("module._orig_mod.", s)}, None, "model.module._orig_mod."),
    }  # fmt: skip


@pytest.mark.parametrize("title", families({}))
def test_every_family_becomes_the_same_network(title: str, run: Convert) -> None:
    state = network().state_dict()
    tree, family, prefix = families(state)[title]
    done = run(tree)
    written = load_file(done.folder / "model.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], state[key]) for key in state), "another copy was taken"
    assert done.match.prefix == prefix
    assert done.difference == 0
    record = json.loads((done.folder / "config.json").read_text())["tpssl_hf"]
    assert record["source"]["family"] == family and record["source"]["prefix"] == prefix
    assert record["source"]["file"] == "weights.pth" and len(record["source"]["sha256"]) == 64


def test_what_is_left_out_and_what_else_fits_is_said(run: Convert) -> None:
    done = run(families(network().state_dict())["MoCo v2"][0])
    assert dict(done.left_out).keys() == {
        "state_dict.module.encoder_k", "state_dict.module.encoder_q.fc", "state_dict.module.queue",
        "state_dict.module.queue_ptr",
    }  # fmt: skip
    said = "\n".join(done.lines)
    assert "'state_dict.module.encoder_k.' fits as well; --branch takes it instead" in said
    assert "mean (0.485, 0.456, 0.406)" in said and "ImageNet's, as usual for MoCo" in said


@pytest.mark.parametrize("branch", ["encoder_k", "state_dict.module.encoder_k.", "state_dict.module.encoder_k"])
def test_a_branch_is_taken_where_it_is_asked_for(run: Convert, branch: str) -> None:
    state = network().state_dict()
    done = run(families(state)["MoCo v2"][0], branch=branch)
    assert torch.equal(load_file(done.folder / "model.safetensors")["bn1.weight"], state["bn1.weight"] + 1)
    with pytest.raises(InputError, match="branch 'encoder' names no part of weights.pth"):
        run(families(state)["MoCo v2"][0], branch="encoder")


def test_torchvisions_resnet_gives_the_features_it_gives_there(run: Convert) -> None:
    torch.manual_seed(0)
    source = torchvision.models.resnet18(weights=None).eval()
    done = run(source.state_dict(), "resnet18", image_size=64, license="bsd-3-clause")
    assert done.compared_with == "torchvision's resnet18" and done.difference < 1e-4
    assert dict(done.left_out) == {"fc": 2}
    backbone, origin = load_backbone("resnet18", init=str(done.folder))
    assert origin.license == "bsd-3-clause"
    source.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.eval()(images), source(images), rtol=1e-4, atol=1e-5)


def test_transformers_resnet_gives_the_features_it_gives_there(run: Convert, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = ResNetModel(
        ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    ).eval()
    done = run(under("resnet.", source.state_dict()) | head("classifier.1"), "resnet18", image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = load_backbone("resnet18", init=str(done.folder))[0].eval()(images)
        torch.testing.assert_close(found, source(images).pooler_output.flatten(1), rtol=1e-4, atol=1e-5)


def torchvision_vit() -> tuple[State, nn.Module]:
    source = torchvision.models.VisionTransformer(160, 16, num_layers=6, num_heads=2, hidden_dim=64, mlp_dim=192)
    state = {key: value.clone() for key, value in source.state_dict().items()}
    source.heads = nn.Identity()
    return state, source


def transformers_vit() -> tuple[State, nn.Module]:
    config = ViTConfig(hidden_size=64, num_hidden_layers=6, num_attention_heads=2, intermediate_size=192)
    config.image_size, config.layer_norm_eps = 160, 1e-6

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViTModel(config)

        def forward(self, images: Tensor) -> Tensor:
            token: Tensor = self.vit(images).last_hidden_state[:, 0]
            return token

    source = Token()
    return source.state_dict(), source


def stored_transformers_vit() -> tuple[State, nn.Module]:
    """Under the names that its files have, which are older than those in memory."""
    _, source = transformers_vit()
    with tempfile.TemporaryDirectory() as folder:
        source.vit.save_pretrained(folder)  # type: ignore[operator]
        return load_file(Path(folder) / "model.safetensors"), source


@pytest.mark.parametrize("make", [torchvision_vit, transformers_vit, stored_transformers_vit])
def test_a_vit_of_another_library_gives_the_features_it_gives_there(
    run: Convert, make: Callable[[], tuple[State, nn.Module]]
) -> None:
    torch.manual_seed(0)
    state, source = make()
    done = run(state, "test_vit")
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        found = load_backbone("test_vit", init=str(done.folder))[0].eval()(images)
        torch.testing.assert_close(found, source.eval()(images), rtol=1e-4, atol=1e-5)


def mm_vit(state: State) -> State:
    names = {"blocks.": "layers.", "norm1.": "ln1.", "norm2.": "ln2.", "mlp.fc1.": "ffn.layers.0.0."}
    names |= {"mlp.fc2.": "ffn.layers.1.", "patch_embed.proj.": "patch_embed.projection.", "norm.": "ln1."}
    renamed = {}
    for key, value in state.items():
        name = key
        for mine, theirs in names.items():
            name = name.replace(mine, theirs)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize(
    ("tree", "prefix"),
    [
        (lambda s: s | head("decoder_embed") | {"mask_token": torch.ones(1, 1, 64)}, ""),  # DINO's backbone, MAE
        (lambda s: {"state_dict": under("module.base_encoder.", s)}, "state_dict.module.base_encoder."),  # MoCo v3
        (lambda s: {"state_dict": under("backbone.", mm_vit(s))}, "state_dict.backbone."),
    ],
)
def test_vits_become_the_same_network(run: Convert, tree: Callable[[State], Any], prefix: str) -> None:
    state = network("test_vit").state_dict()
    done = run(tree(state), "test_vit")
    written = load_file(done.folder / "model.safetensors")
    assert all(torch.equal(written[key], state[key]) for key in state) and done.match.prefix == prefix


def test_position_embeddings_are_resampled_and_that_is_said(run: Convert) -> None:
    state = network("test_vit").state_dict()
    done = run(state, "test_vit", image_size=64)
    assert any("pos_embed resampled from 101 to 17 positions" in line for line in done.lines)
    loaded, _ = load_backbone("test_vit", init=str(done.folder), image_size=64)
    assert loaded.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    with pytest.raises(InputError, match="pos_embed has 102 positions, which are not 1 tokens and a square"):
        run(state | {"pos_embed": torch.zeros(1, 102, 64)}, "test_vit")


def test_safetensors_are_read_too_and_half_precision_is_said(run: Convert, tmp_path: Path) -> None:
    state = network().state_dict()
    file = tmp_path / "half.safetensors"
    save_file({f"backbone.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}, file)
    done = run({}, weights=str(file))
    assert any("stored as float16, written as float32" in line for line in done.lines)
    assert load_file(done.folder / "model.safetensors")["bn1.weight"].dtype == torch.float32


def test_numbers_of_batches_may_be_absent(run: Convert) -> None:
    state = network().state_dict()
    run({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")})
