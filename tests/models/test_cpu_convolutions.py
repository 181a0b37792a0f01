from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpssl_hf.models import cpu_convolutions
from tpssl_hf.models.cpu_convolutions import fast_convolutions

CPU, LAST = torch.device("cpu"), torch.channels_last
DENSE = {  # channels, outputs, side, kernel, stride, padding
    "3 x 3 on 2 x 2": (6, 5, 2, 3, 1, 1),
    "3 x 3 on 1 x 1": (6, 5, 1, 3, 1, 1),
    "strided to 4 x 4": (6, 5, 7, 3, 2, 1),
    "strided, last column unseen": (6, 5, 8, 3, 2, 0),
    "1 x 1": (6, 5, 7, 1, 1, 0),
    "1 x 1, strided": (6, 5, 8, 1, 2, 0),
    "1 x 1, padded": (6, 5, 3, 1, 1, 1),
}
DEPTHWISE = {  # channels, side, kernel, stride, padding, and where a gradient is slow
    "5 x 5 on 2 x 2": (6, 2, 5, 1, 2, ("fp32", "bf16")),
    "3 x 3 on 2 x 2": (6, 2, 3, 1, 1, ("fp32", "bf16")),
    "5 x 5 on 3 x 3": (6, 3, 5, 1, 2, ("fp32", "bf16")),
    "5 x 5, strided": (6, 6, 5, 2, 0, ("fp32", "bf16")),
    "7 x 7 on 8 x 8": (6, 8, 7, 1, 3, ("bf16",)),
    "4 x 4 on 9 x 9": (6, 9, 4, 1, 1, ("bf16",)),
    "3 x 3, strided": (6, 8, 3, 2, 1, ("bf16",)),
    "3 x 3, strided, some unseen": (6, 8, 3, 2, 0, ("bf16",)),
    "2 x 2, strided by 3": (6, 9, 2, 3, 0, ("bf16",)),
}


def outcome(layer: nn.Conv2d, images: Tensor, *, fast: bool, autocast: bool = False) -> list[Tensor]:
    """Return outputs and gradients of images and parameters."""
    layer.zero_grad()
    shown = images.clone(memory_format=torch.preserve_format).requires_grad_()
    with fast_convolutions(CPU if fast else torch.device("meta")):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            seen = layer(shown)
        weights = torch.linspace(-1, 1, seen.numel()).view_as(seen)
        (seen.float() * weights).sum().backward()
    return [seen.detach(), shown.grad, *(p.grad for p in layer.parameters())]


def compare(
    layer: nn.Conv2d, images: Tensor, monkeypatch: pytest.MonkeyPatch, way: str, precisions: tuple[str, ...]
) -> None:
    taken = []
    holder, name = (cpu_convolutions, way) if way == "_conv2d_of_phases" else (getattr(cpu_convolutions, way), "apply")
    other = getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *a: taken.append(way) or other(*a))
    layer, images = layer.to(memory_format=LAST), images.contiguous(memory_format=LAST)
    for precision in precisions:
        autocast, tolerance = precision == "bf16", 1e-4 if precision == "fp32" else 3e-2
        expected, found = (outcome(layer, images, fast=fast, autocast=autocast) for fast in (False, True))
        for one, other_one in zip(expected, found, strict=True):
            assert one.dtype == other_one.dtype and one.shape == other_one.shape
            scale = one.float().abs().max().clamp(min=1e-6)
            assert float(((one.float() - other_one.float()) / scale).abs().max()) < tolerance
    assert taken == [way] * len(precisions)


@pytest.mark.parametrize("case", DENSE)
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_patches_is_a_convolution(case: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    channels, outputs, side, kernel, stride, padding = DENSE[case]
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, bias=bias)
    compare(layer, torch.randn(3, channels, side, side), monkeypatch, "_Product", ("fp32", "bf16"))


@pytest.mark.parametrize("case", DEPTHWISE)
def test_a_depthwise_convolution_keeps_its_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    channels, side, kernel, stride, padding, slow = DEPTHWISE[case]
    layer = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels)
    compare(layer, torch.randn(3, channels, side, side + 1), monkeypatch, "_Depthwise", slow)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "side"),
    [(5, 4, 2, 8), (3, 2, 2, 8), (3, 2, 2, 9), (3, 6, 3, 8), (3, 0, 2, 7), (3, (4, 3), (4, 3), 5), (5, 2, 2, 8)],
)
def test_a_dilated_depthwise_convolution_is_one_of_each_phase(
    kernel: int, padding: Any, dilation: Any, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6)
    compare(layer, torch.randn(3, 6, side, side + 1), monkeypatch, "_conv2d_of_phases", ("fp32", "bf16"))


@pytest.mark.parametrize(
    ("layer", "side", "layout"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 8, LAST),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 8, LAST),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), 4, LAST),
        (nn.Conv2d(4, 4, 3, padding=1, dilation=2, groups=4), 8, LAST),
        (nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2, groups=4), 8, LAST),
        (nn.Conv2d(4, 4, 3, padding="same"), 4, LAST),
        (nn.Conv2d(4, 8, 3, groups=2), 4, LAST),
        (nn.Conv2d(4, 4, 3, padding=1), 4, torch.contiguous_format),
    ],
)
def test_others_stay_torch_s(
    layer: nn.Conv2d, side: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("_Product", "_Depthwise", "_conv2d_of_phases"):
        monkeypatch.setattr(cpu_convolutions, way, None)
    images = torch.randn(2, 4, side, side).contiguous(memory_format=layout)
    for one, other in zip(*(outcome(layer, images, fast=fast) for fast in (False, True)), strict=True):
        assert torch.equal(one, other)


def test_a_bare_forward_pass_needs_no_gradient() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=LAST)
    images = torch.randn(2, 4, 2, 2).contiguous(memory_format=LAST)
    with torch.inference_mode():
        expected = layer(images)
        with fast_convolutions(CPU):
            found = layer(images)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=LAST)
    images = torch.randn(2, 4, 2, 2).contiguous(memory_format=LAST).requires_grad_()
    with fast_convolutions(CPU):
        (first,) = torch.autograd.grad(layer(images).square().sum(), images, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
