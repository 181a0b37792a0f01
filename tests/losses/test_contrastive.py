import math

import pytest
import torch

from tpssl_hf.losses.contrastive import negative_cosine, normalised_std


def test_negative_cosine_by_hand() -> None:
    predictions = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    targets = torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert negative_cosine(predictions, targets).item() == pytest.approx(-(24 / 25 + 0.0) / 2)


def test_negative_cosine_is_minus_one_for_equal_directions_and_keeps_bounds() -> None:
    vectors = torch.randn(8, 5)
    assert negative_cosine(vectors, 7.0 * vectors).item() == pytest.approx(-1.0)
    assert negative_cosine(vectors, -vectors).item() == pytest.approx(1.0)


def test_no_gradient_reaches_the_targets() -> None:
    predictions, targets = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    negative_cosine(predictions, targets).backward()
    assert predictions.grad is not None and predictions.grad.abs().sum() > 0
    assert targets.grad is None


def test_negative_cosine_computes_in_float32() -> None:
    assert negative_cosine(torch.randn(4, 3).bfloat16(), torch.randn(4, 3).bfloat16()).dtype == torch.float32


def test_normalised_std_knows_spread_from_collapse() -> None:
    torch.manual_seed(0)
    assert normalised_std(torch.randn(4096, 64)).item() == pytest.approx(1 / math.sqrt(64), rel=0.02)
    assert normalised_std(torch.ones(32, 64)).item() == pytest.approx(0.0, abs=1e-7)
