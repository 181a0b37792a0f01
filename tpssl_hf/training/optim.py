"""Optimizers that can skip a step on the device, parameter groups, and learning-rate schedules as plain functions."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from tpssl_hf.errors import InputError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017), in the form BYOL and PixPro use.

    For a tensor w with gradient g: g ← g + weight_decay·w; g ← g·trust_coefficient·‖w‖/‖g‖ unless the group is
    ``lars_exclude``d (or a norm is zero); v ← momentum·v + g; w ← w − lr·v. On a GPU all tensors of a group move in a
    handful of kernels. Where the tensor ``found_inf`` is set and not zero, nothing changes: the step is skipped on the
    device.
    Gradients are worked on in place and hold no gradient afterwards.

    Args:
        params: parameters or groups; a group may set ``weight_decay`` and ``lars_exclude``.
        lr: learning rate.
        momentum: momentum of the scaled gradient.
        weight_decay: added to the gradient before the trust ratio.
        trust_coefficient: η, 1e-3 in BYOL and PixPro.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients at hand."""
        if closure is not None:
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and params[0].device.type != "cpu":
                self._step_together(group, params)
            elif params and not (self.found_inf is not None and bool(self.found_inf)):
                for p in params:
                    self._step_of_one(group, p)

    def _step_of_one(self, group: dict[str, Any], p: Tensor) -> None:
        """Make a step of one tensor on a CPU, where numbers are read for free and passes over memory are not."""
        gradient, scale = p.grad, 1.0
        assert gradient is not None
        if group["weight_decay"] != 0:
            gradient.add_(p, alpha=group["weight_decay"])
        if not group["lars_exclude"]:
            weight_norm, gradient_norm = float(p.norm()), float(gradient.norm())
            if weight_norm > 0 and gradient_norm > 0:
                scale = group["trust_coefficient"] * weight_norm / (gradient_norm + 1e-8)
        velocity = self.state[p].get("momentum_buffer")
        if velocity is None:
            velocity = self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        velocity.mul_(group["momentum"]).add_(gradient, alpha=scale)
        p.sub_(velocity, alpha=group["lr"])

    def _step_together(self, group: dict[str, Any], params: list[Tensor]) -> None:
        # Non-finite entries are taken out first, so that the multiplications by ``go`` below cannot spread them.
        updates: list[Tensor] = [torch.nan_to_num_(p.grad, 0.0, 0.0, 0.0) for p in params if p.grad is not None]
        bad = torch.zeros((), device=params[0].device) if self.found_inf is None else self.found_inf.float()
        go = 1.0 - bad.clamp(max=1.0)
        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        if not group["lars_exclude"]:
            weight_norms = torch.stack(torch._foreach_norm(params))
            update_norms = torch.stack(torch._foreach_norm(updates))
            trust = group["trust_coefficient"] * weight_norms / (update_norms + 1e-8)
            trust = torch.where((weight_norms > 0) & (update_norms > 0), trust, 1.0)
            torch._foreach_mul_(updates, list((trust * go).unbind()))
        else:
            torch._foreach_mul_(updates, go)
        velocities: list[Tensor] = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            velocities.append(state["momentum_buffer"])
        torch._foreach_mul_(velocities, group["momentum"] * go + (1.0 - go))
        torch._foreach_add_(velocities, updates)
        torch._foreach_sub_(params, torch._foreach_mul(velocities, group["lr"] * go))


class SteadySGD(SGD):
    """torch's SGD whose momentum starts from zeros, which makes the same first step.

    torch's fused one leaves memory as it finds it in place of the momentum if ``found_inf`` skips the first step of
    a tensor, and moves weights by it ever after.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients at hand."""
        if closure is not None:
            raise ValueError("SteadySGD takes no closure")
        for group in self.param_groups:
            for p in group["params"]:
                if group["momentum"] != 0 and p.grad is not None and self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super().step()


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    decay_norm_and_bias: bool = False,
    heads: Iterable[Tensor] = (),
    head_lr_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters: one-dimensional ones (BatchNorm, biases) get no decay and no LARS scaling.

    Args:
        module: what is trained.
        weight_decay: of weights, and with ``decay_norm_and_bias`` of one-dimensional parameters as well.
        decay_norm_and_bias: see above.
        heads: parameters of ``module`` that learn ``head_lr_multiplier`` times as fast, in groups of their own.
        head_lr_multiplier: stored as ``lr_multiplier`` in every group; the engine multiplies the learning rate by it.

    Returns:
        Groups, ready for any optimizer of :func:`build_optimizer`; an empty one is left out.
    """
    fast = {id(p) for p in heads} if head_lr_multiplier != 1.0 else set()
    groups: list[dict[str, Any]] = []
    for is_fast, is_vector in ((False, False), (False, True), (True, False), (True, True)):
        members = [
            p
            for p in module.parameters()
            if p.requires_grad and (id(p) in fast) == is_fast and (p.ndim <= 1) == is_vector
        ]
        group = {
            "params": members,
            "weight_decay": weight_decay if decay_norm_and_bias or not is_vector else 0.0,
            "lars_exclude": is_vector,
        }
        groups.append(group | ({"lr_multiplier": head_lr_multiplier} if is_fast else {}))
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str,
    module: nn.Module,
    *,
    weight_decay: float,
    momentum: float,
    decay_norm_and_bias: bool = False,
    nesterov: bool = False,
    heads: Iterable[Tensor] = (),
    head_lr_multiplier: float = 1.0,
) -> Optimizer:
    """Build ``lars``, ``sgd`` or ``adamw`` over the trainable parameters; the loop sets its learning rate each step.

    Every one of them honors ``found_inf``: a tensor that is not zero makes the next step change nothing. Arguments
    are those of :func:`parameter_groups`; ``nesterov`` is for ``sgd``.

    Raises:
        InputError: for ``nesterov`` without a momentum.
        ValueError: for another name.
    """
    groups = parameter_groups(
        module,
        weight_decay,
        decay_norm_and_bias=decay_norm_and_bias,
        heads=heads,
        head_lr_multiplier=head_lr_multiplier,
    )
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum)
    for group in groups:
        group.pop("lars_exclude")
    if name == "sgd":
        if nesterov and momentum == 0:
            raise InputError("nesterov needs a momentum above 0; give one, or --nesterov false.")
        return SteadySGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    if name == "adamw":
        return AdamW(groups, lr=0.0, betas=(momentum, 0.999), fused=True)
    raise ValueError(f"optimizer {name!r} is not one of lars, sgd, adamw")


def warmup_cosine(step: int, *, base: float, max_steps: int, warmup_steps: int) -> float:
    """Learning rate of one step: linear from 0 over ``warmup_steps``, then half a cosine to 0 at ``max_steps``."""
    if step < warmup_steps:
        return base * step / warmup_steps
    return base * cosine_decay((step - warmup_steps) / max(1, max_steps - warmup_steps))


def cosine_decay(progress: float) -> float:
    """Half a cosine: 1 at progress 0, 0 at progress 1."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def cosine_7_16(progress: float) -> float:
    """Learning-rate factor of FixMatch's schedule (Sohn et al., 2020, §2.4): cos(7π/16 · progress), 0.195 at 1."""
    return math.cos(7.0 * math.pi / 16.0 * min(1.0, progress))


def four_steps(progress: float) -> float:
    """Learning-rate factor of Self-Tuning's schedule: a tenth after 6, 12, 18 and 24 of its 27 thousand steps."""
    return 0.1 ** sum(progress >= thousands / 27.005 for thousands in (6, 12, 18, 24))


def poly(progress: float) -> float:
    """Learning-rate factor of DeepLab's schedule (Chen et al., 2017, arXiv 1606.00915, §4.1): (1 - progress)^0.9."""
    return math.pow(1.0 - min(1.0, progress), 0.9)


def lars_reach(rate: Callable[[int], float], max_steps: int, trust_coefficient: float = 1e-3) -> float:
    """Return how far LARS can move a weight tensor in ``max_steps`` steps, relative to its length.

    A step moves it by about trust_coefficient·rate of its length whatever its gradient, so this is their sum.
    Momentum m can make 1 / (1 − m) times as much of steps that all agree; steps that disagree make far less.
    """
    return trust_coefficient * sum(rate(step) for step in range(max_steps))
