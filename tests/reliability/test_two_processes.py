"""Two processes do together what one does alone, and end together."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import RECIPE, Fault, Runs, wait_for
from safetensors.torch import load_file

from tpssl_hf.training.run_dir import read_metrics

Smallest = Callable[..., list[str]]
SHORT = {"max_steps": 5, "log_every": 1, "save_every": 100, "batch_size": 16, "image_size": 64}


@pytest.fixture
def logs(tmp_path: Path) -> list[Path]:
    return [tmp_path / "logs" / "0", tmp_path / "logs" / "1"]


def together(runs: Runs, arguments: list[str], logs: list[Path]) -> None:
    for pid, log in zip(runs.start_group(arguments, logs), logs, strict=True):
        assert runs.wait(pid) == 0, log.read_text()


def differences(one: Path, other: Path) -> tuple[float, float]:
    """Return the greatest absolute difference between deployed weights, and between losses."""
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    lines, other_lines = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    assert [line["step"] for line in lines] == [line["step"] for line in other_lines] == [1, 2, 3, 4, 5]
    return (
        max((tensor - others[name]).abs().max().item() for name, tensor in weights.items()),
        max(abs(line["loss"] - former["loss"]) for line, former in zip(lines, other_lines, strict=True)),
    )


@pytest.fixture(scope="module")
def alone(runs: Runs, smallest: Smallest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a short run in one process, made once per choice of settings; its log is beside it."""
    made: dict[str, Path] = {}

    def get(**settings: object) -> Path:
        if str(settings) not in made:
            folder = made[str(settings)] = tmp_path_factory.mktemp("alone")
            log = folder.with_suffix(".log")
            assert runs.run(smallest(folder, **settings), log) == 0, log.read_text()
        return made[str(settings)]

    return get


@pytest.mark.parametrize("optimizer, learning_rate, parts", [("lars", 3.0, 1), ("sgd", 0.02, 2)])
def test_two_processes_are_one_with_shared_statistics(
    runs: Runs,
    smallest: Smallest,
    alone: Callable[..., Path],
    logs: list[Path],
    tmp_path: Path,
    optimizer: str,
    learning_rate: float,
    parts: int,
) -> None:
    """All forked runs are without ReLUs (forking.smooth), or rounding would decide which way one falls."""
    settings = SHORT | {
        "optimizer": optimizer,
        "base_learning_rate": learning_rate,
        "gradient_accumulation_steps": parts,
    }
    one = alone(**settings)
    together(runs, smallest(tmp_path / "two", **settings), logs)
    weights, losses = differences(one, tmp_path / "two")
    assert weights <= 1e-5 and losses <= 1e-5
    lines = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert (
        lines[-1]["drift"] > 1e-4 and abs(lines[-1]["loss"] - lines[0]["loss"]) > 1e-3
    )  # there is something to compare

    said = [log.read_text() for log in logs]
    assert "; 2 processes; float32" in said[0] and "1 process; float32" in one.with_suffix(".log").read_text()
    assert "Adapted" in said[0] and "Warning" not in said[0] and said[1] == ""  # only the main process speaks
    assert json.loads((tmp_path / "two" / "results.json").read_text())["dataset"]["images"] == 32


def test_statistics_of_its_own_part_make_a_difference(
    runs: Runs, smallest: Smallest, alone: Callable[..., Path], logs: list[Path], tmp_path: Path
) -> None:
    one = alone(**SHORT, optimizer="lars", base_learning_rate=3.0, gradient_accumulation_steps=1)
    together(runs, smallest(tmp_path / "two", **SHORT, sync_batchnorm=False), logs)
    weights, losses = differences(one, tmp_path / "two")
    assert weights > 1e-3 and losses > 1e-3
    together(runs, smallest(tmp_path / "two", **SHORT, sync_batchnorm=False), logs)
    assert "holds the finished run" in logs[0].read_text()


def test_batch_that_two_processes_cannot_share_is_refused(
    runs: Runs, smallest: Smallest, logs: list[Path], tmp_path: Path
) -> None:
    pids = runs.start_group(smallest(tmp_path / "run", batch_size=9), logs)
    assert [runs.wait(pid) for pid in pids] == [2, 2]
    assert "error: batch_size 9 over 2 processes" in logs[0].read_text()


def test_killed_process_ends_the_other_and_both_continue_bit_identically(
    runs: Runs, smallest: Smallest, logs: list[Path], tmp_path: Path
) -> None:
    short = {"max_steps": 4, "save_every": 2}
    together(runs, smallest(tmp_path / "unkilled", **short), logs)
    pids = runs.start_group(smallest(tmp_path / "run", **short), logs, {1: Fault("forward", 7)})
    assert runs.wait(pids[1]) == -signal.SIGKILL
    assert runs.wait(pids[0], seconds=60) != 0
    assert not (tmp_path / "run" / "results.json").exists()
    together(runs, smallest(tmp_path / "run", **short), logs)
    assert "resuming after step 2 of 4" in logs[0].read_text()
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("unkilled", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_signal_to_one_stops_both_with_a_checkpoint(
    runs: Runs, smallest: Smallest, logs: list[Path], tmp_path: Path
) -> None:
    pids = runs.start_group(smallest(tmp_path / "run"), logs, {1: Fault("forward", 5, "wait")})
    wait_for(logs[1].with_suffix(".paused"))
    os.kill(pids[1], signal.SIGTERM)
    logs[1].with_suffix(".go").touch()
    assert [runs.wait(pid) for pid in pids] == [143, 143], logs[0].read_text()
    assert "stopped after step 4 of 12" in logs[0].read_text()  # they agree on it at every line of the log
    assert (tmp_path / "run" / "checkpoints" / "step_4").exists()


@pytest.mark.slow
def test_torchrun_is_two_processes(smallest: Smallest, tmp_path: Path) -> None:
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--standalone"]
    first = []
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run(
            [*launcher, str(RECIPE), *smallest(tmp_path / name, **SHORT)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, done.stderr
        first.append(read_metrics(tmp_path / name / "metrics.jsonl")[0]["loss"])  # of later ones, see forking.smooth
    assert "; 2 processes; float32" in done.stdout
    assert first[0] == pytest.approx(first[1], abs=1e-4)
