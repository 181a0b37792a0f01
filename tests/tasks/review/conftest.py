"""The finished output folder of predict as it is on disk, without a network that has made it."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from finished_predictions import CLASSES, HOSTILE, write_table
from PIL import Image

from tpssl_hf.data.sources import load_source
from tpssl_hf.tasks.predict.config import EmbedConfig
from tpssl_hf.tasks.predict.read import ImageReader


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(HOSTILE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 300), (40 * number, 90, 120)).save(folder / name)
    return folder


@pytest.fixture
def finetuning(photos: Path, tmp_path: Path) -> Path:
    """The folder of a run that was given four labels of the photos; row 2 was answered otherwise, row 3 not at all."""
    folder = tmp_path / "classifier"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset": str(photos), "split": "train"}))
    labels = [{"row": row, "label": label} for row, label in ((0, 0), (1, 1), (2, 2), (3, 0))]
    content = {"fingerprint": load_source(str(photos)).fingerprint, "class_names": CLASSES, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(content))
    found = np.log([[0.9, 0.05, 0.05], [0.07, 0.9, 0.03]]).tolist()
    folds = [{"rows": [0, 2], "log_probabilities": found}, {"rows": [1], "log_probabilities": [found[1]]}]
    folds.append({"rows": [3], "log_probabilities": [[None] * 3]})
    (folder / "checkpoints" / "folds.json").write_text(json.dumps(folds))
    return folder


@pytest.fixture
def predictions(photos: Path, finetuning: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    folder.mkdir()
    reader = ImageReader(EmbedConfig(dataset=str(photos)))
    write_table(folder, reader.names.to_pylist())
    keys = {"dataset": str(photos), "split": "train", "dataset_config": None, "image_column": None}
    keys |= {"images_fingerprint": reader.source.fingerprint, "model_fingerprint": "m", "model": str(finetuning)}
    (folder / "config.yaml").write_text(yaml.safe_dump(keys))
    (folder / "results.json").write_text("{}")
    return folder
