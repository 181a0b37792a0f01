"""A finetuning killed and started again ends where an unkilled one does, to the last bit, for every learner."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import Fault, Runs

from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

OWN: dict[str, dict[str, object]] = {"self_tuning": {"queue_size": 4, "projection_features": 16}}


def arguments(output: Path, cache: Path, **others: object) -> list[str]:
    settings = {"dataset": "digits", "labels": 20, "backbone": "test_resnet", "image_size": 32, "work_size": 16}
    settings |= {"batch_size": 4, "unlabeled_ratio": 2, "max_steps": 4, "save_every": 2, "log_every": 1}
    settings |= {"limit_images": 300, "limit_test_images": 40, "cache_dir": cache, "output_dir": output}
    settings |= {"precision": "fp32", "select": "last", **others}
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def outcome(folder: Path) -> dict[str, Any]:
    checkpoint = load_latest(folder / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 4
    lines = [
        {k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(folder / "metrics.jsonl")
    ]
    results = json.loads((folder / "results.json").read_text())
    results.pop("seconds")
    results["config"].pop("output_dir")
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return {"tensors": checkpoint.tensors, "lines": lines, "results": results, "weights": weights}


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
    one, other = outcome(whole), outcome(killed)
    assert one["lines"] == other["lines"] and [line["step"] for line in one["lines"]] == [1, 2, 3, 4]
    assert one["results"] == other["results"] and one["weights"] == other["weights"]
    for group, named in one["tensors"].items():
        assert named.keys() == other["tensors"][group].keys()
        for name, tensor in named.items():
            assert torch.equal(tensor, other["tensors"][group][name]), f"{group} {name}"


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
