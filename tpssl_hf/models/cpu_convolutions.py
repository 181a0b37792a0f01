"""Convolutions that a CPU does faster as matrix products, or in parts, with the same results but for rounding.

oneDNN, which torch asks on a CPU, spends most of a convolution on small maps on bringing weights into its own order,
and has no fast kernel for some gradients of depthwise convolutions. benchmarks/RESULTS.md has the times.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]
SMALL = 4  # the longest side of maps on which convolutions of 2 x 2 and more are products of patches
SMALL_POINTWISE = 14  # likewise of 1 x 1 ones
BLOCK = 3  # side of the depthwise kernels whose weight gradient is fast


def fast_convolutions(device: torch.device) -> AbstractContextManager[object]:
    """Return what makes convolutions faster while it is entered, forward and backward; on a GPU it does nothing.

    Only channels-last maps in float32 or bfloat16 are treated, and of convolutions with dilation only depthwise ones
    without a stride; the others stay torch's. What is recorded inside must be differentiated once only.
    """
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return _FastConvolutions() if device.type == "cpu" and has_onednn else nullcontext()


def laid_out(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) in the layout that :func:`fast_convolutions` treats; on a GPU as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


class _FastConvolutions(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.conv2d``, by a faster way where there is one."""
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    if isinstance(padding, str) or not _is_ours(input, weight, autocast):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if _pair(dilation) != (1, 1):
        if _pair(stride) == (1, 1) and _has_phases(input, weight, _pair(padding), _pair(dilation), groups):
            input = input if autocast is None else input.to(autocast)
            return _conv2d_of_phases(input, weight, bias, _pair(padding), _pair(dilation), groups)
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    way = _faster_way(input, weight, _pair(stride), _pair(padding), groups, autocast or input.dtype)
    if way is None:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if autocast is not None:
        input, weight, bias = input.to(autocast), weight.to(autocast), None if bias is None else bias.to(autocast)
    found: Tensor = way.apply(input, weight, bias, _pair(stride), _pair(padding))
    return found


def _faster_way(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, groups: int, dtype: torch.dtype
) -> type[torch.autograd.Function] | None:
    """Return what convolves faster than torch when it computes in ``dtype``, if anything does."""
    if groups == 1:
        return _Product if _dense_is_product(input, weight, stride, padding) else None
    if not _depthwise_differentiated(input, weight, groups):
        return None
    slow_input = _slow_input(weight, stride, padding, dtype)
    return _Depthwise if slow_input or _slow_weights(input, weight, stride, padding, dtype) else None


def _depthwise_differentiated(input: Tensor, weight: Tensor, groups: int) -> bool:
    differentiated = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    return differentiated and groups == input.shape[1] == weight.shape[0]


def _has_phases(input: Tensor, weight: Tensor, padding: Pair, dilation: Pair, groups: int) -> bool:
    """Whether :func:`_conv2d_of_phases` can make a convolution, and is faster: oneDNN is slow at its gradients."""
    whole = all(padding[n] % dilation[n] == 0 for n in range(2))
    size = _output_size(input, weight, (1, 1), padding, dilation)
    return whole and min(size) > 0 and _depthwise_differentiated(input, weight, groups)


def _conv2d_of_phases(
    input: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """Convolve without dilation: every second pixel (with dilation 2) as an image of its own, then put them together.

    ``padding`` is a multiple of ``dilation``.
    """
    batch, channels, *sides = input.shape
    size = _output_size(input, weight, (1, 1), padding, dilation)
    filled = F.pad(input, (0, -sides[1] % dilation[1], 0, -sides[0] % dilation[0])).permute(0, 2, 3, 1)
    high, wide = (filled.shape[1 + n] // dilation[n] for n in range(2))
    phases = filled.reshape(batch, high, dilation[0], wide, dilation[1], channels).permute(0, 2, 4, 1, 3, 5)
    images = phases.reshape(-1, high, wide, channels).permute(0, 3, 1, 2)
    inner = padding[0] // dilation[0], padding[1] // dilation[1]
    found = _conv2d(images, weight, bias, 1, inner, 1, groups).permute(0, 2, 3, 1)
    high, wide = found.shape[1:3]
    parts = found.reshape(batch, *dilation, high, wide, channels).permute(0, 3, 1, 4, 2, 5)
    whole = parts.reshape(batch, high * dilation[0], wide * dilation[1], channels).permute(0, 3, 1, 2)
    return whole[:, :, : size[0], : size[1]].contiguous(memory_format=torch.channels_last)


def _is_ours(input: Tensor, weight: Tensor, autocast: torch.dtype | None) -> bool:
    channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    kinds = {input.dtype, weight.dtype, autocast or input.dtype}
    return channels_last and input.device.type == "cpu" and kinds <= {torch.float32, torch.bfloat16}


def _pair(value: int | Pair | list[int]) -> Pair:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _output_size(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    reach = [dilation[n] * (weight.shape[2 + n] - 1) + 1 for n in range(2)]  # of a kernel
    high, wide = ((input.shape[2 + n] + 2 * padding[n] - reach[n]) // stride[n] + 1 for n in range(2))
    return high, wide


def _dense_is_product(input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    size = _output_size(input, weight, stride, padding)
    return min(size) > 0 and max(size) <= (SMALL_POINTWISE if weight.shape[2:] == (1, 1) else SMALL)


class _Product(torch.autograd.Function):
    """A convolution as one matrix product with the patches, which are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.settings = stride, padding, bias is not None
        high, wide = _output_size(input, weight, stride, padding)
        rows = F.linear(_patches(input, weight, stride, padding), _as_matrix(weight), bias)
        return rows.view(len(input), high, wide, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, has_bias = ctx.settings
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _from_patches(rows @ _as_matrix(weight), input, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            product = rows.t() @ _patches(input, weight, stride, padding)
            of_weight = product.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        return of_input, of_weight, rows.sum(0) if has_bias else None, None, None


def _as_matrix(weight: Tensor) -> Tensor:
    """Return weights (O, C, h, w) as (O, h·w·C), which is a view of channels-last ones."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _patches_are_pixels(weight: Tensor, stride: Pair, padding: Pair) -> bool:
    return tuple(weight.shape[2:]) == stride == (1, 1) and padding == (0, 0)


def _patches(input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Return what each output of a convolution sees, (N·H·W, h·w·C) for an output of H x W."""
    if _patches_are_pixels(weight, stride, padding):
        return input.permute(0, 2, 3, 1).reshape(-1, input.shape[1])
    padded = _padded(input, padding).permute(0, 2, 3, 1)
    sample, row, column, _ = padded.stride()
    size = (len(input), *_output_size(input, weight, stride, padding), *weight.shape[2:], input.shape[1])
    steps = (sample, row * stride[0], column * stride[1], row, column, 1)
    return padded.as_strided(size, steps).reshape(-1, weight[0].numel())


def _from_patches(patches: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Add up patches (N·H·W, h·w·C) where they were taken from, in the shape of ``input``."""
    batch, channels, *sides = input.shape
    high, wide = _output_size(input, weight, stride, padding)
    if _patches_are_pixels(weight, stride, padding):
        return patches.view(batch, high, wide, channels).permute(0, 3, 1, 2)
    parts = patches.view(batch, high, wide, *weight.shape[2:], channels)
    padded = patches.new_zeros(batch, sides[0] + 2 * padding[0], sides[1] + 2 * padding[1], channels)
    for top in range(weight.shape[2]):
        for left in range(weight.shape[3]):
            padded[:, top :: stride[0], left :: stride[1]][:, :high, :wide] += parts[:, :, :, top, left]
    inner = padded[:, padding[0] : padding[0] + sides[0], padding[1] : padding[1] + sides[1]]
    return inner.permute(0, 3, 1, 2)


def _padded(input: Tensor, padding: Pair) -> Tensor:
    if padding == (0, 0):
        return input
    return F.pad(input, (padding[1], padding[1], padding[0], padding[0])).contiguous(memory_format=torch.channels_last)


class _Depthwise(torch.autograd.Function):
    """torch's depthwise convolution, with the gradients that oneDNN has no fast kernel for made in another way."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.settings = stride, padding, bias is not None
        return torch.conv2d(input, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        stride, padding, has_bias = ctx.settings
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            slow = _slow_input(weight, stride, padding, input.dtype)
            make = _spread_input_gradient if slow else _torch_input_gradient
            of_input = make(gradient, input, weight, stride, padding)
        if ctx.needs_input_grad[1]:
            slow = _slow_weights(input, weight, stride, padding, input.dtype)
            make = _weight_gradient_in_blocks if slow else _torch_weight_gradient
            of_weight = make(gradient, input, weight, stride, padding)
        return of_input, of_weight, gradient.sum((0, 2, 3)) if has_bias else None, None, None


def _slow_input(weight: Tensor, stride: Pair, padding: Pair, dtype: torch.dtype) -> bool:
    """Whether oneDNN's input gradient is slow: in bfloat16 that of strided ones."""
    covers = all(padding[n] < weight.shape[2 + n] for n in range(2))
    return dtype == torch.bfloat16 and max(stride) > 1 and covers


def _slow_weights(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, dtype: torch.dtype) -> bool:
    """Whether oneDNN's weight gradient is slow: of large kernels, and of those larger than the map."""
    sides = weight.shape[2:]
    if min(sides) < BLOCK:
        return False
    larger = any(input.shape[2 + n] < sides[n] for n in range(2))
    small = max(_output_size(input, weight, stride, padding)) <= SMALL
    return larger or (max(sides) > BLOCK and (small or dtype == torch.bfloat16))


def _torch_input_gradient(gradient: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    return _torch_gradients(gradient, input, weight, stride, padding, of_input=True)


def _torch_weight_gradient(gradient: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    return _torch_gradients(gradient, input, weight, stride, padding, of_input=False)


def _torch_gradients(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair, *, of_input: bool
) -> Tensor:
    asked = [of_input, not of_input, False]
    found = torch.ops.aten.convolution_backward(
        gradient, input, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), asked
    )
    one: Tensor = found[0 if of_input else 1]
    return one


def _spread_input_gradient(gradient: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Put zeros between the gradients of a strided convolution, and convolve with the kernels turned around."""
    size = _output_size(input, weight, (1, 1), padding)  # of the same convolution without a stride
    shape = (*gradient.shape[:2], *size)
    spread = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    high, wide = gradient.shape[2:]
    spread[:, :, :: stride[0], :: stride[1]][:, :, :high, :wide] = gradient
    around = [weight.shape[2 + n] - 1 - padding[n] for n in range(2)]
    return torch.conv2d(spread, weight.flip(2, 3), None, 1, around, 1, len(weight))


def _weight_gradient_in_blocks(gradient: Tensor, input: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Put the gradient of kernels together from those of 3 x 3 ones, each of which sees the input a bit further on."""
    padded, found = _padded(input, padding), torch.empty_like(weight)
    high, wide = ((gradient.shape[2 + n] - 1) * stride[n] + BLOCK for n in range(2))
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            seen = padded[:, :, top : top + high, left : left + wide].contiguous(memory_format=torch.channels_last)
            kernel = weight[:, :, top : top + BLOCK, left : left + BLOCK]
            block = _torch_weight_gradient(gradient, seen, kernel, stride, (0, 0))
            found[:, :, top : top + BLOCK, left : left + BLOCK] = block
    return found


def _starts(side: int) -> list[int]:
    """Return where blocks begin that cover a kernel of ``side``, the last ones overlapping."""
    return sorted({min(start, side - BLOCK) for start in range(0, side, BLOCK)})
