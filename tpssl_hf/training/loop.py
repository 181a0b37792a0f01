"""The only training loop: forward, backward, check, step, after-step, log, save."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from tpssl_hf.data.streams import EndlessStream, ImageStream, StreamingImages, WithoutMasks
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch, Views
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.queue import KeyQueue
from tpssl_hf.models.recomputing import backward_pass

Stream = ImageStream | EndlessStream | WithoutMasks | StreamingImages
BAD_STEPS_IN_A_ROW = 3


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know.

    Attributes:
        max_steps: optimizer steps of the whole run; ``progress`` is step / max_steps.
        images_per_step: images of all processes in one optimizer step.
        accumulation_steps: batches taken from the iterator per optimizer step.
        log_every: steps between two calls of ``log``.
        save_every: steps between two calls of ``save``.
        seed: seed of what layers draw themselves (dropout); derived anew each step, so resuming needs no saved state.
    """

    max_steps: int
    images_per_step: int
    accumulation_steps: int = 1
    log_every: int = 10
    save_every: int = 500
    seed: int = 0


def train(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    batches: Iterator[Batch],
    settings: LoopSettings,
    *,
    start_step: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    """Run steps ``start_step`` .. ``max_steps`` and return how many were completed in total.

    ``method`` is prepared by the accelerator, ``optimizer`` is not: it must honor ``found_inf``, with which a step
    of non-finite loss or gradient is skipped on the device: it changes nothing in weights, optimizer, BatchNorm,
    teachers or queues. On a GPU nothing waits for the device between two log steps.

    Args:
        accelerator: devices, processes, precision.
        method: module that keeps :class:`tpssl_hf.methods.base.Method`, prepared.
        optimizer: over the method's trainable parameters, from :func:`tpssl_hf.training.optim.build_optimizer`.
        learning_rate: step -> rate.
        batches: endless, starting at ``start_step``.
        settings: how long, how often.
        start_step: completed steps of an earlier start.
        log: called with the number of completed steps and the losses of the last of them.
        save: called with the number of completed steps, also before stopping.
        stop: asked after every step (every ``log_every`` steps with several processes).

    Raises:
        InputError: after three non-finite steps in a row.
    """
    inner = accelerator.unwrap_model(method)
    guard = NonFiniteGuard(inner, accelerator)
    meter = Meter(accelerator, settings, start_step)
    method.train()
    for step in range(start_step, settings.max_steps):
        progress, rate = step / settings.max_steps, learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_multiplier", 1.0)
        torch.manual_seed(_step_seed(settings.seed, step, accelerator.process_index))
        guard.remember_buffers()
        meter.start_step()
        for part in range(settings.accumulation_steps):
            batch = next(batches)
            last = part == settings.accumulation_steps - 1
            with nullcontext() if last else accelerator.no_sync(method):
                losses = method(batch, progress)
                with backward_pass(inner):
                    accelerator.backward(losses["loss"] / settings.accumulation_steps)
            meter.add(losses)
        optimizer.found_inf = guard.check(meter.sums["loss"])  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        guard.after_step(progress)
        done = step + 1
        logging = done % settings.log_every == 0 or done == settings.max_steps
        if logging or accelerator.device.type == "cpu":
            guard.stop_after_bad_streak(done, rate)
        if logging:
            log(done, {**meter.read(done), "learning_rate": rate, "gradient_norm": float(guard.gradient_norm)})
        stopping = _agreed(accelerator, stop) if logging or accelerator.num_processes == 1 else False
        if stopping or done % settings.save_every == 0 or done == settings.max_steps:
            save(done)
        if stopping:
            return done
    return settings.max_steps


class NonFiniteGuard:
    """Keeps a non-finite step away from all state of a method, without asking the device."""

    def __init__(self, method: nn.Module, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.method = method
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.statistics = [
            b
            for m in method.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            for b in m.buffers(recurse=False)
            if b.is_floating_point()
        ]
        # The large ones are not copied before each step: the anchor's are constants, queues move in after_step only.
        self.buffers = _by_kind(m for m in method.modules() if not isinstance(m, Anchor | KeyQueue))
        self.queues = _by_kind(m for m in method.modules() if isinstance(m, KeyQueue))
        self.remembered: list[Tensor] = []
        self.bad = torch.zeros((), device=accelerator.device)
        self.streak = torch.zeros((), device=accelerator.device)
        self.gradient_norm = torch.zeros((), device=accelerator.device)

    @property
    def reading_is_free(self) -> bool:
        """Whether the host need not wait to know of a bad step."""
        return bool(self.accelerator.device.type == "cpu")

    def remember_buffers(self) -> None:
        """Keep the buffers as they are before the forward pass."""
        self.remembered = [_joined(group) for group in self.buffers]

    @torch.no_grad()
    def check(self, loss: Tensor) -> Tensor:
        """Return 1.0 if loss, gradient or BatchNorm statistics are not finite on any process, else 0.0."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.gradient_norm = torch.stack(torch._foreach_norm(gradients)).float().norm()
        good = torch.isfinite(loss) & torch.isfinite(self.gradient_norm)
        if self.statistics:  # an overflow can end in them and nowhere else: x / inf is 0
            good &= torch.isfinite(_joined(self.statistics)).all()
        bad = 1.0 - good.float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum").clamp(max=1.0)
        self.bad, self.streak = bad, (self.streak + 1.0) * bad
        return bad

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the method update teachers and queues; after a bad step everything is put back as it was."""
        if self.reading_is_free and not self.bad:  # copying is not
            self.method.after_step(progress)  # type: ignore[operator]
            return
        weights: list[Tensor] = list(self.method.parameters())
        kept = torch._foreach_mul(weights, self.bad)
        remembered = self.remembered + [_joined(group) for group in self.queues]
        self.method.after_step(progress)  # type: ignore[operator]
        torch._foreach_mul_(weights, 1.0 - self.bad)
        torch._foreach_add_(weights, kept)
        for group, before in zip(self.buffers + self.queues, remembered, strict=True):
            values = torch.where(self.bad > 0, before, _joined(group))
            parts = torch.split(values, [b.numel() for b in group])
            torch._foreach_copy_(group, [part.view_as(b) for part, b in zip(parts, group, strict=True)])

    def stop_after_bad_streak(self, step: int, rate: float) -> None:
        """Warn of skipped steps and raise after three in a row; reads from the device."""
        streak = int(self.streak)
        if streak >= BAD_STEPS_IN_A_ROW:
            raise InputError(
                f"loss or gradient was not finite in {streak} steps in a row up to step {step} (learning rate "
                f"{rate:.3g}); the weights are still those from before. Lower --learning_rate or use --precision "
                "fp32, in a new --output_dir."
            )
        if streak:
            warnings.warn(f"step {step}: loss or gradient not finite, step skipped", RuntimeWarning, stacklevel=2)


class Meter:
    """Losses of the step at hand, averaged over its parts and processes, and the speed since the last log line."""

    def __init__(self, accelerator: Accelerator, settings: LoopSettings, start_step: int) -> None:
        self.accelerator = accelerator
        self.settings = settings
        self.sums: dict[str, Tensor] = {}
        self.since, self.since_step = time.perf_counter(), start_step

    def start_step(self) -> None:
        """Forget the losses of the step before."""
        self.sums = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add one forward pass of this step."""
        for name, value in losses.items():
            value = value.detach().float().to(self.accelerator.device, non_blocking=True)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, done: int) -> dict[str, float]:
        """Return the losses of this step and the images per second; waits for the device."""
        stacked = torch.stack(list(self.sums.values())) / self.settings.accumulation_steps
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, "mean")
        values = dict(zip(self.sums, stacked.tolist(), strict=True))
        now = time.perf_counter()
        images = (done - self.since_step) * self.settings.images_per_step
        values["images_per_second"] = images / (now - self.since)
        self.since, self.since_step = now, done
        return values


def _by_kind(modules: Iterable[nn.Module]) -> list[list[Tensor]]:
    """Return the modules' own buffers, those of one dtype together."""
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    return [[b for b in buffers if b.dtype == kind] for kind in {b.dtype for b in buffers}]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors of one kind into one, which takes fewer kernels than one by one."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _agreed(accelerator: Accelerator, stop: Callable[[], bool]) -> bool:
    asked = stop()
    if accelerator.num_processes == 1:
        return asked
    votes = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(votes, "sum") > 0)


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


def train_behind_bar(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    rate: Callable[[int], float],
    batches: Iterator[Batch],
    loop: LoopSettings,
    *,
    title: str,
    shown: bool,
    start_step: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    """Call :func:`tpssl_hf.training.loop.train` with a bar that counts images; returns the completed steps."""
    parts = loop.accumulation_steps
    bar = tqdm(
        batches,
        desc=title,
        total=loop.max_steps * parts,
        initial=start_step * parts,
        unit="img",
        unit_scale=loop.images_per_step // parts,
        disable=not shown,
    )
    taken = iter(bar)  # a name keeps it alive: at its end it would set the bar back
    prepared = accelerator.prepare(method)
    done = train(
        accelerator, prepared, optimizer, rate, taken, loop, start_step=start_step, log=log, save=save, stop=stop
    )
    bar.n = done * parts  # the last batch was taken from it, but not asked for the next
    bar.close()
    return done
