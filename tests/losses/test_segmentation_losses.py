"""Each loss against a loop over pixels."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tpssl_hf.losses.segmentation import (
    confident_share,
    pixel_cross_entropy,
    pixel_entropy,
    squared_consistency,
    weighted_cross_entropy,
)

SHAPE = (2, 4, 3, 5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_labels() -> Tensor:
    labels = torch.randint(0, 4, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    labels[1, 2, 3] = 255
    return labels


def pixels() -> Iterator[tuple[int, int, int]]:
    return ((b, i, j) for b in range(2) for i in range(3) for j in range(5))


def slow_cross_entropy(logits: Tensor, label: int) -> float:
    exponentials = [math.exp(value) for value in logits.tolist()]
    return -math.log(exponentials[label] / sum(exponentials))


def test_cross_entropy_is_the_mean_over_pixels_that_are_not_ignored() -> None:
    logits, labels = random(*SHAPE), some_labels()
    terms = [
        slow_cross_entropy(logits[b, :, i, j], int(labels[b, i, j])) for b, i, j in pixels() if labels[b, i, j] < 9
    ]
    assert len(terms) == 24
    assert pixel_cross_entropy(logits, labels).item() == pytest.approx(sum(terms) / 24, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignoring_all_pixels_is_zero_with_a_gradient_of_zero(dtype: torch.dtype) -> None:
    logits = random(*SHAPE).to(dtype).requires_grad_()
    labels = torch.full((2, 3, 5), 255)
    nothing = torch.zeros(2, 3, 5, dtype=torch.bool)
    losses = [
        pixel_cross_entropy(logits, labels),
        weighted_cross_entropy(logits, labels, torch.ones(2, 3, 5)),
        weighted_cross_entropy(logits, labels, torch.ones(2, 3, 5), nothing),
        pixel_entropy(logits, nothing),
        squared_consistency(logits, random(*SHAPE).softmax(1), nothing, torch.ones(())),
    ]
    for loss in losses:
        assert loss.item() == 0.0 and loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


@pytest.mark.parametrize("counting", [False, True])
def test_weighted_cross_entropy_divides_by_all_or_by_the_counted_pixels(counting: bool) -> None:
    logits, labels, weights = random(*SHAPE), some_labels(), random(2, 3, 5, seed=2).abs().requires_grad_()
    counted = random(2, 3, 5, seed=3) > 0
    total = sum(
        weights[b, i, j].item() * slow_cross_entropy(logits[b, :, i, j], int(labels[b, i, j]))
        for b, i, j in pixels()
        if labels[b, i, j] < 9
    )
    loss = weighted_cross_entropy(logits.requires_grad_(), labels, weights, counted if counting else None)
    assert loss.item() == pytest.approx(total / (int(counted.sum()) if counting else 30), rel=1e-5)
    loss.backward()
    assert weights.grad is None and logits.grad is not None and logits.grad.any()


def test_confidence_is_one_number_for_the_whole_batch() -> None:
    probabilities = (3 * random(*SHAPE)).softmax(dim=1)
    share = confident_share(probabilities.amax(dim=1), 0.8)
    expected = sum(max(probabilities[b, :, i, j].tolist()) >= 0.8 for b, i, j in pixels()) / 30
    assert share.ndim == 0 and share.item() == pytest.approx(expected) and 0 < expected < 1
    assert confident_share(torch.ones(1, 2, 2), 1.0) == 1, "the threshold counts"


def test_consistency_sums_over_classes_and_averages_over_all_pixels() -> None:
    logits, targets, valid = random(*SHAPE), random(*SHAPE, seed=4).softmax(dim=1), random(2, 3, 5, seed=3) > 0
    total = 0.0
    for b, i, j in pixels():
        p = logits[b, :, i, j].softmax(0).tolist()
        if valid[b, i, j]:
            total += sum((x - y) ** 2 for x, y in zip(p, targets[b, :, i, j].tolist(), strict=True))
    targets.requires_grad_()
    loss = squared_consistency(logits.requires_grad_(), targets, valid, torch.tensor(0.3))
    assert loss.item() == pytest.approx(0.3 * total / 30, rel=1e-5)
    loss.backward()
    assert targets.grad is None and logits.grad is not None and logits.grad.any()


def test_entropy_is_one_for_even_predictions_and_zero_for_sure_ones() -> None:
    valid = random(2, 3, 5, seed=3) > 0
    assert pixel_entropy(torch.zeros(SHAPE), valid).item() == pytest.approx(1.0)
    sure = torch.zeros(SHAPE)
    sure[:, 1] = 200.0
    assert pixel_entropy(sure, valid).item() == pytest.approx(0.0, abs=1e-6)
    logits, total = random(*SHAPE), 0.0
    for b, i, j in pixels():
        if valid[b, i, j]:
            total -= sum(p * math.log2(p) for p in logits[b, :, i, j].softmax(0).tolist())
    assert pixel_entropy(logits, valid).item() == pytest.approx(total / int(valid.sum()) / 2, rel=1e-5)
