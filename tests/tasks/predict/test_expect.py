"""Calibrated confidences and the accuracy to be expected, of a classifier that has a calibration."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_models import NAMES, run

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.calibration import Calibration


def calibrated(classifier: Path, folder: Path, **values: Any) -> Path:
    """Copy a classifier and put a calibration beside its weights."""
    right = [1] * 90 + [0] * 10
    found = Calibration(2.5, None, "training labels held out in turn", 0.2, 0.05, [0.9] * 100, right)
    shutil.copytree(classifier, folder)
    (folder / "calibration.json").write_text(json.dumps(asdict(found) | values))
    return folder


def test_probabilities_are_those_of_the_divided_logits(classifier: Path, photos: Path, tmp_path: Path) -> None:
    plain = run(classifier, photos, tmp_path / "plain", top_k=9).table()
    table = run(calibrated(classifier, tmp_path / "m"), photos, tmp_path / "out", top_k=9).table()
    assert table["label"] == plain["label"] and table["second_label"] == plain["second_label"]
    for row, own in zip(table, plain, strict=True):
        powers = np.array(own["top_probabilities"]) ** (1 / 2.5)
        wanted = powers / powers.sum()
        np.testing.assert_allclose(row["top_probabilities"], wanted, atol=1e-4)
        assert row["confidence"] == pytest.approx(wanted[0], abs=1e-4) and len(wanted) == len(NAMES)
        assert row["margin"] == pytest.approx(wanted[0] - wanted[1], abs=2e-4)
        assert row["entropy"] == pytest.approx(-(wanted * np.log(wanted)).sum(), abs=1e-3)


def test_what_is_expected_is_said_and_kept(classifier: Path, photos: Path, tmp_path: Path) -> None:
    model = calibrated(classifier, tmp_path / "m")
    for _ in range(2):  # a finished folder says it again
        table = run(model, photos, tmp_path / "out", said := []).table()
        sentence = next(text for text in said if "calibrated" in text)
        assert sentence.startswith(
            "confidences are calibrated (temperature 2.5); expected accuracy 90.0 % (82.4 to 95.1"
        )
        found = json.loads((tmp_path / "out" / "results.json").read_text())
        assert found["temperature"] == 2.5 and found["expected_accuracy"]["accuracy"] == 0.9
        assert found["mean_confidence"] == pytest.approx(np.mean(table["confidence"]), abs=1e-6)


def test_without_a_temperature_confidences_stay_and_the_reason_is_said(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    model = calibrated(classifier, tmp_path / "m", temperature=None, reason="labels are 4, fewer than the 40")
    table = run(model, photos, tmp_path / "out", said := []).table()
    assert any(text.startswith("confidences are not calibrated: labels are 4") for text in said)
    assert table.to_list() == run(classifier, photos, tmp_path / "plain", said := []).table().to_list()
    assert any("not calibrated, and what accuracy to expect is not known" in text for text in said)


def test_another_calibration_is_another_model_and_a_torn_one_is_refused(
    classifier: Path, photos: Path, tmp_path: Path
) -> None:
    model = calibrated(classifier, tmp_path / "m")
    run(model, photos, tmp_path / "out")
    (model / "calibration.json").unlink()
    with pytest.raises(InputError, match="begun with another model"):
        run(model, photos, tmp_path / "out")
    for text in ("{", "{}"):
        (model / "calibration.json").write_text(text)
        with pytest.raises(InputError, match=r"calibration.json cannot be read .*; copy the model again, or delete"):
            run(model, photos, tmp_path / "out2")
