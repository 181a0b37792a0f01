"""Runs that are killed, at named points and at random moments, and started again."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from forked_runs import Forks, Runs
from small_runs import (
    KILLS,
    RECIPES,
    SIX_STEPS,
    Outcome,
    as_arguments,
    assert_same,
    classify_keys,
    pretrain_keys,
    segment_keys,
    write_images,
)

from tortures.counts import Count
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

STEPS = SIX_STEPS["max_steps"]


class Task:
    """Small runs of one task, each with an image cache of its own."""

    def __init__(self, forks: Forks, name: str, place: Path) -> None:
        self.runs, self.name, self.place = Runs(forks, RECIPES[name]), name, place
        write_images(place / "images")

    def arguments(self, folder: Path, **others: object) -> list[str]:
        """Return the command line of a run in ``folder``."""
        cache = folder.with_name(f"{folder.name}-cache")
        makers = {"classify": classify_keys, "segment": segment_keys}
        keys = makers[self.name](cache) if self.name in makers else pretrain_keys(self.place / "images", cache)
        return as_arguments(keys | SIX_STEPS, folder, **others)

    def finish(self, folder: Path, **others: object) -> str | None:
        """Run to the end; returns what is wrong with that."""
        log = folder.with_suffix(".log")
        code = self.runs.run(self.arguments(folder, **others), log)
        return None if code == 0 else f"ended with {code}: {log.read_text().strip()[-300:]}"


def trouble_of(folder: Path, whole: Outcome, steps: int = STEPS) -> str | None:
    """Say what of a finished run differs from one that nothing happened to, leftovers included."""
    try:
        assert_same(Outcome(folder, steps), whole)
    except AssertionError as error:
        return " ".join(str(error).split())[:300] or "another outcome"
    cache = folder.with_name(f"{folder.name}-cache")
    left = [path.name for place in (folder, cache) for path in place.rglob("*") if is_leftover(path)]
    return f"left {', '.join(left)}" if left else None


def is_leftover(path: Path) -> bool:
    """Whether a path has the name of something half-written."""
    return path.name.startswith(".") or path.name.endswith((".partial", ".tmp"))


def named(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Kill runs of all three tasks at each named point, once, and let them go on."""
    for name in RECIPES:
        task, count = Task(forks, name, place / name), Count(f"SIGKILL at named points, {name}", "bit-identical")
        assert task.finish(place / name / "whole") is None
        whole = Outcome(place / name / "whole", STEPS)
        for number, (point, fault) in enumerate(list(KILLS.items())[:limit]):
            folder = place / name / f"{number}"
            code = task.runs.run(task.arguments(folder), folder.with_suffix(".log"), fault)
            if code != -signal.SIGKILL:
                count.add(point, f"was not killed, but ended with {code}")
                continue
            count.add(point, task.finish(folder) or trouble_of(folder, whole))
            shutil.rmtree(folder)
        yield count


def at_random(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Kill runs that save every step at random moments, again and again until they are through."""
    task, kills = Task(forks, "pretrain", place), limit or 200
    recovered = Count("SIGKILL at random moments, saving every step", "goes on, at most one step lost")
    outcomes = Count("runs that were killed so", "bit-identical")
    steps = {"max_steps": 12, "save_every": 1}
    assert task.finish(place / "first", **steps) is None  # the first child waits for more than later ones
    began = time.perf_counter()
    assert task.finish(place / "whole", **steps) is None
    whole, seconds = Outcome(place / "whole", 12), time.perf_counter() - began
    moments, number = random.Random(0), 0
    while recovered.tried < kills:
        folder, number = place / f"{number}", number + 1
        log = folder.with_suffix(".log")
        while recovered.tried < kills:
            pid = task.runs.start(task.arguments(folder, **steps), log)
            time.sleep(moments.uniform(0.0, seconds))
            os.kill(pid, signal.SIGKILL)
            if (code := task.runs.wait(pid)) != -signal.SIGKILL:
                break
            recovered.add(f"run {number}", lost(folder))
        else:
            code = task.runs.run(task.arguments(folder, **steps), log)
        outcomes.add(f"run {number}", f"ended with {code}" if code else trouble_of(folder, whole, 12))
        shutil.rmtree(folder)
    return [recovered, outcomes]


def lost(folder: Path) -> str | None:
    """Say what is wrong with the checkpoints of a killed run: unreadable, or too old for its log."""
    try:
        checkpoint = load_latest(folder / "checkpoints")
        logged = read_metrics(folder / "metrics.jsonl")
    except ValueError as error:
        return str(error)
    saved, done = checkpoint.step if checkpoint else 0, logged[-1]["step"] if logged else 0
    return None if saved >= done - 1 else f"step {saved} was saved, step {done} done"
