"""A segmentation run killed and started again ends where an unkilled one does, to the last bit, for every learner."""

import json
import signal
from pathlib import Path

import pytest
from forked_runs import Fault, Runs
from small_runs import Outcome, as_arguments, assert_same, segment_keys

from tpssl_hf.methods.segment import SEGMENT


def arguments(output: Path, cache: Path, **others: object) -> list[str]:
    return as_arguments(segment_keys(cache), output, **others)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


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
    one = Outcome(whole, 4)
    assert [line["step"] for line in one.metrics] == [1, 2, 3, 4]
    assert_same(Outcome(killed, 4), one)


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
