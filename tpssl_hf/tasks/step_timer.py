"""Training steps of a throw-away network, timed on this machine."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from tpssl_hf.methods.base import Batch, Method, Views
from tpssl_hf.training.loop import LoopSettings, Stream, batches_on_device, training_steps

Batches = TypeVar("Batches", bound=Hashable)  # what is tried: a batch size, or more


@dataclass(frozen=True)
class TimedRun:
    """What is timed.

    Attributes:
        method: on its device, not yet prepared by the accelerator.
        optimizer: over its weights.
        learning_rate: of each step.
        streams: stream name -> the images of this process.
        transforms: stream name -> what makes views of them.
        loop: of the run; its length is replaced.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    streams: Mapping[str, Stream]
    transforms: Views
    loop: LoopSettings


def step_timer(open_run: Callable[[Batches], TimedRun], accelerator: Accelerator) -> Callable[[Batches, int], float]:
    """Return what trains a throw-away network for (batch size, steps) and tells the seconds that took.

    Processes take their steps together, so what comes of the seconds must be the same in all of them: those of the
    main process count.

    Args:
        open_run: batch size -> a run with it. Only the last one opened is kept.
        accelerator: devices, processes, precision.
    """

    @lru_cache(maxsize=1)
    def opened(batch_size: Batches) -> tuple[TimedRun, nn.Module, Iterator[Batch]]:
        run = open_run(batch_size)
        batches = batches_on_device(run.streams, run.transforms, 0, accelerator.device)
        return run, accelerator.prepare(run.method), batches

    def run_steps(batch_size: Batches, steps: int) -> float:
        run, prepared, batches = opened(batch_size)
        loop = replace(run.loop, max_steps=steps, log_every=steps)
        started = time.perf_counter()
        for _ in training_steps(accelerator, prepared, run.optimizer, run.learning_rate, batches, loop, start_step=0):
            pass
        return seconds_of_main(time.perf_counter() - started)

    return run_steps


def seconds_of_main(seconds: float) -> float:
    """Return what the main process gives, in all of them."""
    first: float = broadcast_object_list([seconds])[0]
    return first
