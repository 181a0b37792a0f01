"""How long a run of target pretraining may be: this machine is timed, then batch size and length are chosen."""

import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from tpssl_hf.config.parser import take
from tpssl_hf.config.shared import OptimConfig
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch
from tpssl_hf.tasks.pretrain.run import Job, make_watch, prepare, probed, schedule
from tpssl_hf.tasks.pretrain.time_budget import Plan, measure_seconds_per_step, parse_duration, plan
from tpssl_hf.training.loop import LoopSettings, batches_on_device, train
from tpssl_hf.training.optim import lars_reach

PLANNED_REACH = 0.1  # see lars_reach: how far a planned run must be able to move the weights
LARGEST_RATE = 4.8  # 0.3 for 256 images at BYOL's batch of 4096, the largest that LARS was published with here
LEFT_BEHIND = 4.6  # e^-4.6 is 1 %: what a target network may keep of its start
LEAST_MOMENTUM = 0.9  # of a target network, below which it is hardly an average
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)  # what a time budget chooses from


def plan_for_budget(settings: dict[str, Any], method_config: Any, accelerator: Accelerator) -> Plan:
    """Time this machine on a few steps and choose the batch size and length that fit ``settings["budget"]``.

    Raises:
        InputError: if the budget is no duration or too short, or the number of images is unknown.
    """
    budget = parse_duration(settings["budget"])
    trial = prepare({**settings, "max_steps": 1}, method_config, accelerator, None)
    if trial.store is None:
        raise InputError("a budget needs the number of images, which a streamed data set does not tell.")
    run_steps, images = step_timer(settings, method_config, accelerator), len(trial.store)
    began = time.perf_counter()
    probed(trial, trial.method.deployed)  # type: ignore[arg-type]
    probe_seconds, began = time.perf_counter() - began, time.perf_counter()
    watch = make_watch(trial)
    if watch:
        watch.begin(trial.method.deployed)  # type: ignore[arg-type]
    check_seconds = 2 * (time.perf_counter() - began) if watch else 0.0  # a check looks at two views more

    def seconds_per_step(batch_size: int) -> float:
        steps_between_checks = max(1.0, float(settings["health_every"]) * (images // batch_size))
        seconds: float = measure_seconds_per_step(run_steps, batch_size)
        return seconds + check_seconds / steps_between_checks

    parts, queue = accelerator.num_processes * settings["gradient_accumulation_steps"], settings.get("queue_size")
    chosen = plan(
        budget,
        seconds_per_step,
        images=images,
        batch_sizes=[size for size in BATCH_SIZES if size % parts == 0 and size // parts > 1],
        preferred=settings["batch_size"],
        overhead_seconds=5 * probe_seconds,  # three probes, and as many images for BatchNorm's statistics twice
        allowed=lambda size: queue is None or queue % size == 0,
    )
    accelerator.free_memory()  # it would hold on to the networks it has timed
    first: Plan = broadcast_object_list([chosen])[0]  # every process times a little differently
    return first


def fit_to_length(settings: dict[str, Any], method_config: Any, chosen: Plan) -> list[str]:
    """Raise the rate of LARS and lower the momentum of the target network where a planned run is too short for them.

    A small batch lowers the rate (it goes with the batch), and few steps the sum of rates, which is how far LARS can
    move the weights; and a target network that keeps its start has nothing to teach. ``settings`` and
    ``method_config`` are changed in place.

    Args:
        settings: of the run, with the batch size and length that were chosen.
        method_config: of its method.
        chosen: the plan.

    Returns:
        A line for people on each change.
    """
    lines = []
    optim = take(OptimConfig, settings)
    reach = lars_reach(schedule(optim, chosen.max_steps, round(chosen.max_steps / chosen.epochs)), chosen.max_steps)
    if optim.optimizer == "lars" and 0 < reach < PLANNED_REACH:
        most = LARGEST_RATE * 256 / chosen.batch_size
        rate = float(f"{max(optim.learning_rate, min(optim.learning_rate * PLANNED_REACH / reach, most)):.2g}")
        lines.append(
            f"  learning_rate {optim.learning_rate:g} -> {rate:g}: LARS would move the weights by {reach:.1%} of "
            f"their length in all, now {reach * rate / optim.learning_rate:.1%}"
        )
        settings["learning_rate"] = rate
    for name, share in (("base_momentum", 0.5), ("key_momentum", 1.0)):  # of 1 - momentum: a cosine to 1, or constant
        momentum = getattr(method_config, name, None)
        least = max(LEAST_MOMENTUM, 1.0 - LEFT_BEHIND / (share * chosen.max_steps))
        if momentum is not None and momentum > least:
            lines.append(
                f"  {name} {momentum:g} -> {least:.4g}: the target network would still be "
                f"{math.exp(-(1.0 - momentum) * share * chosen.max_steps):.0%} its start at the end"
            )
            settings[name] = float(f"{least:.4g}")
            setattr(method_config, name, settings[name])
    return lines


def step_timer(settings: dict[str, Any], method_config: Any, accelerator: Accelerator) -> Callable[[int, int], float]:
    """Return what trains a throw-away network for (batch size, steps) and tells the seconds that took."""

    @lru_cache(maxsize=1)
    def of_size(batch_size: int) -> tuple[Job, nn.Module, Iterator[Batch]]:
        job = prepare({**settings, "batch_size": batch_size, "max_steps": 1}, method_config, accelerator, None)
        batches = batches_on_device({"images": job.stream}, job.transforms, 0, accelerator.device)
        return job, accelerator.prepare(job.method), batches

    def run_steps(batch_size: int, steps: int) -> float:
        job, prepared, batches = of_size(batch_size)
        loop = LoopSettings(steps, batch_size, settings["gradient_accumulation_steps"], log_every=steps)
        started = time.perf_counter()
        train(
            accelerator,
            prepared,
            job.optimizer,
            job.rate,
            batches,
            loop,
            start_step=0,
            log=lambda step, values: None,
            save=lambda step: None,
            stop=lambda: False,
        )
        return time.perf_counter() - started

    return run_steps
