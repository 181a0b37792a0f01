"""A long run on streamed images: what it holds, and whether stops and other numbers of workers change it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import psutil
from common import write_shards
from forked_runs import RECIPE, Forks
from scipy.stats import theilslopes
from small_runs import Outcome, as_arguments

from tortures.counts import Count
from tortures.kills import trouble_of
from tpssl_hf.training.run_dir import read_metrics

IMAGES, SIDE = 8000, 48
MINUTES = 120  # of a run, were it alone
RESUMPTIONS = 20
WORKERS = (0, 1, 2, 4)  # one after the other
USUAL_WORKERS = 2  # of what is compared at its end
TRIED_STEPS, PERIOD = 800, 10.0  # steps to learn how long one takes; seconds between two looks
SAVES, TRIED_SAVES = 4 * RESUMPTIONS, 4  # a run outlives older saves; those of so short a one would slow it down
WARM = 0.1  # share of a run after which its memory should be what it stays
GROWTH = 1.0  # MiB an hour
KEYS = {"streaming": True, "backbone": "test_resnet", "init": "random", "image_size": 32, "batch_size": 16}
KEYS |= {"method": "byol", "precision": "fp32"}


@dataclass
class Look:
    """What a process holds at a time: ``seconds`` since it started, its own memory in MiB, handles, threads."""

    seconds: float
    memory: float
    handles: int
    threads: int


def last(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Let one run last ``limit`` minutes, and judge what it holds."""
    shards, steps = prepared(place, limit or MINUTES)
    looks = leg(shards, place / "whole", steps, workers=USUAL_WORKERS)
    yield flat([look for look in looks if look.seconds > WARM * looks[-1].seconds], steps)


def resumed(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Stop and continue a run that would last ``limit`` minutes were it alone, and compare it with one beside it."""
    shards, steps = prepared(place, limit or MINUTES)
    with ThreadPoolExecutor(1) as beside:
        whole = beside.submit(leg, shards, place / "whole", steps, workers=USUAL_WORKERS)
        yield stopped_and_resumed(shards, place / "stopped", steps)
        whole.result()
    same = Count("the run that was stopped beside the other one", "bit-identical")
    same.add("all", trouble_of(place / "stopped", Outcome(place / "whole", steps), steps))
    yield same


def prepared(place: Path, minutes: float) -> tuple[Path, int]:
    """Make the images, and return them and the steps that a run makes in ``minutes``."""
    datasets.disable_progress_bars()
    shards = write_shards(place, IMAGES, SIDE)
    seconds_a_step = measured_seconds(shards, place / "tried")
    steps = max(TRIED_STEPS, round(60 * minutes / seconds_a_step))
    print(f"{steps} steps of {seconds_a_step:.3f} s each", file=sys.stderr, flush=True)
    return shards, steps


def stopped_and_resumed(shards: Path, folder: Path, steps: int) -> Count:
    """Run to the end with ``RESUMPTIONS`` stops; each part goes on where the one before it ended, or is counted."""
    resumed = Count(f"{RESUMPTIONS} resumptions of {steps} steps, other workers each time", "goes on where it was")
    before = 0
    for number in range(RESUMPTIONS):
        until = max(before + 1, steps * (number + 1) // (RESUMPTIONS + 1))  # a step that this leg logs itself
        workers = WORKERS[number % len(WORKERS)]
        held = leg(shards, folder, steps, workers=workers, until=until)
        reached = last_step(folder)
        resumed.add(f"{number}", None if before < reached < steps else f"from step {before} to {reached} of {steps}")
        before = reached
        print(f"step {reached}, {workers} workers, {held[-1].memory:.0f} MiB", file=sys.stderr, flush=True)
    leg(shards, folder, steps, workers=USUAL_WORKERS)
    return resumed


def flat(looks: list[Look], steps: int) -> Count:
    """Judge what an undisturbed process has held since it was warm.

    Memory jumps while a checkpoint is written, so its slope is the median of those between any two looks. Threads and
    handles come and go within an epoch, so one half is compared with the other by what nine of ten looks stay within.
    """
    hours = np.array([look.seconds for look in looks]) / 3600
    memory = np.array([look.memory for look in looks])
    found, minutes = theilslopes(memory, hours), 60 * float(hours[-1] - hours[0])
    slope = f"{found.slope:+.1f} [{found.low_slope:.1f}, {found.high_slope:.1f}] MiB/h"
    named = f"{steps} steps, {minutes:.0f} minutes since warm, {median(memory):.0f} MiB of its own: memory {slope}"
    count = Count(named, f"below {GROWTH:+.0f} MiB/h; handles and threads constant")
    tenths = [round(float(np.median(part))) for part in np.array_split(memory, 10)]
    print(f"MiB, by tenths: {tenths}", file=sys.stderr, flush=True)
    count.add("memory", None if found.slope < GROWTH else f"{slope}; MiB, by tenths: {tenths}")
    for name in ("handles", "threads"):
        before, after = (np.percentile(half, 90) for half in np.array_split([getattr(x, name) for x in looks], 2))
        count.add(name, f"{before:g}, then {after:g}" if after > before else None)
    return count


def leg(
    shards: Path, folder: Path, steps: int, *, workers: int, until: int | None = None, saves: int = SAVES
) -> list[Look]:
    """Run until the end, or ask to stop once step ``until`` is logged; returns what the process held meanwhile."""
    every = max(1, steps // saves)  # a leg logs before it is stopped
    often = {"log_every": every, "save_every": every}
    arguments = as_arguments(KEYS | often, folder, dataset=shards, max_steps=steps, num_workers=workers)
    looks: list[Look] = []
    with folder.with_suffix(".log").open("a") as log:
        child = subprocess.Popen([sys.executable, str(RECIPE), *arguments], stdout=log, stderr=log)
        process, began, asked = psutil.Process(child.pid), time.monotonic(), False
        while child.poll() is None:
            if until is not None and not asked and last_step(folder) >= until:
                child.send_signal(signal.SIGTERM)
                asked = True
            try:
                memory = process.memory_info()
                if memory.rss:  # of one that has just ended nothing is left
                    mine = (memory.rss - memory.shared) / 2**20
                    looks.append(Look(time.monotonic() - began, mine, process.num_fds(), process.num_threads()))
            except psutil.Error:
                break
            time.sleep(PERIOD if until is None else 0.5)
    wanted = 0 if until is None else 128 + signal.SIGTERM
    code = child.wait()
    assert code == wanted, f"ended with {code}: {folder.with_suffix('.log').read_text()[-500:]}"
    return looks


def last_step(folder: Path) -> int:
    """Return the last step of a run's log."""
    logged = read_metrics(folder / "metrics.jsonl")
    return int(logged[-1]["step"]) if logged else 0


def measured_seconds(shards: Path, folder: Path) -> float:
    """Return the seconds of a step, by the later half of a short run."""
    leg(shards, folder, TRIED_STEPS, workers=USUAL_WORKERS, saves=TRIED_SAVES)
    logged = read_metrics(folder / "metrics.jsonl")
    rates = [float(row["images_per_second"]) for row in logged[len(logged) // 2 :]]
    return float(KEYS["batch_size"]) / median(rates)
