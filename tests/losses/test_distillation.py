import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpssl_hf.losses.distillation import relational_divergence


def drawn(rows: int, seed: int, features: int = 5) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_it_is_the_divergence_of_softmaxed_cosines_image_by_image() -> None:
    projections, targets, keys = drawn(3, 0), drawn(3, 1), F.normalize(drawn(4, 2), dim=1)
    expected = 0.0
    for z, t in zip(projections, targets, strict=True):
        q, p = (
            softmax([F.cosine_similarity(vector, key, dim=0).item() / temperature for key in keys])
            for vector, temperature in ((z, 0.3), (t, 0.2))
        )
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    found = relational_divergence(projections, targets, keys, 0.3, 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_it_is_0_only_where_relations_are_the_same_and_lengths_do_not_matter() -> None:
    targets, keys = drawn(4, 0), F.normalize(drawn(6, 1), dim=1)
    same = relational_divergence(3.0 * targets, targets, keys, 0.1, 0.1)
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    assert relational_divergence(targets.flip(0), targets, keys, 0.1, 0.1) > 0.1


def test_no_gradient_reaches_the_teacher() -> None:
    projections, targets, keys = (drawn(4, seed).requires_grad_() for seed in range(3))
    relational_divergence(projections, targets, keys, 0.1, 0.05).backward()
    assert projections.grad is not None and targets.grad is None and keys.grad is None
