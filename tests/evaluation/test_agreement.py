"""Crops that are known again, and intervals of paired values."""

import numpy as np
import pytest

from tpssl_hf.evaluation.agreement import paired_difference, reciprocal_ranks


def test_ranks_by_hand() -> None:
    one = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    other = np.array([[2.0, 0.0], [5.0, 1.0], [1.0, 1.0]])
    assert reciprocal_ranks(one, other) == pytest.approx([1.0, 0.5, 1.0])


def test_features_that_are_all_the_same_know_nothing() -> None:
    assert reciprocal_ranks(np.ones((10, 4)), np.ones((10, 4))) == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_features_that_are_not_finite_know_nothing(number: float) -> None:
    one, other = np.eye(4), np.eye(4)
    one[1] = number
    assert reciprocal_ranks(one, other) == pytest.approx([1.0, 0.25, 1.0, 1.0])
    other[:] = number
    assert reciprocal_ranks(one, other) == pytest.approx([0.25] * 4)


def test_noise_is_told_from_a_view_of_the_same() -> None:
    random = np.random.default_rng(0)
    images, noise = random.normal(size=(200, 16)), random.normal(size=(200, 16))
    known = reciprocal_ranks(images, images + 0.5 * noise)
    assert known.mean() > 0.9 and reciprocal_ranks(images, noise).mean() < 0.1
    found = paired_difference(reciprocal_ranks(images, noise), known)
    assert found["low"] > 0.7 and found["mean"] == pytest.approx((found["low"] + found["high"]) / 2)
