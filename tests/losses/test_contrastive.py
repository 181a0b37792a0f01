import math

import pytest
import torch

from tpssl_hf.losses.contrastive import info_nce, negative_cosine, normalised_std, nt_xent


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


def slow_info_nce(queries: torch.Tensor, keys: torch.Tensor, negatives: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        query, key = query / query.norm(), key / key.norm()
        positive = math.exp(float(query @ key) / temperature)
        rest = sum(math.exp(float(query @ row) / temperature) for row in negatives)
        total += -math.log(positive / (positive + rest))
    return total / len(queries)


def test_info_nce_equals_a_loop() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(5, 4), torch.randn(5, 4)
    negatives = torch.nn.functional.normalize(torch.randn(7, 4), dim=1)
    expected = slow_info_nce(queries, keys, negatives, 0.2)
    assert info_nce(queries, keys, negatives, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_gives_gradients_to_queries_only() -> None:
    queries, keys, negatives = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    info_nce(queries, keys, negatives, 0.2).backward()
    assert queries.grad is not None and queries.grad.abs().sum() > 0
    assert keys.grad is None and negatives.grad is None


def slow_nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float) -> float:
    views = [v / v.norm() for v in [*one, *other]]
    count, total = len(one), 0.0
    for i, anchor in enumerate(views):
        j = (i + count) % (2 * count)
        positive = math.exp(float(anchor @ views[j]) / temperature)
        total -= math.log(
            positive / sum(math.exp(float(anchor @ v) / temperature) for k, v in enumerate(views) if k != i)
        )
    return total / len(views)


def test_nt_xent_equals_a_loop_and_shares_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    expected = slow_nt_xent(one, other, 0.5)
    assert nt_xent(one, other, slice(0, 6), 0.5).item() == pytest.approx(expected, rel=1e-5)
    halves = [nt_xent(one, other, rows, 0.5).item() for rows in (slice(0, 3), slice(3, 6))]
    assert sum(halves) / 2 == pytest.approx(expected, rel=1e-5)


def test_nt_xent_compares_an_anchor_with_all_views_but_itself() -> None:
    """With one picture the positive is all there is, and the loss is zero."""
    assert nt_xent(torch.randn(1, 4), torch.randn(1, 4), slice(0, 1), 0.1).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_contrastive_losses_compute_in_float32_under_autocast(dtype: torch.dtype) -> None:
    rows = torch.randn(4, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(rows, rows, slice(0, 4), 0.2).dtype == torch.float32
        assert info_nce(rows, rows, torch.randn(5, 8), 0.2).dtype == torch.float32
