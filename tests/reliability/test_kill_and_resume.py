"""A run that was killed anywhere and started again ends where an unkilled one does, to the last bit."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import Fault, Runs, wait_for
from small_runs import Outcome, assert_same
from tiny_teacher import tiny_teacher

Smallest = Callable[..., list[str]]


@pytest.fixture(scope="module")
def unkilled(runs: Runs, smallest: Smallest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """The outcome of a run that nothing happened to, made once per choice of settings."""
    made: dict[str, Outcome] = {}

    def get(**others: object) -> Outcome:
        if str(others) not in made:
            folder = tmp_path_factory.mktemp("unkilled")
            log = folder.with_suffix(".log")
            assert runs.run(smallest(folder, **others), log) == 0, log.read_text()
            steps = int(str(others.get("max_steps", 12)))
            made[str(others)] = outcome = Outcome(folder, steps)
            assert [line["step"] for line in outcome.metrics] == [*range(2, steps + 1, 2)]
        return made[str(others)]

    return get


def resumed_steps(log: Path) -> list[int]:
    return [int(step) for step in re.findall(r"resuming after step (\d+) of \d+", log.read_text())]


# Four steps are an epoch and three are from one checkpoint to the next; one has to be lost to lose something. A step
# goes forward and backward twice.
POINTS = {
    "before_the_first_checkpoint": (Fault("forward", 3), []),
    "after_a_forward": (Fault("forward", 9), [3]),
    "inside_a_backward": (Fault("backward", 15), [6]),
    "inside_an_optimizer_step": (Fault("optimizer", 11), [9]),
    "at_an_epoch_edge": (Fault("teacher", 8), [6]),
    "inside_a_log_line": (Fault("log", 4, "tear"), [6]),
    "inside_the_first_write": (Fault("write", 1, "tear", "method"), []),
    "inside_a_manifest": (Fault("write", 2, "tear", "MANIFEST"), [3]),
    "between_write_and_rename": (Fault("rename", 2), [3]),
    "right_after_a_save": (Fault("saved", 2), [6]),
    "while_removing_an_old_one": (Fault("replace", 1, match="/step_3"), [9]),
    "after_the_last_checkpoint": (Fault("curves", 1), [12]),
    "before_the_export_has_its_name": (Fault("folder", 1, match="/.model-"), [12]),
    "before_the_results": (Fault("results", 2), [12]),  # the first is batchnorm.json
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_is_bit_identical(
    runs: Runs, smallest: Smallest, unkilled: Callable[..., Outcome], tmp_path: Path, point: str
) -> None:
    fault, resumed = POINTS[point]
    folder, log = tmp_path / "run", tmp_path / "log"
    assert runs.run(smallest(folder), log, fault) == -signal.SIGKILL, log.read_text()
    assert not (folder / "results.json").exists()
    assert runs.run(smallest(folder), log) == 0, log.read_text()
    assert resumed_steps(log) == resumed
    assert_same(Outcome(folder, 12), unkilled())


# Every other method, and with them other arithmetic, which is no method's own.
METHODS: dict[str, dict[str, object]] = {
    "moco": {"queue_size": 16, "hidden_features": None, "precision": "bf16"},
    "simclr": {"hidden_features": None, "optimizer": "adamw", "base_learning_rate": 0.01},
    "densecl": {"queue_size": 16, "image_size": 64, "optimizer": "sgd", "gradient_accumulation_steps": 2},
    "distill": {
        "teacher": tiny_teacher(),
        "queue_size": 16,
        "hidden_features": None,
        "projection_features": None,
        "base_learning_rate": 0.01,
    },
    "pixpro": {"image_size": 64},
}


@pytest.mark.parametrize("method", METHODS)
def test_so_it_is_with_every_other_method_and_arithmetic(
    runs: Runs, smallest: Smallest, unkilled: Callable[..., Outcome], tmp_path: Path, method: str
) -> None:
    """Half as long, which is still beyond the end of an epoch."""
    settings = {"method": method, "max_steps": 6, **METHODS[method]}
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments = smallest(folder, **settings)
    assert runs.run(arguments, log, Fault("rename", 2)) == -signal.SIGKILL, log.read_text()
    assert runs.run(arguments, log) == 0, log.read_text()
    assert resumed_steps(log) == [3]
    assert_same(Outcome(folder, 6), unkilled(**settings))


def test_killed_again_and_again_is_bit_identical(
    runs: Runs, smallest: Smallest, unkilled: Callable[..., Outcome], tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    for fault in (Fault("saved", 1), Fault("rename", 1), Fault("forward", 3), Fault("saved", 2)):
        assert runs.run(smallest(folder), log, fault) == -signal.SIGKILL, log.read_text()
    assert runs.run(smallest(folder), log) == 0, log.read_text()
    assert resumed_steps(log) == [3, 3, 3, 9]
    assert_same(Outcome(folder, 12), unkilled())


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_says_so_and_the_rest_is_bit_identical(
    runs: Runs,
    smallest: Smallest,
    unkilled: Callable[..., Outcome],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    folder, log, second = tmp_path / "run", tmp_path / "log", tmp_path / "second"
    pid = runs.start(smallest(folder), log, Fault("forward", 9, "wait"))
    wait_for(log.with_suffix(".paused"))

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert runs.run(smallest(folder), second) == 2
    refusal = second.read_text().strip()
    assert re.fullmatch(rf'error: Another run is using {folder} \(.*"pid": {pid}.*\)\. Wait for it, .*', refusal)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    os.kill(pid, number)
    log.with_suffix(".go").touch()
    assert runs.wait(pid) == code, log.read_text()
    assert "stopped after step 5 of 12; the same command continues from there" in log.read_text()
    assert "Traceback" not in log.read_text() and not (folder / "run.lock").exists()
    assert runs.run(smallest(folder), log) == 0, log.read_text()
    assert resumed_steps(log) == [5]
    assert_same(Outcome(folder, 12), unkilled())
