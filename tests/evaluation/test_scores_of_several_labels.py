"""Scores of several labels an image, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

from tpssl_hf.evaluation.fitted_head import fit_head
from tpssl_hf.evaluation.multilabel import (
    average_precisions,
    choose_thresholds,
    difference_of_precision,
    mean_average_precision,
    multilabel_scores,
    sigmoid,
)


def some(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties and labels, a sixth of them unknown."""
    random = np.random.default_rng(seed)
    labels = (random.random((count, 3)) < (0.5, 0.2, 0.7)).astype(np.int64)
    scores = np.clip((labels + random.normal(0, 1, labels.shape)) / 3 + 0.3, 0.01, 0.99).round(2)
    labels[random.random(labels.shape) < 1 / 6] = -1
    return scores, labels


def test_average_precision_is_that_of_scikit_learn_with_ties() -> None:
    scores, labels = some()
    known = [labels[:, k] >= 0 for k in range(3)]
    expected = [average_precision_score(labels[known[k], k], scores[known[k], k]) for k in range(3)]
    assert average_precisions(scores, labels) == pytest.approx(expected)
    assert mean_average_precision(scores, labels) == pytest.approx(np.mean(expected))


def test_average_precision_by_hand_and_of_labels_that_tell_nothing() -> None:
    labels = np.array([[1, 1, 0, -1], [0, 1, 0, -1], [1, 1, 0, 1], [0, 1, 0, 0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.1]]) * np.ones(4)
    assert average_precisions(scores, labels) == [pytest.approx((1 + 2 / 3) / 2), None, None, 1.0]
    assert mean_average_precision(scores[:, 1:3], labels[:, 1:3]) is None


def test_scores_that_are_not_finite_come_last() -> None:
    labels = np.array([[1], [0], [0], [1]])
    assert average_precisions(np.array([[0.2], [0.1], [np.nan], [np.nan]]), labels) == [pytest.approx((1 + 0.5) / 2)]
    assert average_precisions(np.full((4, 1), np.nan), labels) == [pytest.approx(0.5)]


def test_scores_at_thresholds_are_those_of_scikit_learn() -> None:
    scores, labels = some(seed=1)
    thresholds = np.array([0.4, 0.5, 0.6])
    found = multilabel_scores(scores, labels, thresholds)
    known = [labels[:, k] >= 0 for k in range(3)]
    expected = [f1_score(labels[known[k], k], scores[known[k], k] >= thresholds[k]) for k in range(3)]
    assert found["per_label_f1"] == pytest.approx(expected) and found["macro_f1"] == pytest.approx(np.mean(expected))
    shares = [(labels[known[k], k] == 1).mean() for k in range(3)]
    assert found["chance_mean_average_precision"] == pytest.approx(np.mean(shares))


def test_thresholds_have_the_highest_f1_of_all() -> None:
    scores, labels = some(seed=2)
    scores = scores**3  # as of a network that doubts everything
    thresholds = choose_thresholds(scores, labels)
    for label, threshold in enumerate(thresholds):
        known = labels[:, label] >= 0
        having, own = labels[known, label], scores[known, label]
        best = max(f1_score(having, own >= value, zero_division=0) for value in np.linspace(0.005, 0.995, 100) ** 3)
        assert f1_score(having, own >= threshold) == pytest.approx(best)
    assert (thresholds < 0.4).all()


def test_a_threshold_lies_between_two_images_or_at_a_half() -> None:
    labels = np.array([[1, 1, -1, 1], [1, 1, -1, 1], [0, 1, -1, 0], [0, 1, -1, 0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.1]]) * np.ones(4)
    scores[:, 3] = [0.9, 0.8, 0.2, 0.1]
    many = choose_thresholds(np.repeat(scores, 10, axis=0), np.repeat(labels, 10, axis=0))
    assert many.tolist() == [0.75, 0.5, 0.5, 0.5]


def test_a_threshold_that_is_better_by_luck_is_not_taken() -> None:
    scores = np.array([*[0.9] * 10, *[0.1] * 10, 0.45, 0.47])[:, None]
    labels = np.array([*[1] * 10, *[0] * 10, 1, 0])[:, None]
    at_half, at_best = ((scores >= value)[:, 0] for value in (0.5, 0.275))
    assert f1_score(labels[:, 0], at_best) > f1_score(labels[:, 0], at_half)
    assert choose_thresholds(scores, labels).tolist() == [0.5]


def test_a_difference_is_sure_of_itself_with_many_images() -> None:
    scores, labels = some(400, seed=3)
    noise = np.random.default_rng(4).normal(0, 1, scores.shape)
    found = difference_of_precision(scores + noise, scores, labels)
    assert found["mean"] == pytest.approx(
        mean_average_precision(scores, labels) - mean_average_precision(scores + noise, labels)  # type: ignore[operator]
    )
    assert 0 < found["low"] < found["mean"] < found["high"] and found["questions"] == 400
    fewer = difference_of_precision((scores + noise)[:40], scores[:40], labels[:40])
    assert fewer["standard_error"] > 2 * found["standard_error"]
    assert difference_of_precision(scores, scores, labels)["high"] == 0


def test_sigmoid_does_not_overflow() -> None:
    values = np.array([-1000.0, -2.0, 0.0, 2.0, 1000.0])
    assert sigmoid(values) == pytest.approx(torch.tensor(values).sigmoid().numpy())


def test_a_head_of_several_labels_has_a_regression_for_each() -> None:
    random = np.random.default_rng(5)
    features = random.normal(size=(60, 8)).astype(np.float32)
    labels = (features[:, :3] + random.normal(size=(60, 3)) > 0).astype(np.int64)
    labels[:20, 1], labels[:, 2] = -1, 1
    head = nn.Linear(8, 3)
    before = head.weight[2].clone()
    fit_head(head, features, labels)
    scale = np.sqrt((features.astype(np.float64) ** 2).mean())
    with torch.no_grad():
        logits = head(torch.from_numpy(features)).numpy()
    for label, rows in ((0, slice(0, 60)), (1, slice(20, 60))):
        alone = LogisticRegression(C=1.0, max_iter=2000).fit(features[rows] / scale, labels[rows, label])
        assert logits[:, label] == pytest.approx(alone.decision_function(features / scale), abs=1e-3)
    assert torch.equal(head.weight[2], before)  # everybody has that label
