import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpssl_hf.losses.semi_supervised import (
    class_fairness,
    class_group_contrast,
    class_membership,
    linear_ramp,
    masked_cross_entropy,
    masked_divergence,
    mean_entropy,
    probability_distance,
    sharpen,
)


def test_the_ramp_rises_to_its_end_and_stays() -> None:
    assert [linear_ramp(p, 0.4) for p in (0.0, 0.1, 0.4, 1.0)] == [0.0, pytest.approx(0.25), 1.0, 1.0]
    assert linear_ramp(0.0, 0.0) == 1.0


def test_sharpening_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    torch.testing.assert_close(sharpen(logits, 1.0), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(sharpen(logits, 0.5), torch.tensor([[0.9, 0.1]]))


def test_masked_cross_entropy_divides_by_the_whole_batch() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, 0.0], [5.0, -5.0]])
    labels, weights = torch.tensor([1, 0, 0, 1]), torch.tensor([1.0, 0.5, 0.0, 0.0])
    expected = (1.0 * math.log(4.0) + 0.5 * math.log(2.0)) / 4
    assert masked_cross_entropy(logits, labels, weights).item() == pytest.approx(expected)


def slow_divergence(targets: Tensor, logits: Tensor, weights: Tensor) -> float:
    total = 0.0
    for target, row, weight in zip(targets.tolist(), logits.tolist(), weights.tolist(), strict=True):
        norm = sum(math.exp(v) for v in row)
        total += weight * sum(t * math.log(t / (math.exp(v) / norm)) for t, v in zip(target, row, strict=True) if t)
    return total / len(logits)


def test_divergence_equals_a_loop_and_takes_targets_of_zero() -> None:
    torch.manual_seed(0)
    targets, logits = torch.randn(5, 3).softmax(1), torch.randn(5, 3, requires_grad=True)
    targets[0] = torch.tensor([1.0, 0.0, 0.0])
    weights = torch.tensor([1.0, 0.0, 1.0, 0.25, 1.0])
    loss = masked_divergence(targets, logits, weights)
    assert loss.item() == pytest.approx(slow_divergence(targets, logits.detach(), weights), rel=1e-5)
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad[1].abs().sum() == 0
    assert masked_divergence(logits.softmax(1), logits, weights).item() == pytest.approx(0.0, abs=1e-6)


def test_entropy_by_hand_and_with_a_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, -100.0]], requires_grad=True)
    entropy = mean_entropy(logits)
    assert entropy.item() == pytest.approx(math.log(2.0) / 2)
    moving = torch.tensor([[1.0, 0.0]], requires_grad=True)
    mean_entropy(moving).backward()
    assert moving.grad is not None and moving.grad[0, 0] < 0, "less entropy by a larger maximum"


def test_distance_is_a_mean_over_classes() -> None:
    logits, targets = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    assert probability_distance(logits, targets).item() == pytest.approx(0.25)


def slow_contrast(queries: Tensor, keys: Tensor, labels: Tensor, queue: Tensor, temperature: float) -> float:
    total = 0.0
    for query, key, label in zip(queries, keys, labels.tolist(), strict=True):
        group = [key, *queue[label]]
        others = [row for c in range(len(queue)) if c != label for row in queue[c]]
        values = [math.exp(float(query @ row) / temperature) for row in group + others]
        share = 1.0 / len(group)
        total += sum(share * math.log(share / (v / sum(values))) for v in values[: len(group)])
    return total / len(queries)


def test_contrast_equals_a_loop() -> None:
    torch.manual_seed(0)
    queries, keys = F.normalize(torch.randn(6, 4), dim=1), F.normalize(torch.randn(6, 4), dim=1)
    queue, labels = F.normalize(torch.randn(3, 5, 4), dim=2), torch.tensor([0, 2, 2, 1, 0, 2])
    expected = slow_contrast(queries, keys, labels, queue, 0.3)
    assert class_group_contrast(queries, keys, labels, queue, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_with_one_key_in_each_of_two_classes_by_hand() -> None:
    """Similarities 1 (own key), 0 (its class), -1 (the other class) at temperature 1."""
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[[0.0, 1.0]], [[-1.0, 0.0]]])
    total = math.e + 1.0 + 1.0 / math.e
    p_own, p_class = math.e / total, 1.0 / total
    expected = 0.5 * math.log(0.5 / p_own) + 0.5 * math.log(0.5 / p_class)
    assert class_group_contrast(query, key, torch.tensor([0]), queue, 1.0).item() == pytest.approx(expected)
    swapped = class_group_contrast(query, key, torch.tensor([1]), queue, 1.0).item()
    assert swapped == pytest.approx(0.5 * math.log(0.5 / p_own) + 0.5 * math.log(0.5 * math.e * total))


def test_contrast_gives_gradients_to_queries_only() -> None:
    queries, keys, queue = (torch.randn(s, requires_grad=True) for s in ((2, 4), (2, 4), (3, 2, 4)))
    class_group_contrast(queries, keys, torch.tensor([0, 1]), queue, 0.5).backward()
    assert queries.grad is not None and queries.grad.abs().sum() > 0
    assert keys.grad is None and queue.grad is None


def test_membership_by_hand() -> None:
    assert class_membership(torch.tensor([2, 0]), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


def slow_fairness(logits: Tensor, weights: Tensor, expected: Tensor, histogram: Tensor) -> float:
    rows = [row.softmax(0).tolist() for row, w in zip(logits, weights.tolist(), strict=True) if w]
    classes = logits.shape[1]
    if not rows:
        return 0.0
    named = [row.index(max(row)) for row in rows]
    found = []
    for c in range(classes):
        share = named.count(c) / len(rows)
        found.append(sum(row[c] for row in rows) / len(rows) / share if share else 0.0)
    wanted = [float(e) / float(h) if h else 0.0 for e, h in zip(expected, histogram, strict=True)]
    return sum(w / sum(wanted) * math.log(f / sum(found) + 1e-12) for w, f in zip(wanted, found, strict=True))


@pytest.mark.parametrize("accepted", [[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]])
def test_fairness_equals_a_loop(accepted: list[int]) -> None:
    torch.manual_seed(1)
    logits, weights = 2.0 * torch.randn(6, 3), torch.tensor(accepted).float()
    expected, histogram = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.6, 0.4, 0.0])
    wanted = slow_fairness(logits, weights, expected, histogram)
    assert class_fairness(logits, weights, expected, histogram).item() == pytest.approx(wanted, rel=1e-4)


def test_fairness_of_nothing_accepted_is_zero_with_finite_gradients() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    uniform = torch.full((3,), 1 / 3)
    loss = class_fairness(logits, torch.zeros(4), uniform, uniform)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and (logits.grad == 0).all()


def test_everything_is_computed_in_float32_under_autocast() -> None:
    logits, labels, ones = torch.randn(4, 3).bfloat16(), torch.tensor([0, 1, 2, 0]), torch.ones(4)
    rows = F.normalize(torch.randn(4, 8), dim=1)
    queue = F.normalize(torch.randn(3, 2, 8), dim=2)
    outside = class_group_contrast(rows, rows, labels, queue, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(class_group_contrast(rows, rows, labels, queue, 0.1), outside)
        for value in (
            masked_cross_entropy(logits, labels, ones),
            masked_divergence(sharpen(logits, 0.5), logits, ones),
            mean_entropy(logits),
            probability_distance(logits, logits),
            class_fairness(logits, ones, torch.ones(3), torch.ones(3)),
        ):
            assert value.dtype == torch.float32
