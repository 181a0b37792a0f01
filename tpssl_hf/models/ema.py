"""Exponential moving averages of networks."""

import copy
import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(module: Network) -> Network:
    """Return a deep copy without gradients, to be moved by :func:`ema_update` only."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move every parameter of ``target``: target ← momentum·target + (1 − momentum)·online.

    Buffers stay as they are: a target network in training mode keeps BatchNorm statistics of its own (BYOL's way).
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1.0 - momentum)


def cosine_momentum(base: float, progress: float) -> float:
    """Momentum that rises from ``base`` at progress 0 to 1 at progress 1 along half a cosine (Grill et al., 2020)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * progress) + 1.0) / 2.0


def tensorflow_share(updates: Tensor) -> Tensor:
    """Weight of the student in an early update: 9 / (10 + k), as of TensorFlow's ExponentialMovingAverage."""
    return 9.0 / (10.0 + updates)


def mean_share(updates: Tensor) -> Tensor:
    """Weight of the student in an early update: 1 / (1 + k), which makes the average a mean (Olsson et al., 2021)."""
    return 1.0 / (1.0 + updates)


class EMATeacher(nn.Module):
    """A frozen average ``network`` of a student, for evaluation or as a teacher (Tarvainen & Valpola, 2017, §2).

    The k-th update (k = 0 at first) takes a share of at least 1 − ``momentum`` from the student, and the early ones
    more, so that the average of a short run is not mostly its start: by default momentum is
    min(``momentum``, (1 + k) / (10 + k)). All state is in buffers.

    Args:
        student: the network to follow; the average starts as an exact copy of it.
        momentum: in [0, 1), how much of the average an update keeps in the long run.
        early_share: number of the update, a 0-d tensor, to the least share of the student in it.
        buffers: what happens to buffers: ``"copy"`` them from the student; ``"average"`` those of floating point like
            parameters and copy the others; or ``"keep"`` the network's own, which it gathers in training mode.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: float,
        *,
        early_share: Callable[[Tensor], Tensor] = tensorflow_share,
        buffers: Literal["copy", "average", "keep"] = "copy",
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.early_share = early_share
        self.buffer_rule = buffers
        self.network = frozen_copy(student)
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | None = None) -> None:
        """Move every parameter toward ``student``, and its buffers as the rule says.

        Args:
            student: the network to follow.
            momentum: in place of the teacher's own, for one that changes over the run.
        """
        # It stays on the device: reading k would make the host wait.
        share = self.early_share(self.updates).clamp_min(1.0 - (self.momentum if momentum is None else momentum))
        averages: list[Tensor] = list(self.network.parameters())
        goals: list[Tensor] = list(student.parameters())
        buffers, sources = list(self.network.buffers()), list(student.buffers())
        if self.buffer_rule == "average":
            averages += [buffer for buffer in buffers if buffer.is_floating_point()]
            goals += [source for source in sources if source.is_floating_point()]
            buffers = [buffer for buffer in buffers if not buffer.is_floating_point()]
            sources = [source for source in sources if not source.is_floating_point()]
        changes = list(torch._foreach_sub(goals, averages))
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)
        if buffers and self.buffer_rule != "keep":
            torch._foreach_copy_(buffers, sources)
        self.updates.add_(1)


@torch.no_grad()
def average_into(average: Tensor, value: Tensor, momentum: float, updates: Tensor) -> None:
    """Move a statistic: average ← m·average + (1 − m)·value, unless ``value`` is not all finite.

    m is min(``momentum``, (1 + k) / (10 + k)) after k = ``updates`` (0-d) earlier ones, as of an :class:`EMATeacher`:
    with 0.999 alone a statistic would be mostly what it was initialized to for a thousand steps.
    """
    moved = average.lerp(value.to(average.dtype), tensorflow_share(updates).clamp_min(1.0 - momentum))
    average.copy_(torch.where(torch.isfinite(value).all(), moved, average))
