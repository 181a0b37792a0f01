"""A classification that compares what it finetuned with baselines, run in this process on tiny backbones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tpssl_hf.tasks.classify import folds, report
from tpssl_hf.tasks.classify import run as finetuning
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

BROKEN = {"learning_rate": 20.0, "max_gradient_norm": 1.0}  # moves all weights far in a step
STILL = {"learning_rate": 1e-12, "head_init": "probe", "backbone_batchnorm": "frozen"}  # moves nothing
Learn = Callable[..., dict[str, Any]]


@pytest.fixture
def learn(
    run_recipe: Any,
    load_recipe: Callable[[str], Any],
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Learn:
    """Run the recipe with these settings; returns results.json."""
    for module, name in ((finetuning, "draw_views"), (report, "draw_curves"), (report, "draw_pseudo_labels")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    recipe = load_recipe("ssl_classify")
    tiny = {"dataset": "digits", "labels": 40, "backbone": "test_resnet", "image_size": 32, "work_size": 16}
    tiny |= {"method": "supervised", "batch_size": 8, "max_steps": 4, "log_every": 1, "limit_images": 300}
    tiny |= {"limit_test_images": 60, "precision": "fp32", "cache_dir": shared_cache}

    def run(name: str = "run", **settings: Any) -> dict[str, Any]:
        assert run_recipe(recipe, tiny | {"output_dir": tmp_path / name} | settings) == 0
        found: dict[str, Any] = json.loads((tmp_path / name / "results.json").read_text())
        return found

    return run


def check_calibration(found: dict[str, Any], folder: Path) -> None:
    """It is of what is deployed, by the 80 labels held out in turn."""
    kept = json.loads((folder / "model" / "calibration.json").read_text())
    accuracy = found["saved"]["cross_validated"][found["saved"]["candidate"]]["accuracy"]
    assert np.mean(kept["right"]) == pytest.approx(accuracy) and len(kept["confidences"]) == 80
    expected = found["calibration"]["expected_accuracy"]
    assert found["calibration"]["labels"] == 80 and expected["low"] < accuracy == pytest.approx(expected["accuracy"])
    assert kept["temperature"] == found["calibration"]["temperature"] > 0
    assert kept["held_out"] == "training labels held out in turn" and "confidences" not in found["calibration"]


def test_a_broken_finetuning_leaves_a_baseline_and_says_so(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = learn(labels=80, **BROKEN)
    saved, folder = found["saved"], tmp_path / "run"
    check_calibration(found, folder)
    assert saved["candidate"] in ("frozen_probe", "label_spreading") and saved["labels"] == 80
    assert saved["cross_validated"][saved["candidate"]]["minus_finetuned"]["mean"] > 0
    assert found["metrics"]["accuracy"] > found["beside"]["finetuned"] + 0.1
    assert found["beside"].keys() == {"finetuned", "frozen_probe", "label_spreading"} - {saved["candidate"]}
    out = capsys.readouterr().out
    assert "of the start, not what supervised made" in out.split("Finetuned")[0] and "model_last" in out
    assert found["published_path"]["warning"] is None and "chosen on training labels" in found["protocol"]
    kept, last = (load_file(folder / name / "model.safetensors") for name in ("model", "model_last"))
    made = load_latest(folder / "checkpoints")
    assert made is not None
    assert all(torch.equal(value, made.tensors["method"][f"teacher.network.{name}"]) for name, value in last.items())
    assert any(not torch.equal(value, kept[name]) for name, value in last.items())
    assert json.loads((folder / "model" / "config.json").read_text())["tpssl_hf"]["candidate"] == saved["candidate"]


def test_labels_held_out_of_the_whole_run_are_asked_first(learn: Learn, tmp_path: Path) -> None:
    found = learn(labels=90, validation_labels=50, **STILL)
    kept = json.loads((tmp_path / "run" / "model" / "calibration.json").read_text())
    assert kept["held_out"] == "labels held out of the run" and len(kept["right"]) == 50
    assert np.mean(kept["right"]) == pytest.approx(found["metrics"]["validation_accuracy"])


def test_a_finetuning_that_knows_every_label_is_kept(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "bright")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for image in range(6):
                pixels = random.integers(0, 60, (20, 24, 3)) + 180 * number
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / name / f"{image}.png")
    own = {"dataset": tmp_path / "data", "label_column": "folder", "labels": 8, "limit_images": None}
    found = learn(**own, limit_test_images=None, **STILL)
    assert found["saved"]["candidate"] == "finetuned" and found["saved"]["folds"] == {"count": 4, "steps": 1}
    assert {entry["accuracy"] for entry in found["saved"]["cross_validated"].values()} == {1.0}
    assert found["metrics"]["accuracy"] == 1.0 == found["beside"]["frozen_probe"]
    assert "model/ is what supervised made" in capsys.readouterr().out
    assert not (tmp_path / "run" / "model_last").exists()


def test_folds_start_and_are_asked_as_the_probe_is(learn: Learn, tmp_path: Path) -> None:
    """With a rate that moves nothing, a finetuned fold is the probe of its labels."""
    found = learn(labels=80, **STILL)
    answered = found["saved"]["cross_validated"]
    assert answered["finetuned"]["accuracy"] == answered["frozen_probe"]["accuracy"] > 0.15
    check_calibration(found, tmp_path / "run")


@pytest.mark.filterwarnings("ignore::tpssl_hf.monitoring.pseudo_labels.NeverAcceptedWarning")
def test_the_training_itself_is_the_same_to_the_last_bit(learn: Learn, tmp_path: Path) -> None:
    tensors, lines, found = [], [], []
    for select in ("last", "best"):
        found.append(learn(select, select=select, method="fixmatch", unlabeled_ratio=2, threshold=0.1))
        checkpoint = load_latest(tmp_path / select / "checkpoints")
        assert checkpoint is not None
        tensors.append(checkpoint.tensors["method"])
        log = read_metrics(tmp_path / select / "metrics.jsonl")
        lines.append([{k: v for k, v in line.items() if k != "images_per_second"} for line in log])
    assert lines[0] == lines[1] and len(lines[0]) == 4
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    of_finetuned = found[1]["beside"].get("finetuned", found[1]["metrics"]["accuracy"])
    assert found[0]["metrics"]["accuracy"] == of_finetuned
    assert found[0]["saved"]["cross_validated"] == {} and found[0]["beside"] == {}


def test_one_label_a_class_is_deployed_as_it_was_finetuned_with_baselines_beside_and_not_calibrated(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = learn(labels=10, **STILL)
    assert found["calibration"] is None and not (tmp_path / "run" / "model" / "calibration.json").exists()
    assert found["saved"]["candidate"] == "finetuned" and found["saved"]["cross_validated"] == {}
    assert found["beside"].keys() == {"frozen_probe", "label_spreading"}
    out = capsys.readouterr().out
    assert "nothing could be compared" in out and "the frozen probe" in out.split("beside it")[1]


def test_folds_that_are_done_are_not_trained_again(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, original, asked = learn("whole"), folds.probabilities, []

    def dies_in_the_third(*given: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(folds, "probabilities", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        learn()
    kept = folds.read_folds(tmp_path / "run")
    assert len(kept) == 2 and not (tmp_path / "run" / "results.json").exists()
    found = learn()
    assert len(asked) == 5 and folds.read_folds(tmp_path / "run")[:2] == kept
    assert found["saved"] == whole["saved"] and found["metrics"] == whole["metrics"]


def test_a_signal_stops_the_folds_and_the_run_goes_on_later(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(folds, "agreed", lambda *_: True)
        with pytest.raises(AssertionError, match="143"):
            learn()
    assert load_latest(tmp_path / "run" / "checkpoints") is not None
    assert not (tmp_path / "run" / "results.json").exists()
    assert learn()["saved"]["folds"]["count"] == 4


def test_a_fold_that_fails_knows_no_label(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise folds.NonFiniteStepsError("not finite")

    monkeypatch.setattr(folds, "steps_of", fails)
    found = learn()
    assert found["saved"]["cross_validated"]["finetuned"]["accuracy"] == 0
    assert found["saved"]["candidate"] != "finetuned" and found["calibration"]["expected_accuracy"]["accuracy"] > 0


def test_label_spreading_makes_no_step_and_is_compared_with_the_probe(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = learn(method="label_spreading", labels=80)
    check_calibration(found, tmp_path / "run")
    assert found["steps"] == 0 and found["saved"]["cross_validated"].keys() == {"finetuned", "frozen_probe"}
    assert found["beside"].keys() <= {"frozen_probe", "finetuned"} and found["unlabeled_images"] == 300
    assert found["metrics"]["accuracy"] > 0.15 and found["published_path"]["warning"] is None
    assert "head fitted by label_spreading" in capsys.readouterr().out
    assert not (tmp_path / "run" / "curves.png").exists() and read_metrics(tmp_path / "run" / "metrics.jsonl") == []
