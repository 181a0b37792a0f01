"""How long a run of target pretraining may be: this machine is timed, then batch size and length are chosen."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.pretrain.config import PretrainArgs
from tpssl_hf.tasks.pretrain.memory import too_large_step
from tpssl_hf.tasks.pretrain.prepare import (
    PretrainRun,
    base_rate,
    choosing_answers,
    label_splits,
    prepare,
    probed,
    reestimated,
    schedule,
)
from tpssl_hf.tasks.pretrain.run import SNAPSHOTS, make_watch
from tpssl_hf.tasks.step_timer import TimedRun, step_timer
from tpssl_hf.tasks.time_budget import (
    ENOUGH_PRETRAINED_STEPS,
    ENOUGH_STEPS,
    Plan,
    kept_plan,
    measure_seconds_per_step,
    parse_duration,
    plan,
)
from tpssl_hf.training.loop import LoopSettings
from tpssl_hf.training.optim import lars_reach

PLANNED_REACH = 0.1  # see lars_reach: how far a planned run must be able to move the weights
LARGEST_RATE = 4.8  # 0.3 for 256 images at BYOL's batch of 4096, the largest that LARS was published with here
LEFT_BEHIND = 4.6  # e^-4.6 is 1 %: what a target network may keep of its start
LEAST_MOMENTUM = 0.9  # of a target network, below which it is hardly an average
LOOKING_SHARE = 0.15  # of a budget, for looking at labeled images
LOOKS = 5  # forward passes that such an image is in, on the average: a few of them are shown to every candidate
LEAST_PROBE_IMAGES = 200
IMAGES_TO_ADAPT = 10_000.0  # that go forward and backward before larger images are worth more than more of them
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)  # what a time budget chooses from
MOMENTA = {"base_momentum": 0.5, "key_momentum": 1.0}  # of targets -> mean of 1 - momentum over a run, in parts


def apply_time_budget(args: PretrainArgs, accelerator: Accelerator) -> PretrainArgs:
    """Put in batch size, length, learning rate and momentum that fit the budget; a run that has begun keeps its own.

    Raises:
        InputError: if the budget is no duration or too short, or the number of images is unknown.
    """
    if former := kept_plan(args.run.output_dir, args.time.budget):
        shared = {name: former[name] for name in ("batch_size", "max_steps", "base_learning_rate")}
        args = replace(args, task=replace(args.task, probe_images=former.get("probe_images", args.task.probe_images)))
        own = {name: former[name] for name in MOMENTA if hasattr(args.method, name)}
        return replace(args, optim=replace(args.optim, **shared), method=replace(args.method, **own))
    accelerator.print(f"timing this machine for a budget of {args.time.budget}")
    chosen, probe_images = plan_for_budget(args, accelerator)
    args = replace(args, task=replace(args.task, probe_images=probe_images))
    planned = replace(args.optim, batch_size=chosen.batch_size, max_steps=chosen.max_steps)
    args, lines = fit_to_length(replace(args, optim=planned), chosen)
    accelerator.print("\n".join([chosen.summary(), *lines]))
    return args


def plan_for_budget(args: PretrainArgs, accelerator: Accelerator) -> tuple[Plan, int]:
    """Time this machine on a few steps and choose the batch size and length that fit ``args.time.budget``.

    Returns:
        The plan, and how many labeled images are looked at.

    Raises:
        InputError: if the budget is no duration or too short, or the number of images is unknown.
    """
    budget = parse_duration(args.time.budget or "")
    args = without_choice(args)
    trial = prepare(replace(args, optim=replace(args.optim, max_steps=1)), accelerator, None)
    if trial.store is None:
        raise InputError("a budget needs the number of images, which a streamed data set does not tell.")
    timed = replace(args, task=replace(args.task, select="last"))
    run_steps, images = step_timer(partial(open_timed, timed, accelerator), accelerator), len(trial.store)
    probe_images = images_to_look_at(trial, budget)
    args = replace(args, task=replace(args.task, probe_images=probe_images))
    choosing, judging = label_splits(args, trial.store)
    looking_seconds, check_seconds = overheads(replace(trial, args=args, choosing=choosing, judging=judging))

    def seconds_per_step(batch_size: int) -> float:
        if too_large_step(args, trial.method.deployed, batch_size, accelerator):
            return math.inf
        steps_between_checks = max(1.0, args.health.health_every * (images // batch_size))
        seconds: float = measure_seconds_per_step(run_steps, batch_size)
        return seconds + check_seconds / steps_between_checks

    parts = accelerator.num_processes * args.optim.gradient_accumulation_steps
    queue = getattr(args.method, "queue_size", None)
    chosen = plan(
        budget,
        seconds_per_step,
        images=images,
        batch_sizes=[size for size in BATCH_SIZES if size % parts == 0 and size // parts > 1],
        preferred=args.optim.batch_size,
        overhead_seconds=looking_seconds,
        allowed=lambda size: queue is None or queue % size == 0,
        enough_steps=ENOUGH_PRETRAINED_STEPS if args.optim.optimizer == "adamw" else ENOUGH_STEPS,
    )
    accelerator.free_memory()  # it would hold on to the networks it has timed
    first: list[Any] = broadcast_object_list([chosen, probe_images])  # every process times a little differently
    return first[0], first[1]


def without_choice(args: PretrainArgs) -> PretrainArgs:
    """Return the arguments of runs in which nothing is measured but time: BatchNorm is frozen, as it mostly is."""
    if args.model.init == "random" or args.model.backbone_batchnorm != "auto":
        return args
    return replace(args, model=replace(args.model, backbone_batchnorm="frozen"))


def images_to_look_at(trial: PretrainRun, budget: float) -> int:
    """Return how many labeled images are looked at, so that it takes no more than its share of the budget."""
    assert trial.shown is not None
    some, most = np.arange(min(64, len(trial.shown.store))), trial.args.task.probe_images
    look = partial(trial.shown.features, trial.method.deployed, some)
    look()  # the first one takes longer
    seconds = LOOKS * seconds_of(look) / len(some)
    return min(most, max(LEAST_PROBE_IMAGES, int(LOOKING_SHARE * budget / max(seconds, 1e-9))))


def overheads(trial: PretrainRun) -> tuple[float, float]:
    """Return the seconds of all looks at Φ_pre and at snapshots, and those of a check of the features' health."""
    backbone = trial.method.deployed
    looking = 3 * seconds_of(lambda: probed(trial, backbone))  # the start, with other statistics, what is saved
    looking += 3 * seconds_of(lambda: reestimated(trial, backbone))
    if trial.choosing is not None:
        looking += (2 + SNAPSHOTS) * seconds_of(lambda: choosing_answers(trial, backbone))
    elif trial.selects and (shown := trial.shown) is not None:
        looking += (3 + SNAPSHOTS) * seconds_of(lambda: shown.crops(backbone))
    watch = make_watch(trial)
    if watch is None:
        return looking, 0.0
    return looking, 2 * seconds_of(lambda: watch.begin(backbone))  # a check looks at two views more


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fit_to_length(args: PretrainArgs, chosen: Plan) -> tuple[PretrainArgs, list[str]]:
    """Raise the rate of LARS, and from random weights lower the target's momentum, where a run is too short for them.

    A small batch lowers the rate (it goes with the batch), and few steps the sum of rates, which is how far LARS can
    move the weights; and a target network that keeps its start has nothing to teach.

    Args:
        args: of the run, with the batch size and length that were chosen.
        chosen: the plan.

    Returns:
        The arguments with what fits, and a line for people on each change.
    """
    lines, optim = [], args.optim
    reach = lars_reach(schedule(optim, chosen.max_steps, round(chosen.max_steps / chosen.epochs)), chosen.max_steps)
    if optim.optimizer == "lars" and 0 < reach < PLANNED_REACH:
        most = LARGEST_RATE * 256 / chosen.batch_size
        rate = float(f"{max(base_rate(optim), min(base_rate(optim) * PLANNED_REACH / reach, most)):.2g}")
        lines.append(
            f"  base_learning_rate {base_rate(optim):g} -> {rate:g}: LARS would move the weights by "
            f"{reach:.1%} of "
            f"their length in all, now {reach * rate / base_rate(optim):.1%}"
        )
        args = replace(args, optim=replace(optim, base_learning_rate=rate))
    for name, share in MOMENTA.items() if args.model.init == "random" else ():  # a pretrained start is worth keeping
        momentum = getattr(args.method, name, None)
        least = max(LEAST_MOMENTUM, 1.0 - LEFT_BEHIND / (share * chosen.max_steps))
        if momentum is not None and momentum > least:
            lines.append(
                f"  {name} {momentum:g} -> {least:.4g}: the target network would still be "
                f"{math.exp(-(1.0 - momentum) * share * chosen.max_steps):.0%} its start at the end"
            )
            args = replace(args, method=replace(args.method, **{name: float(f"{least:.4g}")}))
    return args, lines


def open_timed(args: PretrainArgs, accelerator: Accelerator, batch_size: int) -> TimedRun:
    """Open a run of ``batch_size`` that is only timed."""
    run = prepare(replace(args, optim=replace(args.optim, batch_size=batch_size, max_steps=1)), accelerator, None)
    loop = LoopSettings(1, batch_size, args.optim.gradient_accumulation_steps)
    return TimedRun(run.method, run.optimizer, run.learning_rate, {"images": run.stream}, run.transforms, loop)
