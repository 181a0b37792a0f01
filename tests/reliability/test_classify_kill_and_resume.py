"""A finetuning killed and started again ends where an unkilled one does, to the last bit, for every learner."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_runs import Fault, Runs
from small_runs import Outcome, as_arguments, assert_same, classify_keys

from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.training.run_dir import read_metrics

OWN: dict[str, dict[str, object]] = {"self_tuning": {"queue_size": 4, "projection_features": 16}}


def arguments(output: Path, cache: Path, **others: object) -> list[str]:
    return as_arguments(classify_keys(cache), output, **others)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", sorted(name for name, spec in CLASSIFY.items() if spec.fit_labels is None))
def test_killed_and_resumed_is_bit_identical_for_every_learner(
    classifying_runs: Runs, cache: Path, tmp_path: Path, method: str
) -> None:
    """Killed while the second checkpoint is moved into its place, after step 4; what came after step 2 is lost."""
    log, own = tmp_path / "log", {"method": method, **OWN.get(method, {})}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert classifying_runs.run(arguments(whole, cache, **own), log) == 0, log.read_text()
    assert classifying_runs.run(arguments(killed, cache, **own), log, Fault("rename", 2)) == -signal.SIGKILL
    assert classifying_runs.run(arguments(killed, cache, **own), log) == 0, log.read_text()
    assert "resuming after step 2 of 4" in log.read_text()
    one = Outcome(whole, 4)
    assert [line["step"] for line in one.metrics] == [1, 2, 3, 4]
    assert_same(Outcome(killed, 4), one)


def test_several_draws_continue_with_the_one_that_was_killed(
    classifying_runs: Runs, cache: Path, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    three = arguments(folder, cache, method="supervised", label_seeds="1,2,3", max_steps=2)
    assert classifying_runs.run(three, log, Fault("curves", 2)) == -signal.SIGKILL, log.read_text()
    first = folder / "label_seed_1" / "results.json"
    made = first.stat().st_mtime_ns
    assert not (folder / "label_seed_2" / "results.json").exists() and not (folder / "results.json").exists()
    assert classifying_runs.run(three, log) == 0, log.read_text()
    assert first.stat().st_mtime_ns == made and "holds the finished run" in log.read_text()
    found = json.loads((folder / "results.json").read_text())
    values = [
        json.loads((folder / f"label_seed_{seed}" / "results.json").read_text())["metrics"]["accuracy"]
        for seed in (1, 2, 3)
    ]
    assert found["accuracy"]["values"] == values
    assert found["accuracy"]["mean"] == pytest.approx(sum(values) / 3)
    draws = [json.loads((folder / f"label_seed_{seed}" / "labels.json").read_text())["labels"] for seed in (1, 2, 3)]
    assert draws[0] != draws[1] != draws[2]


def test_two_processes_learn_together_and_agree_with_one(classifying_runs: Runs, cache: Path, tmp_path: Path) -> None:
    """SoftMatch weighs by statistics of all unlabeled images, so it shows whether both processes see the same."""
    short: dict[str, Callable[..., Any] | object] = {"method": "softmatch", "batch_size": 8, "max_steps": 3}
    short |= {"image_size": 64, "learning_rate": 0.003, "save_every": 100}
    log, logs = tmp_path / "log", [tmp_path / "0", tmp_path / "1"]
    assert classifying_runs.run(arguments(tmp_path / "one", cache, **short), log) == 0, log.read_text()
    pids = classifying_runs.start_group(arguments(tmp_path / "two", cache, **short), logs)
    for pid, own in zip(pids, logs, strict=True):
        assert classifying_runs.wait(pid) == 0, own.read_text()
    lines, others = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for line, other in zip(lines, others, strict=True):
        for name in ("loss", "loss_labeled", "loss_unlabeled", "accepted"):
            assert line[name] == pytest.approx(other[name], abs=1e-4), name


def test_two_processes_train_and_answer_the_folds_together(
    classifying_runs: Runs, cache: Path, tmp_path: Path
) -> None:
    short: dict[str, object] = {"method": "supervised", "batch_size": 8, "select": "best", "labels": 40}
    logs = [tmp_path / "0", tmp_path / "1"]
    pids = classifying_runs.start_group(arguments(tmp_path / "two", cache, **short), logs)
    for pid, own in zip(pids, logs, strict=True):
        assert classifying_runs.wait(pid) == 0, own.read_text()
    folds = json.loads((tmp_path / "two" / "checkpoints" / "folds.json").read_text())
    labels = json.loads((tmp_path / "two" / "labels.json").read_text())["labels"]
    assert len(folds) == 4 and all(len(fold["rows"]) == len(fold["log_probabilities"]) for fold in folds)
    assert sorted(row for fold in folds for row in fold["rows"]) == [entry["row"] for entry in labels]
    saved = json.loads((tmp_path / "two" / "results.json").read_text())["saved"]
    assert saved["cross_validated"].keys() == {"finetuned", "frozen_probe", "label_spreading"}
