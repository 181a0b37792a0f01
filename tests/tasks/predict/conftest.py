"""Tiny finished models of every kind, and a folder of images of many sizes and names."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from finished_models import FILES, NAMES, PALETTE, PIXELS, PREPROCESSING, lively, noise
from torch import nn

from tpssl_hf.models.segmenter import build_segmenter, save_segmenter
from tpssl_hf.models.timm_export import save_timm_folder


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "model"
    network = lively(timm.create_model("test_resnet", num_classes=0))
    return save_timm_folder(network, folder, preprocessing=PREPROCESSING, provenance={})


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier") / "model"
    network = lively(timm.create_model("test_resnet", num_classes=len(NAMES)))
    some = [np.asarray(noise(number).resize((32, 32)), dtype=np.float32) / 255 for number in range(8)]
    pixels = (torch.tensor(np.stack(some)) - torch.tensor(PREPROCESSING.mean)) / torch.tensor(PREPROCESSING.std)
    with torch.no_grad():  # no class is everybody's favorite
        network.get_classifier().bias -= network(pixels.permute(0, 3, 1, 2)).mean(dim=0)
    return save_timm_folder(network, folder, preprocessing=PREPROCESSING, provenance={}, label_names=NAMES)


@pytest.fixture(scope="session")
def make_segmenter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(image_size: tuple[int, int] | None = None, names: list[str] = PIXELS) -> Path:
        torch.manual_seed(0)
        palette = PALETTE if names == PIXELS else None
        options = {"class_names": names, "decoder_width": 16, "low_level_width": 8, "palette": palette}
        network = lively(build_segmenter("test_resnet", init="random", **options)[0])
        nn.init.normal_(network.decoder.classifier.weight)
        return save_segmenter(network, tmp_path_factory.mktemp("segmenter") / "model", image_size=image_size)

    return make


@pytest.fixture(scope="session")
def segmenter(make_segmenter: Callable[..., Path]) -> Path:
    return make_segmenter()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images in sub-folders, with names of every kind."""
    folder = tmp_path / "photos"
    for number, name in enumerate(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(folder / name)
    return folder
