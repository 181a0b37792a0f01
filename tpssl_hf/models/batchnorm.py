"""BatchNorm whose statistics run over all processes, on the CPU as on a GPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tpssl_hf.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
BatchNorm = nn.modules.batchnorm._BatchNorm  # the base of all of torch's and timm's
FROZEN = "statistics_frozen"  # attribute of a layer that stays on its running statistics


def batchnorm_layers(module: nn.Module) -> list[BatchNorm]:
    """Return the BatchNorm layers of ``module``, itself included, of every kind."""
    return [layer for layer in module.modules() if isinstance(layer, BatchNorm)]


def freeze_statistics(network: nn.Module) -> None:
    """Keep the BatchNorm layers of ``network`` on their running statistics, in training too; γ and β learn.

    Copies of the network are frozen as well. Whoever sets training mode must call :func:`keep_frozen` afterwards, as
    :class:`tpssl_hf.methods.base.Method` does.
    """
    for layer in batchnorm_layers(network):
        setattr(layer, FROZEN, True)
        layer.eval()


def keep_frozen(module: nn.Module) -> None:
    """Put the layers that :func:`freeze_statistics` has frozen back into evaluation mode."""
    for layer in batchnorm_layers(module):
        if getattr(layer, FROZEN, False):
            layer.eval()


def batch_statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) in float32 of values (B, C, ...) on a CPU, many times as fast as var_mean.

    torch's BatchNorm takes them so: it is given running statistics in float32, which it leaves alone, because it
    answers in their type.
    """
    unused = torch.zeros(2, values.shape[1])
    mean, variance = torch.batch_norm_update_stats(values, unused[0], unused[1], 0.0)
    return mean, variance


def fair_random(network: Network) -> Network:
    """Copy a network of random weights without what makes it start as nearly the identity.

    timm sets γ of the last BatchNorm of each residual block to 0, which helps training and makes features of untrained
    weights hardly depend on the image. As a baseline they would flatter whatever is trained; with γ = 1 they do not.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for layer in batchnorm_layers(network):
            if layer.weight is not None and not layer.weight.any():
                layer.weight.fill_(1.0)
    return network


class _SyncedNormalization(torch.autograd.Function):
    """BatchNorm of (B, C, ...) by statistics of all processes, in torch's own kernels; see :class:`SyncedBatchNorm`.

    The gradient of the input is the one that this process' share of the sums would give, and what the sums of all
    processes change in it: an affine function of the normalized input.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack(batch_statistics(values))
        shares = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, own)
        means, variances = torch.stack(shares).unbind(dim=1)
        mean, variance = means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)
        ctx.save_for_backward(values, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return functional.batch_norm(values, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, variance = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        of_values, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, values, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        own = torch.stack((of_weight, of_bias))
        total = own.clone()
        dist.all_reduce(total)
        count = values.numel() // values.shape[1]
        slope, offset = (own - total / dist.get_world_size()) / count * (weight * inverse)
        of_values += functional.batch_norm(values, mean, variance, slope, offset, eps=ctx.eps)
        return of_values, of_weight, of_bias, None


class SyncedBatchNorm(BatchNorm):
    """BatchNorm over the batch of every process of the default group; torch's own version runs on GPUs only.

    Every process must contribute equally many values per channel, which an equal share of a global batch does.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncedBatchNorm takes (B, C, ...) tensors, got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, ...) per channel, by batch statistics in training and running ones in evaluation."""
        if not self.training:
            return super().forward(input)
        weight, bias = self.weight, self.bias
        if weight is None:
            weight, bias = input.new_ones(input.shape[1]).float(), input.new_zeros(input.shape[1]).float()
        output, mean, variance = _SyncedNormalization.apply(input, weight, bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            count = input.numel() // input.shape[1] * dist.get_world_size()
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            # without a momentum, torch's BatchNorm keeps the mean over all batches
            momentum = 1.0 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)
        normalized: Tensor = output
        return normalized


def synchronize_batchnorm(module: Network, device: torch.device) -> Network:
    """Replace the BatchNorm layers below ``module`` by ones that share statistics; parameters and keys stay.

    Layers with frozen statistics share none, and stay as they are.

    Raises:
        InputError: on a CPU for BatchNorm layers fused with an activation (some timm models have them).
    """
    if device.type == "cuda":
        frozen = [name for name, layer in module.named_modules() if getattr(layer, FROZEN, False)]
        converted: Network = convert_sync_batchnorm(module)
        for name in frozen:
            freeze_statistics(converted.get_submodule(name))
        return converted
    for name, child in list(module.named_children()):
        if getattr(child, FROZEN, False):
            continue
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            setattr(module, name, _converted(child))
        elif isinstance(child, BatchNorm):
            raise InputError(f"{type(child).__name__} cannot share statistics on a CPU; set sync_batchnorm to false.")
        else:
            synchronize_batchnorm(child, device)
    return module


def _converted(layer: nn.Module) -> SyncedBatchNorm:
    assert isinstance(layer, BatchNorm)
    synced = SyncedBatchNorm(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    ).train(layer.training)
    synced.load_state_dict(layer.state_dict())
    for parameter, original in zip(synced.parameters(), layer.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return synced


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of all BatchNorm layers in ``module`` as they are while inside.

    Layers in training mode still normalize by the statistics of their batch, and move copies of the running ones.
    Nothing is put back afterwards, because a backward pass must find the buffers unchanged; and nothing is left out,
    because a pass that gradient checkpointing repeats must save what it saved at first, in here or not.
    """
    kept = [
        (layer, name, buffer)
        for layer in batchnorm_layers(module)
        if layer.training
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    for layer, name, buffer in kept:
        setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)
