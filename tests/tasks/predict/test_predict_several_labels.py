"""Predictions of a classifier whose images may have several labels."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from finished_models import FILES, NAMES, PREPROCESSING, lively, noise, run
from PIL import Image
from transformers import pipeline

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration
from tpssl_hf.models.timm_export import SEVERAL_LABELS, save_timm_folder
from tpssl_hf.tasks.review.table import read_predictions

THRESHOLDS = [0.5, 0.3, 0.9, 0.5]


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a classifier of four labels, each of which about half of some noise has, with this in its config."""
    torch.manual_seed(0)
    network = lively(timm.create_model("test_resnet", num_classes=len(NAMES)))
    some = [np.asarray(noise(number).resize((32, 32)), dtype=np.float32) / 255 for number in range(8)]
    pixels = (torch.tensor(np.stack(some)) - torch.tensor(PREPROCESSING.mean)) / torch.tensor(PREPROCESSING.std)
    with torch.no_grad():
        network.get_classifier().bias -= network(pixels.permute(0, 3, 1, 2)).mean(dim=0)
    kept = {"preprocessing": PREPROCESSING, "label_names": NAMES, "problem_type": SEVERAL_LABELS}
    return lambda **facts: save_timm_folder(network, tmp_path / "tagger" / "model", provenance=facts, **kept)


@pytest.fixture
def tagger(save: Save) -> Path:
    return save(thresholds=THRESHOLDS)


def test_labels_are_those_above_their_thresholds_of_what_the_pipeline_says(
    tagger: Path, photos: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    result = run(tagger, photos, tmp_path / "out", said)
    table, ask = result.table(), pipeline("image-classification", model=str(tagger))
    assert table.column_names == [
        "row",
        "file",
        "labels",
        *(f"confidence_{name}" for name in NAMES),
        "width",
        "height",
    ]
    for row in table:
        scores = {answer["label"]: answer["score"] for answer in ask(Image.open(photos / row["file"]), top_k=4)}
        assert [row[f"confidence_{name}"] for name in NAMES] == pytest.approx([scores[n] for n in NAMES], abs=1e-4)
        above = [name for name, least in zip(NAMES, THRESHOLDS, strict=True) if row[f"confidence_{name}"] >= least]
        assert row["labels"] == ";".join(above)
    assert len({*table["labels"]}) > 2 and any(";" in labels for labels in table["labels"])
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["labels"] for line in lines] == table["labels"] and len(lines) == len(FILES)
    assert any(sentence.startswith("confidences are not calibrated: no labels were held out") for sentence in said)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert kept["temperature"] is None and list(kept["thresholds"].values()) == pytest.approx(THRESHOLDS)


def test_a_temperature_moves_confidences_and_thresholds_and_no_decision(
    tagger: Path, photos: Path, tmp_path: Path
) -> None:
    plain = run(tagger, photos, tmp_path / "plain").table()
    found = MultilabelCalibration(2.5, None, "training images held out in turn", 60, 0.4, 0.3)
    (tagger / "calibration.json").write_text(json.dumps(asdict(found)))
    table = run(tagger, photos, tmp_path / "out", said := []).table()
    assert any("confidences are calibrated (temperature 2.5): the log loss of the 60" in text for text in said)
    moved = json.loads((tmp_path / "out" / "results.json").read_text())["thresholds"]
    assert table["labels"] == plain["labels"] and [*moved] == NAMES and moved["cat"] == 0.5 > moved["dog"] > 0.3
    for row, own in zip(table, plain, strict=True):
        before, after = (np.array([line[f"confidence_{name}"] for name in NAMES]) for line in (own, row))
        odds = (before / (1 - before)) ** (1 / 2.5)
        np.testing.assert_allclose(after, odds / (1 + odds), atol=1e-5)
        assert row["labels"] == ";".join(name for name in NAMES if row[f"confidence_{name}"] >= moved[name])


def test_a_model_without_thresholds_of_its_own_has_a_half(save: Save, photos: Path, tmp_path: Path) -> None:
    for row in run(save(), photos, tmp_path / "out").table():
        assert row["labels"] == ";".join(name for name in NAMES if row[f"confidence_{name}"] >= 0.5)


@pytest.mark.parametrize("thresholds", [[0.5, 0.5], [0.5, 0.5, 0.5, 1.0], ["a", 0.5, 0.5, 0.5], 0.5])
def test_thresholds_that_cannot_be_are_refused(thresholds: Any, save: Save, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="for 4 labels; they must be a number between 0 and 1 for each"):
        run(save(thresholds=thresholds), photos, tmp_path / "out")


@pytest.mark.parametrize("key", [{"accept": 0.9}, {"export": "coco"}, {"push_to_hub": "me/labels"}])
def test_what_needs_one_label_an_image_is_refused(
    key: dict[str, Any], tagger: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(key))} .* images have several labels in this model; leave it"):
        run(tagger, photos, tmp_path / "out", **key)


def test_a_review_of_several_labels_is_refused(tagger: Path, photos: Path, tmp_path: Path) -> None:
    run(tagger, photos, tmp_path / "out")
    with pytest.raises(InputError, match="several labels an image, and a review corrects one; correct `labels` in"):
        read_predictions(str(tmp_path / "out"))
