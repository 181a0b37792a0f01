"""How long a finetuning may be: this machine is timed, then the batches and the length are chosen."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator

from tpssl_hf.config.shared import LEFT_TO_BUDGET
from tpssl_hf.methods.base import LearnerSpec
from tpssl_hf.tasks.classify.config import ClassifyArgs, FinetuneConfig
from tpssl_hf.tasks.finetuning import FinetuningRun
from tpssl_hf.tasks.finetuning_plan import FinetuningPlan, StepBatch, plan_finetuning
from tpssl_hf.tasks.segment.config import SegmentArgs, SegmentOptimConfig
from tpssl_hf.tasks.step_timer import TimedRun, seconds_of_main, step_timer
from tpssl_hf.tasks.time_budget import kept_plan, measure_seconds_per_step, parse_duration
from tpssl_hf.training.loop import LoopSettings
from tpssl_hf.training.run_dir import RunDir

ArgsType = TypeVar("ArgsType", ClassifyArgs, SegmentArgs)
RunType = TypeVar("RunType", bound=FinetuningRun[Any])


@dataclass(frozen=True)
class Costs:
    """What a run of a task costs beside its steps, and how long it is without a budget.

    Attributes:
        overhead_seconds: of start and end of one run: fitted head, evaluation, look at the saved folder.
        beside_a_step: seconds of evaluations on the way, for each step with such a batch.
        most_steps: steps of a run with such a batch and without a budget.
    """

    overhead_seconds: float
    beside_a_step: Callable[[StepBatch], float]
    most_steps: Callable[[StepBatch], int]


@dataclass(frozen=True)
class BudgetedTask(Generic[ArgsType, RunType]):
    """What a task gives the plan.

    Attributes:
        prepare: (arguments, accelerator, no folder) -> everything a run is made of.
        batches: (arguments, processes) -> the batches to choose from, the smallest first.
        costs: measured on a run that has just been prepared.
        resolve: puts in what depends on the batch.
    """

    prepare: Callable[[ArgsType, Accelerator, RunDir | None], RunType]
    batches: Callable[[ArgsType, int], list[StepBatch]]
    costs: Callable[[RunType], Costs]
    resolve: Callable[[ArgsType], ArgsType]


def own_batch(spec: LearnerSpec, usual: FinetuneConfig | SegmentOptimConfig) -> StepBatch:
    """Return the batch of a learner: what it sets, else the usual one."""
    return StepBatch(
        spec.defaults.get("batch_size", usual.batch_size), spec.defaults.get("unlabeled_ratio", usual.unlabeled_ratio)
    )


def apply_time_budget(
    args: ArgsType, accelerator: Accelerator, task: BudgetedTask[ArgsType, RunType], *, trainings: int = 1
) -> ArgsType:
    """Put in the batch and the length that fit the budget; a run that has begun keeps its own.

    Args:
        args: of the run.
        accelerator: devices, processes, precision.
        task: what is finetuned.
        trainings: how many trainings of that length a run makes; each label seed is a run, and the budget is for all.

    Raises:
        InputError: if the budget is no duration or too short.
    """
    if former := kept_plan(args.run.output_dir, args.time.budget):
        batch = StepBatch(former["batch_size"], former["unlabeled_ratio"])
        accelerator.print(f"{args.run.output_dir} keeps its plan: {former['max_steps']:,} steps of {batch}")
        return with_plan(args, task, batch, former["max_steps"])
    accelerator.print(f"timing this machine for a budget of {args.time.budget}")
    chosen = plan_for_budget(args, accelerator, task, trainings)
    planned = with_plan(args, task, chosen.batch, chosen.max_steps)
    rate = planned.optim.learning_rate
    accelerator.print(chosen.summary() + ("" if rate == args.optim.learning_rate else f"\n  learning_rate {rate:g}"))
    return planned


def with_plan(args: ArgsType, task: BudgetedTask[ArgsType, RunType], batch: StepBatch, max_steps: int) -> ArgsType:
    """Return ``args`` with a length and, where no key gives them, the images of a step."""
    optim = args.optim
    size = batch.batch_size if optim.batch_size == LEFT_TO_BUDGET else optim.batch_size
    ratio = batch.unlabeled_ratio if optim.unlabeled_ratio == LEFT_TO_BUDGET else optim.unlabeled_ratio
    optim = replace(optim, batch_size=size, unlabeled_ratio=ratio, max_steps=max_steps)
    return task.resolve(replace(args, optim=optim))


def plan_for_budget(
    args: ArgsType, accelerator: Accelerator, task: BudgetedTask[ArgsType, RunType], trainings: int = 1
) -> FinetuningPlan:
    """Time this machine on a few steps and choose the batch and the length that fit ``args.time.budget``.

    Raises:
        InputError: if the budget is no duration or too short.
    """
    budget, seeds = parse_duration(args.time.budget or ""), len(args.task.label_seeds or [0])
    batches = task.batches(args, accelerator.num_processes)
    costs = task.costs(task.prepare(with_plan(args, task, batches[0], 1), accelerator, None))

    def open_timed(batch: StepBatch) -> TimedRun:
        run = task.prepare(with_plan(args, task, batch, 1), accelerator, None)
        if run.too_large():
            raise torch.OutOfMemoryError(str(batch))
        loop = LoopSettings(1, run.images_per_step, max_gradient_norm=run.args.optim.max_gradient_norm or None)
        return TimedRun(run.method, run.optimizer, run.learning_rate, run.streams, run.transforms, loop)

    run_steps = step_timer(open_timed, accelerator)

    def seconds_per_step(batch: StepBatch) -> float:
        try:
            seconds: float = measure_seconds_per_step(run_steps, batch)
        except torch.OutOfMemoryError:
            return math.inf
        return seconds + seconds_of_main(costs.beside_a_step(batch))

    chosen = plan_finetuning(
        budget,
        seconds_per_step,
        batches,
        most_steps=costs.most_steps,
        overhead_seconds=seeds * seconds_of_main(costs.overhead_seconds),
        trainings=seeds * trainings,
        clock=lambda: seconds_of_main(time.monotonic()),
    )
    accelerator.free_memory()  # it would hold on to the networks it has timed
    return chosen
