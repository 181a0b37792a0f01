"""How long a run may take: reading a duration, timing a few steps, and the plan that fits."""

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tpssl_hf.config.parser import read_config_file
from tpssl_hf.errors import InputError
from tpssl_hf.training.run_dir import CONFIG

# Share of the budget no step is planned into: speed varies, and a run that ends late has broken its promise.
TIMING_SHARE = 0.1
RESERVE = 0.1
# Fewer are no schedule: warm-up, then a cosine.
LEAST_STEPS = 10
# Below this a smaller batch is the better bargain: a target network of momentum 0.99 that rises to 1 still holds
# e^-2.5 (8 %) of its start after 500 steps, and LARS and BatchNorm statistics need hundreds of steps too.
ENOUGH_STEPS = 500
# AdamW from pretrained weights gains points within 50 steps of 128 images, and more in 100 (docs/evidence.md).
ENOUGH_PRETRAINED_STEPS = 150
TIMING_SECONDS = 1.0  # about so long is one timed run

Batches = TypeVar("Batches")  # what is timed: a batch size, or more


@dataclass(frozen=True)
class Plan:
    """A run that fits a budget.

    Attributes:
        budget_seconds: what was asked for.
        batch_size: images per optimizer step.
        epochs: passes over the images; the last one may be cut short.
        max_steps: optimizer steps; every schedule is rescaled to them.
        seconds_per_step: as measured.
        overhead_seconds: for what is not a step: start, timing, probes, checks, checkpoints.
        seconds_expected: from now to the end, overhead included.
        enough_steps: fewer change a backbone little.
    """

    budget_seconds: float
    batch_size: int
    epochs: float
    max_steps: int
    seconds_per_step: float
    overhead_seconds: float
    seconds_expected: float
    enough_steps: int = ENOUGH_STEPS

    def summary(self, now: datetime | None = None) -> str:
        """Say in a few lines what will be done and when it will be ready (``now`` is this moment unless given)."""
        steps = f"{self.max_steps:,} steps of {self.batch_size} images ({self.epochs:.3g} epochs)"
        lines = [
            f"plan for {say_duration(self.budget_seconds)}: {steps} at {self.seconds_per_step:.3g} s each",
            when_ready(self.seconds_expected, self.overhead_seconds, "start, probes and checkpoints", now),
        ]
        if self.max_steps < self.enough_steps:
            lines.append(
                f"  note          under {self.enough_steps} steps change a backbone little; more time is worth it"
            )
        return "\n".join(lines)


def parse_duration(text: str) -> float:
    """Return the seconds of ``90s``, ``30m``, ``2h`` or ``1h30m``.

    Raises:
        InputError: if ``text`` is no such duration, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower())
    parts = found.groups(default="0") if found else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds <= 0:
        raise InputError(f"budget {text!r} is not a duration above 0; write it as 90s, 30m, 2h or 1h30m.")
    return seconds


def say_duration(seconds: float) -> str:
    """Write seconds for people, to two units: ``45 s``, ``12 min``, ``1 h 30 min``."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 600:
        minutes, rest = divmod(math.ceil(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = math.ceil(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(part for part, some in ((f"{hours} h", hours), (f"{minutes} min", minutes)) if some)


def when_ready(seconds_expected: float, overhead_seconds: float, overhead: str, now: datetime | None = None) -> str:
    """Say when a planned run will be ready, and what ``overhead`` takes of that time."""
    ready = (now or datetime.now()) + timedelta(seconds=seconds_expected)
    return (
        f"  expected      {say_duration(seconds_expected)}, ready about {ready:%H:%M} "
        f"({say_duration(overhead_seconds)} of it for {overhead}; {RESERVE:.0%} of the budget kept in reserve)"
    )


def refuse_too_few(budget_seconds: float, steps: int, images: str, overhead_seconds: float, seconds: float) -> None:
    """Refuse a budget in which fewer than 10 steps fit, and name the least one.

    Args:
        budget_seconds: what was asked for.
        steps: how many steps of ``images`` fit.
        images: of a step, for people.
        overhead_seconds: what is not a step.
        seconds: that each step costs.

    Raises:
        InputError: if ``steps`` are fewer than 10.
    """
    if steps < LEAST_STEPS:
        least = (overhead_seconds + LEAST_STEPS * seconds) / (1 - RESERVE)
        raise InputError(
            f"budget {say_duration(budget_seconds)} leaves room for {steps} steps of {images}; {LEAST_STEPS} "
            f"are the least, for which this machine needs --budget {math.ceil(least)}s."
        )


def kept_plan(output_dir: str, budget: str | None) -> dict[str, Any]:
    """Return the keys of the run that has begun in ``output_dir`` with this budget; empty if there is none."""
    begun = Path(output_dir) / CONFIG
    former = read_config_file(begun) if begun.exists() else {}
    return former if former.get("budget") == budget and former.get("max_steps") else {}


def measure_seconds_per_step(
    run_steps: Callable[[Batches, int], float], batch_size: Batches, *, repeats: int = 3
) -> float:
    """Time training steps: a warm-up is discarded; the median of several runs is returned, or one step over a second.

    Args:
        run_steps: (batch size, number of steps) -> seconds they took, once the device has finished them.
        batch_size: images per step.
        repeats: timed runs, each of 1 to 20 steps.
    """
    run_steps(batch_size, 1)  # memory is allocated, kernels are chosen, threads start
    once = run_steps(batch_size, 1)
    if once > TIMING_SECONDS:
        return once  # a step this long is timed well enough by itself
    steps = min(20, max(1, int(TIMING_SECONDS / max(once, 1e-9))))
    return statistics.median(run_steps(batch_size, steps) / steps for _ in range(repeats))


def plan(
    budget_seconds: float,
    seconds_per_step: Callable[[int], float] | Mapping[int, float],
    *,
    images: int,
    batch_sizes: Iterable[int],
    preferred: int,
    overhead_seconds: float = 0.0,
    allowed: Callable[[int], bool] = lambda batch_size: True,
    enough_steps: int = ENOUGH_STEPS,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Choose batch size and length so that a run ends within ``budget_seconds`` of the call.

    A tenth of the budget is kept in reserve. Of the batch sizes, the one nearest to ``preferred`` (by ratio) that
    allows ``enough_steps`` is taken: few steps are worse than small batches, because schedules, teachers and momentum
    count in steps. Where none allows them, the one that allows most. Sizes are timed from the nearest down, until
    one is good enough or a tenth of the budget is spent on timing, and the time that takes is taken off the budget.

    Args:
        budget_seconds: wall-clock time from this call to the end of the run.
        seconds_per_step: batch size -> seconds, measured when asked for; infinite for one that does not fit in memory.
        images: how many there are; larger batches are passed over.
        batch_sizes: candidates.
        preferred: the method's own batch size, or the one asked for.
        overhead_seconds: everything after this call that is no step: probes, checks, checkpoints.
        allowed: whether the method can use a batch size (a queue it divides, say).
        enough_steps: how many make a batch size good enough.
        clock: a clock in seconds.

    Raises:
        InputError: if no batch size is possible, or fewer than 10 steps fit.
    """
    began = clock()
    of_size = seconds_per_step.__getitem__ if isinstance(seconds_per_step, Mapping) else seconds_per_step
    sizes = [size for size in set(batch_sizes) if 2 <= size <= images and allowed(size)]
    if not sizes:
        raise InputError(f"no batch size of {sorted(set(batch_sizes))} suits the method and {images} images.")
    best = (-1, 0.0, 0)  # steps, −seconds per step, batch size
    least_tried = max(sizes)
    for size in sorted(sizes, key=lambda size: (abs(math.log(size / preferred)), size)):
        if size > least_tried or (best[0] >= LEAST_STEPS and clock() - began > TIMING_SHARE * budget_seconds):
            continue  # a larger batch takes longer, so even fewer steps would fit; and timing must not eat the budget
        least_tried = size
        seconds = of_size(size)
        left = (1 - RESERVE) * budget_seconds - overhead_seconds - (clock() - began)
        best = max(best, (int(max(0.0, left) / seconds), -seconds, size))
        if best[0] >= enough_steps:
            break
    spent = overhead_seconds + clock() - began
    steps, size, seconds = best[0], best[2], -best[1]
    if math.isinf(seconds):
        raise InputError(f"no batch size of {sorted(sizes)} fits in memory; lower --image_size or --batch_size.")
    refuse_too_few(budget_seconds, steps, f"{size} images", spent, seconds)
    return Plan(
        budget_seconds, size, steps / (images // size), steps, seconds, spent, spent + steps * seconds, enough_steps
    )
