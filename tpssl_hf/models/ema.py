"""Exponential moving averages of networks."""

import copy
import math

import torch
from torch import Tensor, nn


def frozen_copy(module: nn.Module) -> nn.Module:
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


class EMATeacher(nn.Module):
    """A frozen average ``network`` of a student, for evaluation or as a teacher (Tarvainen & Valpola, 2017, §2).

    The k-th update (k = 0 at first) has momentum min(``momentum``, (1 + k) / (10 + k)), the rule of TensorFlow's
    ExponentialMovingAverage, so that the average of a short run is not mostly its start. All state is in buffers.

    Args:
        student: the network to follow; the average starts as an exact copy of it.
        momentum: in [0, 1), how much of the average an update keeps in the long run.
    """

    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.network = frozen_copy(student)
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move every parameter toward ``student`` and copy every buffer (BatchNorm statistics) from it."""
        # 1 - (1 + k) / (10 + k) = 9 / (10 + k). It stays on the device: reading k would make the host wait.
        share = (9.0 / (10.0 + self.updates)).clamp_min(1.0 - self.momentum)
        averages: list[Tensor] = list(self.network.parameters())
        goals: list[Tensor] = list(student.parameters())
        changes = list(torch._foreach_sub(goals, averages))
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)
        if buffers := list(self.network.buffers()):
            torch._foreach_copy_(buffers, list(student.buffers()))
        self.updates.add_(1)


@torch.no_grad()
def average_into(average: Tensor, value: Tensor, momentum: float) -> None:
    """Move a statistic: average ← momentum·average + (1 − momentum)·value, unless ``value`` is not all finite."""
    moved = average.lerp(value.to(average.dtype), 1.0 - momentum)
    average.copy_(torch.where(torch.isfinite(value).all(), moved, average))
