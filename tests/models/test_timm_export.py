"""The published folder in every loader, and canaries for the traps that made it necessary to write it ourselves."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

# timm 1.0 opens config.json of a local-dir without closing it
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)

PREPROCESSING = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def with_random_statistics(model: nn.Module) -> nn.Module:
    """A lost BatchNorm buffer must show."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture
def model(tiny_backbone: nn.Module) -> nn.Module:
    return with_random_statistics(tiny_backbone)


@pytest.fixture
def folder(tmp_path: Path, model: nn.Module) -> Path:
    channels_last = model.to(memory_format=torch.channels_last)
    provenance = {"paper": "arXiv:2205.03001"}
    return save_timm_folder(
        channels_last, tmp_path / "model", preprocessing=PREPROCESSING, provenance=provenance, license="mit"
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_timm_loads_identical_features(folder: Path, model: nn.Module, images: Tensor) -> None:
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))
    new_head = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    assert torch.equal(new_head.forward_head(new_head.forward_features(images), pre_logits=True), model(images))
    assert new_head(images).shape == (2, 7)


@torch.inference_mode()
def test_timm_loads_identical_feature_maps(folder: Path, model: nn.Module, images: Tensor) -> None:
    maps = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()(images)
    assert torch.equal(maps[-1], model.forward_features(images))


@torch.inference_mode()
def test_transformers_loads_identical_features(folder: Path, model: nn.Module, images: Tensor) -> None:
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.eval()(images).pooler_output, model(images))


def test_plain_safetensors_has_the_plain_timm_keys(folder: Path, model: nn.Module) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[k], v) for k, v in model.state_dict().items())


def test_the_processor_does_our_preprocessing(folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folder)
    white = Image.fromarray(np.full((48, 40, 3), 255, dtype=np.uint8))
    pixels = processor(white, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    expected = (1 - torch.tensor(PREPROCESSING.mean)) / torch.tensor(PREPROCESSING.std)
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


@torch.inference_mode()
def test_a_classifier_keeps_logits_and_class_names(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    classifier = with_random_statistics(timm.create_model("test_resnet", pretrained=False, num_classes=3))
    names = ["cat", "dog", "bird"]
    folder = save_timm_folder(
        classifier, tmp_path / "model", preprocessing=PREPROCESSING, provenance={}, label_names=names
    )
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(loaded(images).logits, classifier(images))
    assert [loaded.config.id2label[i] for i in range(3)] == names
    answers = pipeline("image-classification", model=str(folder))(Image.new("RGB", (40, 40), "red"))
    assert {answer["label"] for answer in answers} == set(names)


def test_the_config_carries_our_provenance_and_not_timms(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert config["tpssl_hf"] == {"paper": "arXiv:2205.03001"}
    assert config["pretrained_cfg"]["license"] == "mit"
    assert config["pretrained_cfg"]["tag"] == "tpssl"
    assert not {"origin_url", "paper_ids", "hf_hub_id", "url"} & config["pretrained_cfg"].keys()


def test_nothing_is_pickled_and_everybody_may_read(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert all(p.stat().st_mode & stat.S_IRGRP for p in folder.iterdir())


def test_an_existing_folder_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path, model: nn.Module) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.bin").write_text("old")
    save_timm_folder(model, target, preprocessing=PREPROCESSING, provenance={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert not (target / "stale.bin").exists()


def test_canary_timm_still_records_num_classes_where_transformers_passes_it_twice(
    tmp_path: Path, model: nn.Module
) -> None:
    """When this fails, save_timm_folder may stop removing ``num_classes`` from ``model_args``."""
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert "num_classes" in json.loads((tmp_path / "config.json").read_text())["model_args"]
    with pytest.raises(TypeError, match="num_classes"):
        AutoModel.from_pretrained(tmp_path)


def test_canary_timm_still_saves_a_pickle_unless_told_otherwise(tmp_path: Path, model: nn.Module) -> None:
    """When this fails, ``safe_serialization=True`` has become the default."""
    save_for_hf(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_canary_label_names_as_a_dictionary_are_still_lost(tmp_path: Path) -> None:
    """When this fails, class names need no longer be a list."""
    classifier = timm.create_model("test_resnet", pretrained=False, num_classes=2)
    save_for_hf(classifier, tmp_path, safe_serialization=True, model_config={"label_names": {0: "x", 1: "y"}})
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"].pop("num_classes")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label[0] != "x"
