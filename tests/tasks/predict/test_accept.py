"""What is accepted, what is to be looked at, and what is promised of it."""

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from finished_models import FILES, run

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.tasks.predict.read import ImageReader


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


@pytest.fixture
def sure_above(classifier: Path, photos: Path, tmp_path: Path) -> float:
    """A confidence between those of the photos; tmp_path/model is right above it, and wrong below."""
    own = sorted(run(classifier, photos, tmp_path / "before").table()["confidence"])
    middle = (own[3] + own[4]) / 2
    confidences = np.concatenate([np.linspace(1, middle, 200), np.linspace(middle, 0, 200, endpoint=False)])
    right = [1] * 200 + [0] * 200
    found = Calibration(None, "made up", "made-up labels", 0.1, None, confidences.tolist(), right)
    (shutil.copytree(classifier, tmp_path / "model") / "calibration.json").write_text(json.dumps(asdict(found)))
    return middle


def test_the_sure_are_accepted_and_the_others_are_in_the_order_of_doubt(
    sure_above: float, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(tmp_path / "model", photos, out)
    assert not (out / "accepted.csv").exists()
    monkeypatch.setattr(ImageReader, "read", lambda *_, **__: pytest.fail("computed again"))
    table = run(tmp_path / "model", photos, out, said := [], accept=0.95).table()
    accepted, others = rows(out / "accepted.csv"), rows(out / "to_review.csv")
    found = json.loads((out / "results.json").read_text())["accept"]
    assert found["threshold"] == pytest.approx(sure_above) and found["held_out_accuracy"] >= 0.95
    assert found["held_out_low"] >= 0.95 and found["held_out_coverage"] == pytest.approx(0.5, abs=0.01)
    assert {row["file"] for row in accepted} == {r["file"] for r in table if r["confidence"] >= found["threshold"]}
    assert (len(accepted), len(others)) == (found["accepted"], found["to_review"]) == (3, 4)
    assert {row["file"] for row in accepted + others} == {*FILES}
    doubts = [float(row["confidence"]) for row in others]
    assert doubts == sorted(doubts) and doubts[-1] < found["threshold"]
    assert {row["file"]: row["label"] for row in accepted + others} == dict(
        zip(table["file"], table["label"], strict=True)
    )
    assert any(text.startswith(f"accepted.csv: {len(accepted)} of 7 predictions") for text in said)


@pytest.mark.parametrize("known", [True, False])
def test_where_nothing_can_be_promised_nothing_is_accepted(
    known: bool, sure_above: float, classifier: Path, photos: Path, tmp_path: Path
) -> None:
    run(tmp_path / "model" if known else classifier, photos, tmp_path / "out", said := [], accept=0.999)
    reasons = [text for text in said if text.startswith("no prediction is accepted: ")]
    assert len(reasons) == 1 and ("400 made-up labels do not suffice" in reasons[0]) == known
    assert ("no labels were held out" in reasons[0]) != known
    assert rows(tmp_path / "out" / "accepted.csv") == [] and len(rows(tmp_path / "out" / "to_review.csv")) == 7
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accept"]["threshold"] is None


@pytest.mark.parametrize("accept", [0.0, 1.0, 95.0])
def test_what_is_no_accuracy_is_refused(accept: float, classifier: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give an accuracy above 0 and below 1, such as 0.95"):
        run(classifier, photos, tmp_path / "out", accept=accept)


def test_a_segmenter_accepts_nothing(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accept is for classifiers"):
        run(segmenter, photos, tmp_path / "out", accept=0.9)
