"""The L2-SP penalty toward Φ_pre: λ‖Φ − Φ_pre‖² on top of any pretraining method (Eq. 3)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tpssl_hf.methods.base import Batch, Losses, Method


class Anchor(Method):
    """Wrap a pretraining method and penalize the distance of its deployed backbone from its start.

    The distance runs over the trainable backbone tensors (weights and BatchNorm affine), never over heads, running
    statistics or the target network. Φ_pre is kept in buffers, so a checkpoint carries it and a resumed run is
    anchored where the first start was, not where it resumed.

    Args:
        inner: the method; its ``deployed`` network must still hold Φ_pre.
        weight: λ (§IV-B: 1e-2), constant over the run; 0 only measures the drift.
        decoupled_rate: progress -> learning rate, for the ablation that leaves the loss alone and moves
            w ← w − rate·2λ(w − w_pre) after each step, past the optimizer's scaling; None for Eq. 3 as it stands.
    """

    buffers_change = "never"

    def __init__(
        self, inner: Method, weight: float, *, decoupled_rate: Callable[[float], float] | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.projection_features, self.teacher_source = inner.projection_features, inner.teacher_source
        self.weight = weight
        self.decoupled_rate = decoupled_rate
        self._count = 0
        for parameter in self._backbone_parameters():
            self.register_buffer(f"anchor_{self._count}", parameter.detach().clone().float())
            self._count += 1
        self.register_buffer("anchor_norm", torch.sqrt(_sum_of_squares(self._anchors())))

    def _backbone_parameters(self) -> list[Tensor]:
        return [p for p in self.deployed.parameters() if p.requires_grad]

    def _anchors(self) -> list[Tensor]:
        return [getattr(self, f"anchor_{number}") for number in range(self._count)]

    def begin(self, batches: Iterable[Batch]) -> None:
        """Let the method fit what should not begin at random."""
        self.inner.begin(batches)

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the inner method's ways, each of which has the whole penalty: it is in their mean once."""
        return self.inner.ways(batch)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return the inner method's losses with λ‖Φ − Φ_pre‖² in ``loss``, and ``drift`` = ‖Φ − Φ_pre‖ / ‖Φ_pre‖."""
        losses: Losses = self.inner(batch, progress)
        distance = _SquaredDistance.apply(self._anchors(), *self._backbone_parameters())
        if self.weight > 0 and self.decoupled_rate is None:
            losses["loss"] = losses["loss"] + self.weight * distance
            losses["loss_anchor"] = self.weight * distance.detach()
        losses["drift"] = distance.detach().sqrt() / self.anchor_norm
        return losses

    def after_step(self, progress: float) -> None:
        """Make the decoupled step toward the start, if asked for, and let the method update teachers and queues."""
        if self.decoupled_rate is not None:
            share = min(1.0, 2.0 * self.weight * self.decoupled_rate(progress))
            with torch.no_grad():
                torch._foreach_lerp_(self._backbone_parameters(), self._anchors(), share)
        self.inner.after_step(progress)

    @torch.no_grad()
    def moved(self) -> dict[str, tuple[float, float]]:
        """Return ‖w − w_pre‖² and ‖w_pre‖² of each trainable backbone tensor by its name; waits for the device."""
        names = [name for name, p in self.deployed.named_parameters() if p.requires_grad]
        anchors = self._anchors()
        distances = torch._foreach_norm(torch._foreach_sub(self._backbone_parameters(), anchors))
        values = torch.stack([*distances, *torch._foreach_norm(anchors)]).double().square().tolist()
        return dict(zip(names, zip(values[: len(names)], values[len(names) :], strict=True), strict=True))

    @property
    def deployed(self) -> nn.Module:
        """The inner method's deployed network."""
        return self.inner.deployed


class _SquaredDistance(torch.autograd.Function):
    """Σ‖w − w_pre‖² over many tensors in a few kernels; the gradient is 2(w − w_pre)."""

    @staticmethod
    def forward(ctx: Any, anchors: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        differences = torch._foreach_sub(list(parameters), list(anchors))
        ctx.differences = differences
        return _sum_of_squares(differences)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *torch._foreach_mul(ctx.differences, 2.0 * gradient))


def _sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).square().sum()
