from itertools import permutations

import numpy as np
import pytest

from tpssl_hf.evaluation.clustering import cluster, clustering_accuracy


def best_of_all_pairings(clusters: np.ndarray, labels: np.ndarray, count: int) -> float:
    return max(float((np.array(names)[clusters] == labels).mean()) for names in permutations(range(count)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_equals_the_best_of_all_pairings_tried_one_by_one(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    clusters, labels = random.integers(0, classes, 40), random.integers(0, classes, 40)
    assert clustering_accuracy(clusters, labels) == pytest.approx(best_of_all_pairings(clusters, labels, classes))


def test_names_of_clusters_do_not_matter() -> None:
    labels = np.repeat(np.arange(4), 10)
    assert clustering_accuracy((labels + 1) % 4, labels) == 1.0


def test_a_cluster_too_many_counts_as_wrong() -> None:
    assert clustering_accuracy(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])) == 0.75


def test_a_class_without_a_cluster_counts_as_wrong() -> None:
    assert clustering_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 2])) == 0.5


def test_nothing_to_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        clustering_accuracy(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


def test_finds_groups_that_lie_apart() -> None:
    labels = np.repeat(np.arange(3), 20)
    features = np.eye(3)[labels] * 10 + np.random.default_rng(0).normal(size=(60, 3))
    assert clustering_accuracy(cluster(features, 3, seed=0), labels) == 1.0


def test_a_seed_fixes_the_clusters() -> None:
    features = np.random.default_rng(0).normal(size=(50, 4))
    assert np.array_equal(cluster(features, 5, seed=3), cluster(features, 5, seed=3))
