"""ImageNet weights of a package are converted once, and none are made up where it is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch

from tpssl_hf.convert import starter
from tpssl_hf.models.backbone import load_backbone


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of weights, with names of its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    (tmp_path / "package" / "models").mkdir(parents=True)
    network = timm.create_model(starter.BACKBONE, pretrained=False)
    values = [tensor for tensor in network.state_dict().values() if tensor.ndim]
    tensors = {f"layer.{number}": tensor for number, tensor in enumerate(values)}
    torch.save(tensors, tmp_path / "package" / "models" / "weights.pth")
    found = SimpleNamespace(origin=str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    return tmp_path / "package"


def test_they_are_converted_on_first_use_only(package: Path) -> None:
    folder = starter.starter_weights()
    assert folder is not None
    network, origin = load_backbone(starter.BACKBONE, init=str(folder), image_size=32)
    assert (origin.name, origin.license) == (starter.BACKBONE, "apache-2.0")
    assert origin.source and origin.source.startswith("weights.pth, SHA-256 `") and "source" in origin.as_dict()
    stored = torch.load(package / "models" / "weights.pth", weights_only=True)
    assert torch.equal(next(iter(network.state_dict().values())), stored["layer.0"])
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert starter.starter() == {"backbone": starter.BACKBONE, "init": str(folder)}
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_without_the_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert starter.starter_weights() is None and starter.starter() == {}
