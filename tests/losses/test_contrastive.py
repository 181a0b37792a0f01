import math

import pytest
import torch

from tpssl_hf.losses.contrastive import (
    info_nce,
    nearby_cells,
    negative_cosine,
    normalized_std,
    nt_xent,
    pixpro_consistency,
)


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


def test_normalized_std_knows_spread_from_collapse() -> None:
    torch.manual_seed(0)
    assert normalized_std(torch.randn(4096, 64)).item() == pytest.approx(1 / math.sqrt(64), rel=0.02)
    assert normalized_std(torch.ones(32, 64)).item() == pytest.approx(0.0, abs=1e-7)


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
    """With one image the positive is all there is, and the loss is zero."""
    assert nt_xent(torch.randn(1, 4), torch.randn(1, 4), slice(0, 1), 0.1).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_contrastive_losses_compute_in_float32_under_autocast(dtype: torch.dtype) -> None:
    rows = torch.randn(4, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nt_xent(rows, rows, slice(0, 4), 0.2).dtype == torch.float32
        assert info_nce(rows, rows, torch.randn(5, 8), 0.2).dtype == torch.float32


def random_boxes(count: int, flips: bool = True) -> torch.Tensor:
    corners = torch.rand(count, 2, 2).sort(dim=1).values + torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    boxes = corners.flatten(1) / 1.2
    mirrored = (torch.rand(count) < 0.5) & flips
    return torch.where(mirrored[:, None], boxes[:, [2, 1, 0, 3]], boxes)


def slow_nearby(box: list[float], other: list[float], height: int, width: int, threshold: float) -> list[list[bool]]:
    def cells(x0: float, y0: float, x1: float, y1: float) -> tuple[list[tuple[float, float]], float]:
        wide, high = (x1 - x0) / width, (y1 - y0) / height
        centers = [(x0 + (c + 0.5) * wide, y0 + (r + 0.5) * high) for r in range(height) for c in range(width)]
        return centers, math.sqrt(wide**2 + high**2)

    (ours, diagonal), (theirs, other_diagonal) = cells(*box), cells(*other)
    return [[math.dist(p, q) / max(diagonal, other_diagonal) < threshold for q in theirs] for p in ours]


@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_nearby_cells_equal_a_loop(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = random_boxes(20), random_boxes(20)
    near = nearby_cells(ours, theirs, size, 0.7)
    assert near.any() and not near.flatten(1).any(dim=1).all(), "some share cells and some do not"
    for row, (box, other) in enumerate(zip(ours.tolist(), theirs.tolist(), strict=True)):
        assert near[row].tolist() == slow_nearby(box, other, *size, 0.7)


def test_a_cell_of_identical_crops_is_near_itself_only() -> None:
    """Square cells: the next center is 1/√2 = 0.707 diagonals away."""
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.0, 0.0, 1.0, 1.0], [0.9, 0.1, 0.3, 0.7]])
    near = nearby_cells(boxes, boxes, (7, 7), 0.7)
    assert torch.equal(near, torch.eye(49, dtype=torch.bool).expand(3, 49, 49))
    assert nearby_cells(boxes, boxes, (7, 7), 0.72)[0].sum() == 49 + 2 * 2 * 7 * 6


def test_a_mirrored_crop_matches_mirrored_columns() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7]])
    near = nearby_cells(boxes, boxes[:, [2, 1, 0, 3]], (5, 5), 0.7)[0].view(5, 5, 5, 5)
    for row in range(5):
        for column in range(5):
            assert near[row, column].nonzero().tolist() == [[row, 4 - column]]


def slow_consistency(predictions: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, skip: bool) -> float:
    losses = []
    for prediction, target, weight in zip(predictions.flatten(2), targets.flatten(2), weights, strict=True):
        total, weighted = 0.0, 0.0
        for i in range(weight.shape[0]):
            for j in range(weight.shape[1]):
                p, t = prediction[:, i], target[:, j]
                total += float(weight[i, j])
                weighted += float(weight[i, j]) * float(p @ t / (p.norm() * t.norm()))
        if total or not skip:
            losses.append(-weighted / (total + 1e-6))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("empty_pairs", ["count", "skip"])
def test_pixpro_consistency_equals_a_double_loop(empty_pairs: str) -> None:
    torch.manual_seed(0)
    predictions, targets = torch.randn(4, 6, 3, 2), torch.randn(4, 6, 3, 2)
    weights = torch.rand(4, 6, 6) * (torch.rand(4, 6, 6) < 0.3)
    weights[2] = 0.0  # one image without a pair
    expected = slow_consistency(predictions, targets, weights, skip=empty_pairs == "skip")
    assert pixpro_consistency(predictions, targets, weights, empty_pairs).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("empty_pairs", ["count", "skip"])
def test_pixpro_consistency_without_any_pair_is_zero_with_zero_gradients(empty_pairs: str) -> None:
    predictions = torch.zeros(2, 3, 2, 2, requires_grad=True)  # what unwarping leaves outside: nothing
    loss = pixpro_consistency(predictions, torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 4), empty_pairs)
    loss.backward()
    assert loss == 0 and predictions.grad is not None and (predictions.grad == 0).all()


def test_pixpro_consistency_gives_no_gradient_to_targets_and_computes_in_float32() -> None:
    predictions, targets = (torch.randn(2, 8, 2, 2).bfloat16().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pixpro_consistency(predictions, targets, torch.ones(2, 4, 4), "count")
    assert loss.dtype == torch.float32
    loss.backward()
    assert predictions.grad is not None and predictions.grad.abs().sum() > 0 and targets.grad is None
