"""Steps whose loss, gradient or BatchNorm statistics are not finite leave no trace, without asking the device."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.models.buffers import buffers_change
from tpssl_hf.models.sealed import names_of_not_finite

BAD_STEPS_IN_A_ROW = 3
GO_BACK = (
    "The checkpoints hold only what was finite: run the same command again to go on from the newest; if that ends "
    "here again, lower the learning rate or use --precision fp32, in a new --output_dir."
)


class NonFiniteStepsError(InputError):
    """Training went wrong: loss or gradient was not finite in several steps in a row."""


class NonFiniteGuard:
    """Keeps a non-finite step away from all state of a method, without asking the device."""

    def __init__(self, method: Method, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.method = method
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        self.statistics = [
            b for layer in batchnorm_layers(method) for b in layer.buffers(recurse=False) if b.is_floating_point()
        ]
        # What says so is not copied before each step: constants never, queues only where after_step is undone.
        self.buffers = _by_kind(m for m in method.modules() if buffers_change(m) == "forward")
        self.queues = _by_kind(m for m in method.modules() if buffers_change(m) == "after_step")
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
    def clip(self, length: float) -> None:
        """Cut the gradient to ``length`` if it is longer, after :meth:`check`, without asking the device."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, (length / (self.gradient_norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the method update teachers and queues; after a bad step everything is put back as it was."""
        if self.reading_is_free and not self.bad:  # copying is not
            self.method.after_step(progress)
            return
        weights: list[Tensor] = list(self.method.parameters())
        kept = torch._foreach_mul(weights, self.bad)
        remembered = self.remembered + [_joined(group) for group in self.queues]
        self.method.after_step(progress)
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
            what = f"loss or gradient was not finite in {streak} steps in a row up to step {step}"
            what += f" (learning rate {rate:.3g})"
            if spoilt := names_of_not_finite(self.method.state_dict()):
                raise NonFiniteStepsError(f"{what}; {_spoilt(spoilt)} {GO_BACK}")
            raise NonFiniteStepsError(
                f"{what}; the weights are still those from before. Lower the learning rate or use --precision fp32, "
                "in a new --output_dir."
            )
        if streak:
            warnings.warn(f"step {step}: loss or gradient not finite, step skipped", RuntimeWarning, stacklevel=2)


def refuse_rate(rate: float, step: int) -> None:
    """Refuse to make step number ``step`` with a learning rate that would leave no finite weight.

    Raises:
        NonFiniteStepsError: if it is not finite.
    """
    if not math.isfinite(rate):
        raise NonFiniteStepsError(
            f"the learning rate of step {step} is {rate}, so it was not made; the weights are still those from "
            "before. Give a finite learning rate, in a new --output_dir."
        )


def refuse_spoilt(groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Refuse to keep a state that is not finite: whoever went on from it could never make a good step again.

    Bad steps leave no trace in a state; a step that overflows, or memory that fails, is what comes here.

    Args:
        groups: tensors by group and name.
        step: completed steps.

    Raises:
        NonFiniteStepsError: naming the tensors.
    """
    if spoilt := [f"{group} {name}" for group, named in groups.items() for name in names_of_not_finite(named)]:
        raise NonFiniteStepsError(f"step {step} is not saved: {_spoilt(spoilt)} {GO_BACK}")


def _spoilt(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''} are not finite."


def _by_kind(modules: Iterable[nn.Module]) -> list[list[Tensor]]:
    """Return the modules' own buffers, those of one dtype together."""
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    return [[b for b in buffers if b.dtype == kind] for kind in {b.dtype for b in buffers}]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Copy tensors of one kind into one, which takes fewer kernels than one by one."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
