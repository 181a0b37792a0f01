"""The images of a step and the length with which a finetuning fits a time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tpssl_hf.config.shared import LEFT_TO_BUDGET
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.time_budget import RESERVE, refuse_too_few, say_duration, when_ready

ENOUGH_STEPS = 1000  # so many come before larger batches: in short runs more steps serve better
FEW_STEPS = 300  # with 16 + 64 images from a fitted head these were seen to do well


@dataclass(frozen=True)
class StepBatch:
    """The images of one step.

    Attributes:
        batch_size: labeled images, over all processes.
        unlabeled_ratio: unlabeled images per labeled one; 0 for a learner without any.
    """

    batch_size: int
    unlabeled_ratio: int

    def __str__(self) -> str:
        """The images, for people."""
        unlabeled = self.batch_size * self.unlabeled_ratio
        return f"{self.batch_size} labeled" + (f" and {unlabeled} unlabeled images" if unlabeled else " images")


@dataclass(frozen=True)
class FinetuningPlan:
    """A finetuning that fits a budget.

    Attributes:
        budget_seconds: what was asked for.
        batch: images of a step.
        max_steps: steps of one training; every schedule is scaled to them.
        trainings: how many trainings of that length there are.
        at_most: whether these are all the steps there would be without a budget.
        seconds_per_step: as measured.
        overhead_seconds: for what is not a step: timing, fitted head, evaluation.
        seconds_expected: from now to the end, overhead included.
    """

    budget_seconds: float
    batch: StepBatch
    max_steps: int
    trainings: int
    at_most: bool
    seconds_per_step: float
    overhead_seconds: float
    seconds_expected: float

    def summary(self, now: datetime | None = None) -> str:
        """Say in a few lines what will be done and when it will be ready (``now`` is this moment unless given)."""
        times = f"{self.trainings} times " if self.trainings > 1 else ""
        lines = [
            f"plan for {say_duration(self.budget_seconds)}: {times}{self.max_steps:,} steps of {self.batch} "
            f"at {self.seconds_per_step:.3g} s each",
            when_ready(self.seconds_expected, self.overhead_seconds, "start, evaluation and checkpoints", now),
        ]
        if self.at_most:
            lines.append("  note          as long as a run without a budget would be")
        elif self.max_steps < FEW_STEPS:
            lines.append(f"  note          under {FEW_STEPS} steps teach little; more time is worth it")
        return "\n".join(lines)


def step_batches(
    sizes: Sequence[int], least_ratio: int, *, own: StepBatch, asked: StepBatch, num_processes: int
) -> list[StepBatch]:
    """Return the batches that a budget chooses from, the smallest first.

    Args:
        sizes: labeled images of a step, below the learner's own.
        least_ratio: unlabeled images per labeled one in the smallest batch; the others have the learner's own.
        own: the learner's own batch.
        asked: the batch of the run, ``LEFT_TO_BUDGET`` where no key gives it; what is given is in all batches.
        num_processes: among which labeled images are divided, at least two each.
    """
    ratio = least = asked.unlabeled_ratio
    if ratio == LEFT_TO_BUDGET:
        ratio, least = own.unlabeled_ratio, min(least_ratio, own.unlabeled_ratio)
    labeled = [asked.batch_size, asked.batch_size]
    if asked.batch_size == LEFT_TO_BUDGET:
        wanted = [*(size for size in sizes if size < own.batch_size), own.batch_size]
        labeled = [max(2, math.ceil(size / num_processes)) * num_processes for size in wanted]
    found = [StepBatch(labeled[0], least), *(StepBatch(size, ratio) for size in labeled[1:])]
    return list(dict.fromkeys(found))


def plan_finetuning(
    budget_seconds: float,
    seconds_per_step: Callable[[StepBatch], float],
    batches: Sequence[StepBatch],
    *,
    most_steps: Callable[[StepBatch], int],
    overhead_seconds: float = 0.0,
    trainings: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> FinetuningPlan:
    """Choose batch and length so that a finetuning ends within ``budget_seconds`` of the call.

    A tenth of the budget is kept in reserve. The largest batch that allows 1,000 steps is taken, or all the steps
    there are without a budget where these are fewer; if none does, the smallest. Batches are timed from the smallest
    up, as long as the one before allows so many, so that timing costs little of the budget and is taken off it.

    Args:
        budget_seconds: wall-clock time from this call to the end of the last training.
        seconds_per_step: batch -> seconds, measured when asked for; infinite for one that does not fit in memory.
        batches: candidates, the smallest first.
        most_steps: batch -> steps of a training without a budget, never exceeded.
        overhead_seconds: everything after this call that is no step, in all trainings.
        trainings: how many trainings of the chosen length share the budget.
        clock: a clock in seconds.

    Raises:
        InputError: if the smallest batch does not fit in memory, or fewer than 10 steps fit.
    """
    began, chosen, seconds = clock(), batches[0], math.inf

    def fitting(seconds: float) -> int:
        left = (1 - RESERVE) * budget_seconds - overhead_seconds - (clock() - began)
        return int(max(0.0, left) / (trainings * seconds))

    for batch in batches:
        tried = seconds_per_step(batch)
        enough = fitting(tried) >= min(ENOUGH_STEPS, most_steps(batch))
        if enough or math.isinf(seconds):
            chosen, seconds = batch, tried
        if not enough:
            break
    if math.isinf(seconds):
        raise InputError(f"{chosen} a step do not fit in memory; lower --batch_size or the size of the images.")
    steps, most, spent = fitting(seconds), most_steps(chosen), overhead_seconds + clock() - began
    max_steps = min(steps, most)
    if steps < most:
        refuse_too_few(budget_seconds, steps, str(chosen), spent, trainings * seconds)
    return FinetuningPlan(
        budget_seconds,
        chosen,
        max_steps,
        trainings,
        steps >= most,
        seconds,
        spent,
        spent + trainings * max_steps * seconds,
    )
