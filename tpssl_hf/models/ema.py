"""Exponential moving averages of networks."""

import copy
import math

import torch
from torch import nn


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
