"""The training loop: forward, backward, check, step, after-step; its caller logs, saves and stops."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tpssl_hf.data.streams import EndlessStream, ImageStream, StreamingImages, WithoutMasks
from tpssl_hf.methods.base import Batch, Losses, Method, Views
from tpssl_hf.models.cpu_convolutions import fast_convolutions
from tpssl_hf.models.recomputing import backward_pass
from tpssl_hf.training.nonfinite_guard import NonFiniteGuard, refuse_rate

Stream = ImageStream | EndlessStream | WithoutMasks | StreamingImages


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know.

    Attributes:
        max_steps: optimizer steps of the whole run; ``progress`` is step / max_steps.
        images_per_step: images of all processes in one optimizer step.
        accumulation_steps: batches taken from the iterator per optimizer step.
        log_every: steps between two log lines.
        save_every: steps between two checkpoints.
        seed: seed of what layers draw themselves (dropout); derived anew each step, so resuming needs no saved state.
        max_gradient_norm: length that longer gradients are cut to; None cuts none.
    """

    max_steps: int
    images_per_step: int
    accumulation_steps: int = 1
    log_every: int = 10
    save_every: int = 500
    seed: int = 0
    max_gradient_norm: float | None = None


@dataclass(frozen=True)
class Step:
    """What the loop tells after an optimizer step.

    Attributes:
        done: completed steps of the run.
        losses: losses of this step, learning rate, gradient norm and speed where a log line is due, else None.
        save_due: whether a checkpoint is due.
        may_stop: whether the run may be stopped here; it is the same in all processes, as :func:`agreed` needs it.
    """

    done: int
    losses: dict[str, float] | None
    save_due: bool
    may_stop: bool


def training_steps(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    batches: Iterator[Batch],
    settings: LoopSettings,
    *,
    start_step: int,
) -> Iterator[Step]:
    """Make steps ``start_step`` .. ``max_steps`` and yield after each of them, for the caller to log, save or stop.

    ``method`` is prepared by the accelerator, ``optimizer`` is not: it must honor ``found_inf``, with which a step
    of non-finite loss or gradient is skipped on the device: it changes nothing in weights, optimizer, BatchNorm,
    teachers or queues. On a GPU nothing waits for the device between two log steps.

    Args:
        accelerator: devices, processes, precision.
        method: a :class:`tpssl_hf.methods.base.Method`, prepared.
        optimizer: over the method's trainable parameters, from :func:`tpssl_hf.training.optim.build_optimizer`.
        learning_rate: step -> rate.
        batches: endless, starting at ``start_step``.
        settings: how long, how often.
        start_step: completed steps of an earlier start.

    Raises:
        InputError: after three non-finite steps in a row, or before a step whose learning rate is not finite.
    """
    inner: Method = accelerator.unwrap_model(method)
    guard, meter = NonFiniteGuard(inner, accelerator), Meter(accelerator, settings, start_step)
    method.train()
    for step in range(start_step, settings.max_steps):
        progress, rate = step / settings.max_steps, learning_rate(step)
        refuse_rate(rate, step + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        torch.manual_seed(_step_seed(settings.seed, step, accelerator.process_index))
        guard.remember_buffers()
        meter.start_step()
        for losses in _accumulated(accelerator, method, inner, batches, progress, settings.accumulation_steps):
            meter.add(losses)
        optimizer.found_inf = guard.check(meter.sums["loss"])  # type: ignore[attr-defined]
        if settings.max_gradient_norm is not None:
            guard.clip(settings.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        guard.after_step(progress)
        done = step + 1
        is_last = done == settings.max_steps
        log_due, logged = done % settings.log_every == 0 or is_last, None
        if log_due or accelerator.device.type == "cpu":
            guard.stop_after_bad_streak(done, rate)
        if log_due:
            logged = {**meter.read(done), "learning_rate": rate, "gradient_norm": float(guard.gradient_norm)}
        save_due = done % settings.save_every == 0 or is_last
        yield Step(done, logged, save_due, may_stop=log_due or accelerator.num_processes == 1)


def _accumulated(
    accelerator: Accelerator, method: nn.Module, inner: Method, batches: Iterator[Batch], progress: float, parts: int
) -> Iterator[Losses]:
    """Add the gradient of one step up over its parts and their ways; yields the losses of each.

    Processes meet in the last one.
    """
    compiled = inner._compiled_call_impl is not None
    convolving = nullcontext if compiled else partial(fast_convolutions, accelerator.device)
    for part in range(parts):
        ways = inner.ways(next(batches))
        for number, batch in enumerate(ways, 1):
            is_last = part == parts - 1 and number == len(ways)
            with nullcontext() if is_last else accelerator.no_sync(method), convolving():
                losses: Losses = method(batch, progress)
                with backward_pass(inner, convolving):
                    accelerator.backward(losses["loss"] / (parts * len(ways)))
            yield losses


def with_progress_bar(
    steps: Iterator[Step], settings: LoopSettings, *, title: str, shown: bool, start_step: int
) -> Iterator[Step]:
    """Show a bar that counts the images of ``steps`` while they are taken."""
    with tqdm(
        desc=title,
        total=settings.max_steps,
        initial=start_step,
        unit="img",
        unit_scale=settings.images_per_step,
        disable=not shown,
    ) as bar:
        for step in steps:
            bar.update()
            yield step


def agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process asks to stop; all of them must call this at the same step, one that ``may_stop``."""
    if accelerator.num_processes == 1:
        return asked
    votes = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum") > 0)


class Meter:
    """Losses of the step at hand, averaged over passes and processes, and the speed since the last log line."""

    def __init__(self, accelerator: Accelerator, settings: LoopSettings, start_step: int) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.sums: dict[str, Tensor] = {}
        self.passes = 0
        self.since, self.since_step = time.perf_counter(), start_step

    def start_step(self) -> None:
        """Forget the losses of the step before."""
        self.sums, self.passes = {}, 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add one forward pass of this step."""
        self.passes += 1
        for name, value in losses.items():
            value = value.detach().float().to(self.accelerator.device, non_blocking=True)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, done: int) -> dict[str, float]:
        """Return the losses of this step and the images per second; waits for the device."""
        stacked = torch.stack(list(self.sums.values())) / self.passes
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "mean")
        values = dict(zip(self.sums, stacked.tolist(), strict=True))
        now = time.perf_counter()
        images = (done - self.since_step) * self.settings.images_per_step
        values["images_per_second"] = images / (now - self.since)
        self.since, self.since_step = now, done
        return values


def _step_seed(seed: int, step: int, process: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + process) % 2**63


def batches_on_device(
    streams: Mapping[str, Stream], views: Views, start: int, device: torch.device
) -> Iterator[Batch]:
    """Yield augmented batches for ever, from batch ``start`` on; copying to a GPU overlaps with its work.

    Args:
        streams: stream name -> the images of this process.
        views: stream name -> transform; the streams it names are read.
        start: number of batches an earlier start has taken.
        device: where to augment and train.
    """
    opened = {name: streams[name].batches(start) for name in views}
    while True:
        batch = {}
        for name, images in opened.items():
            held = next(images)
            held = held.pin_memory() if device.type == "cuda" else held
            batch[name] = views[name](held.to(device, non_blocking=True))
        yield batch
