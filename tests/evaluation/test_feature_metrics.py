import numpy as np
import pytest

from tpssl_hf.evaluation.feature_metrics import (
    alignment,
    effective_rank,
    embedding_std,
    linear_cka,
    neighbor_agreement,
    neighbors,
    uniformity,
)

RANDOM = np.random.default_rng(0)


def rotation(size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]


def with_singular_values(values: list[float], rows: int = 30) -> np.ndarray:
    left = RANDOM.normal(size=(rows, len(values)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]  # centered columns stay centered
    return left * values @ rotation(len(values))


def test_std_is_one_for_spread_features_and_zero_for_a_point() -> None:
    assert embedding_std(RANDOM.normal(size=(2000, 64))) == pytest.approx(1.0, abs=0.01)
    assert embedding_std(np.ones((50, 64))) == pytest.approx(0.0, abs=1e-12)
    assert embedding_std(np.array([[3.0, 0.0], [0.0, 7.0]])) == pytest.approx(0.5 * np.sqrt(2))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_effective_rank_of_equal_singular_values_is_their_number(k: int) -> None:
    features = with_singular_values([2.5] * k + [0.0] * (8 - k))
    assert effective_rank(features) == pytest.approx(k)
    assert effective_rank(1e-4 * features + 1.0) == pytest.approx(k), "neither scale nor common mean count"


def test_effective_rank_by_hand_and_of_constant_features() -> None:
    shares = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(with_singular_values([2.0, 1.0, 1.0])) == pytest.approx(expected)
    assert effective_rank(np.full((20, 5), 0.3, dtype=np.float32)) == 0.0
    assert effective_rank(np.zeros((20, 5))) == 0.0


def test_alignment_by_hand() -> None:
    view = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert alignment(view, 3 * view) == 0.0
    assert alignment(view, -view) == pytest.approx(4.0)
    assert alignment(view, view[::-1]) == pytest.approx(2.0)


def test_uniformity_by_hand_and_against_a_loop() -> None:
    assert uniformity(np.array([[1.0, 0.0], [-5.0, 0.0]])) == pytest.approx(-8.0), "antipodes: log exp(-2 * 4)"
    assert uniformity(np.ones((4, 3))) == pytest.approx(0.0, abs=1e-12)
    features = RANDOM.normal(size=(12, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    terms = [np.exp(-3 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(12) for j in range(12) if i < j]
    assert uniformity(features, t=3) == pytest.approx(np.log(np.mean(terms)))


def test_neighbors_equal_a_loop_and_leave_out_oneself() -> None:
    features = RANDOM.normal(size=(25, 6))
    found = neighbors(features, 4)
    for row in range(25):
        cosines = {
            other: features[row] @ features[other] / np.linalg.norm(features[row]) / np.linalg.norm(features[other])
            for other in range(25)
            if other != row
        }
        assert set(found[row]) == set(sorted(cosines, key=lambda other: -cosines[other])[:4])
    assert neighbors(features[:3], 10).shape == (3, 2), "no more neighbors than there are"


def test_neighbors_are_told_apart_beside_a_large_common_mean() -> None:
    features = RANDOM.normal(size=(40, 6))
    features -= features.mean(axis=1, keepdims=True)  # across the direction of the mean added below
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    near_point = features + 1e4
    assert neighbor_agreement(neighbors(features, 5), neighbors(near_point, 5)) == 1.0


def test_agreement_by_hand() -> None:
    one = np.array([[1, 2], [0, 3]])
    assert neighbor_agreement(one, one[:, ::-1]) == 1.0
    assert neighbor_agreement(one, np.array([[3, 4], [4, 5]])) == 0.0
    assert neighbor_agreement(one, np.array([[1, 4], [0, 3]])) == 0.75


def test_cka_sees_neither_rotation_shift_nor_scale() -> None:
    features = RANDOM.normal(size=(40, 7))
    assert linear_cka(features, 0.01 * features @ rotation(7) + 5.0) == pytest.approx(1.0)
    assert linear_cka(features, np.ones((40, 3))) == 0.0


def test_cka_equals_its_definition_and_is_low_for_strangers() -> None:
    a, b = RANDOM.normal(size=(200, 4)), RANDOM.normal(size=(200, 6))
    centered_a, centered_b = a - a.mean(axis=0), b - b.mean(axis=0)
    squared = [
        np.linalg.norm(left.T @ right) ** 2
        for left, right in ((centered_a, centered_b), (centered_a, centered_a), (centered_b, centered_b))
    ]
    assert linear_cka(a, b) == pytest.approx(squared[0] / np.sqrt(squared[1] * squared[2]))
    assert linear_cka(a, b) < 0.1
