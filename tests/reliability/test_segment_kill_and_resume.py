"""A segmentation run killed and started again ends where an unkilled one does, to the last bit, for every learner."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import Fault, Runs

from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics


def arguments(output: Path, cache: Path, **others: object) -> list[str]:
    settings = {"dataset": "digit_scenes", "labels": 6, "backbone": "test_resnet", "decoder_width": 16}
    settings |= {"crop_height": 32, "crop_width": 48, "batch_size": 2, "max_steps": 4, "save_every": 2, "log_every": 1}
    settings |= {"limit_images": 40, "limit_test_images": 6, "cache_dir": cache, "output_dir": output}
    settings |= {"learning_rate": 0.01, "precision": "fp32", **others}
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


@pytest.mark.parametrize("method", sorted(SEGMENT))
def test_killed_and_resumed_is_bit_identical_for_every_learner(
    segmenting_runs: Runs, cache: Path, tmp_path: Path, method: str
) -> None:
    """Killed while the second checkpoint is moved into its place, after step 4; what came after step 2 is lost."""
    log, whole, killed = tmp_path / "log", tmp_path / "whole", tmp_path / "killed"
    assert segmenting_runs.run(arguments(whole, cache, method=method), log) == 0, log.read_text()
    fault = Fault("rename", 2)
    assert segmenting_runs.run(arguments(killed, cache, method=method), log, fault) == -signal.SIGKILL, log.read_text()
    assert segmenting_runs.run(arguments(killed, cache, method=method), log) == 0, log.read_text()
    assert "resuming after step 2 of 4" in log.read_text()
    one, other = outcome(whole), outcome(killed)
    assert one["lines"] == other["lines"] and [line["step"] for line in one["lines"]] == [1, 2, 3, 4]
    assert one["results"] == other["results"] and one["weights"] == other["weights"]
    for group, named in one["tensors"].items():
        assert named.keys() == other["tensors"][group].keys()
        for name, tensor in named.items():
            assert torch.equal(tensor, other["tensors"][group][name]), f"{group} {name}"


def test_several_draws_continue_with_the_one_that_was_killed(
    segmenting_runs: Runs, cache: Path, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    two = arguments(folder, cache, method="supervised", label_seeds="1,2", max_steps=2)
    assert segmenting_runs.run(two, log, Fault("curves", 2)) == -signal.SIGKILL, log.read_text()
    first = folder / "label_seed_1" / "results.json"
    made = first.stat().st_mtime_ns
    assert not (folder / "label_seed_2" / "results.json").exists() and not (folder / "results.json").exists()
    assert segmenting_runs.run(two, log) == 0, log.read_text()
    assert first.stat().st_mtime_ns == made and "holds the finished run" in log.read_text()
    found = json.loads((folder / "results.json").read_text())
    own = [json.loads((folder / f"label_seed_{seed}" / "results.json").read_text()) for seed in (1, 2)]
    assert found["mean_iou"]["values"] == [one["metrics"]["mean_iou"] for one in own]
    assert found["mean_iou"]["mean"] == pytest.approx(sum(found["mean_iou"]["values"]) / 2)
    assert "Mean IoU over 2 label seeds" in log.read_text()
