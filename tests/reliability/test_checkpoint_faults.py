"""Checkpoints under injected faults, kills and damage."""

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import Forks

from tpssl_hf.files import atomic
from tpssl_hf.training.checkpoint import CheckpointError, load_latest, save_checkpoint

FILES = ("method.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def save(folder: Path, step: int, *, mark: int = 0, keep: int = 2) -> None:
    tensors = {
        "method": {"weight": torch.full((3, 100), float(step)), "mark": torch.tensor(mark)},
        "optimizer": {"momentum": torch.full((300,), -float(step), dtype=torch.bfloat16)},
    }
    save_checkpoint(folder, step, tensors, {"step": step, "mark": mark}, keep=keep)


def loaded(folder: Path) -> tuple[int, int]:
    """Load the newest checkpoint, insist on its being complete and of one piece, and return its step and mark."""
    checkpoint = load_latest(folder)
    assert checkpoint is not None
    step, mark = checkpoint.step, checkpoint.state["mark"]
    assert checkpoint.state["step"] == step
    assert checkpoint.tensors["method"]["weight"].equal(torch.full((3, 100), float(step)))
    assert checkpoint.tensors["method"]["mark"].equal(torch.tensor(mark))
    assert checkpoint.tensors["optimizer"]["momentum"].equal(torch.full((300,), -float(step), dtype=torch.bfloat16))
    return step, mark


class Killed(BaseException):
    """Ends a save as a kill would: every later call raises it too, so that nothing is cleaned up."""


class Disk:
    """Counts every call that opens or changes something and replaces call number ``at`` by an error or a kill."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, fault: OSError | Killed) -> None:
        self.calls, self.at, self.fault = 0, at, fault
        for name in ("open", "fsync", "replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self.counted(getattr(os, name)))
        patch.setattr(atomic, "open", self.open, raising=False)

    def counted(self, function: Callable[..., Any], before_fault: Callable[..., Any] | None = None) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            self.calls += 1
            if self.calls == self.at and before_fault:
                before_fault(*arguments)
            if self.calls == self.at or (self.calls > self.at and isinstance(self.fault, Killed)):
                raise self.fault
            return function(*arguments, **settings)

        return call

    def open(self, path: Path, mode: str) -> Any:
        file: Any = self.counted(open)(path, mode)
        write = file.write

        def write_half(data: bytes) -> None:
            write(data[: len(data) // 2])
            file.flush()

        file.write = self.counted(write, write_half)
        return file


def prepare(folder: Path) -> None:
    """Leave steps 1 and 2 and what a killed save leaves."""
    template = folder.with_name("template")
    if not template.exists():
        save(template, 1)
        save(template, 2)
        (template / ".tmp-dead").mkdir()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


def check_old_or_new(folder: Path, step: int) -> None:
    assert loaded(folder) in {(2, 0), (step, 1)}
    assert all({file.name for file in path.iterdir()} == set(FILES) for path in folder.glob("step_*"))
    save(folder, 9)
    assert loaded(folder) == (9, 0)
    names = {path.name for path in folder.iterdir()}
    assert "step_9" in names and len(names) == 2 and all(name.startswith("step_") for name in names)


@pytest.mark.parametrize("step", [3, 2], ids=["new_step", "same_step"])
@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "failing"), Killed()],
    ids=["full", "failing", "killed"],
)
def test_old_or_new_is_there_after_a_fault_in_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fault: OSError | Killed
) -> None:
    expected = Killed if isinstance(fault, Killed) else CheckpointError
    for at in itertools.count(1):
        prepare(tmp_path / "run")
        with monkeypatch.context() as patch:
            disk = Disk(patch, at, fault)
            with contextlib.suppress(expected):  # any other exception is a failure
                save(tmp_path / "run", step, mark=1)
        if disk.calls < at:
            break
        check_old_or_new(tmp_path / "run", step)
    assert at > 20 and loaded(tmp_path / "run") == (step, 1)


def kill_at_random(place: str, kills: int) -> None:
    """Fork processes that save and kill them; to be called in a process that may fork."""
    folder = Path(place)
    save(folder, 1)
    newest, inside = 1, 0
    for _ in range(kills):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            for step in itertools.count(newest + 1):
                save(folder, step)
                os.write(writer, step.to_bytes(4, "big"))
        os.close(writer)
        time.sleep(random.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(reader, "rb") as pipe:
            acknowledged = int.from_bytes(pipe.read()[-4:], "big") or newest
        inside += any(folder.glob(".tmp-*"))
        newest = loaded(folder)[0]
        assert acknowledged <= newest <= acknowledged + 1, (acknowledged, newest)
    assert inside >= kills // 4, f"only {inside} of {kills} kills came while a save was under way"


@pytest.mark.parametrize("kills", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_random_kills_lose_at_most_the_save_under_way(forks: Forks, tmp_path: Path, kills: int) -> None:
    forks.call(__file__, "kill_at_random", tmp_path, [str(tmp_path / "run"), kills])


@pytest.mark.parametrize("limit", [0, 1, 8, 100, 500, 1000, 1300])
def test_full_disk_is_one_sentence_and_the_older_checkpoint_stays(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError) as refusal:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(refusal.value)
    assert "step 2 could not be saved" in message and str(tmp_path) in message and "File too large" in message
    assert "needs about 18" in message and "bytes are free" in message and "intact (step_1)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"] and loaded(tmp_path) == (1, 0)


def truncate(file: Path, size: int) -> None:
    os.truncate(file, size)


def flip(file: Path, seed: int) -> None:
    data = bytearray(file.read_bytes())
    draw = random.Random(f"{file.name} {seed}")
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def remove(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    other, aside = file.parent.parent / "step_2" / file.name, file.parent.parent / "aside"
    file.rename(aside)
    other.rename(file)
    aside.rename(other)


ONE_OR_TWO = [(name,) for name in FILES] + list(itertools.combinations(FILES, 2))
MUTANTS: list[tuple[str, Callable[..., None], tuple[Any, ...], tuple[str, ...]]] = [
    *[("truncate", truncate, (size,), (name,)) for name in FILES[:2] for size in (1, 8, 100, 600)],
    *[("truncate", truncate, (5,), (name,)) for name in FILES[2:]],
    *[("flip", flip, (seed,), (name,)) for name in FILES for seed in range(5)],
    *[("remove", remove, (), names) for names in ONE_OR_TWO],
    *[("empty", truncate, (0,), names) for names in ONE_OR_TWO],
    *[("swap", swap, (), names) for names in [*ONE_OR_TWO[:9], FILES]],
]


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    for step in (1, 2, 3):
        save(folder, step, keep=3)
    return folder


def test_there_are_sixty_mutants() -> None:
    assert len(MUTANTS) == 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: "-".join([mutant[0], *map(str, mutant[2]), *mutant[3]]))
def test_damage_is_found_and_the_previous_checkpoint_used(tmp_path: Path, three_steps: Path, mutant: Any) -> None:
    kind, change, arguments, names = mutant
    shutil.copytree(three_steps, tmp_path / "run")
    for name in names:
        change(tmp_path / "run" / "step_3" / name, *arguments)
    with pytest.warns(UserWarning) as caught:
        result = loaded(tmp_path / "run")
    assert result == ((1, 0) if kind == "swap" else (2, 0))  # a swap damages step 2 as well
    (warning,) = caught
    text = str(warning.message)
    assert str(tmp_path / "run" / "step_3") in text and any(name in text for name in names)
    assert f"step_{result[0]} is used instead" in text
    assert kind != "truncate" or names[0] == "MANIFEST.json" or f"{arguments[0]} bytes instead of" in text
