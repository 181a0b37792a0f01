"""Clustering of features and its agreement with classes (paper, Eq. 8 and 9; Table VII)."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans


def cluster(
    features: np.ndarray, clusters: int, *, seed: int, restarts: int = 10, weights: np.ndarray | None = None
) -> np.ndarray:
    """Assign (N, D) features to ``clusters`` groups by k-means (k-means++, best of ``restarts``); (N,) from 0.

    ``weights`` (N,) say how much each counts; all the same when not given.
    """
    means = KMeans(clusters, n_init=restarts, random_state=seed)
    groups: np.ndarray = means.fit_predict(features, sample_weight=weights)
    return groups.astype(np.int64)


def clustering_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of images in the right cluster when clusters and classes are paired in the best way, in [0, 1].

    Clusters and classes are paired one to one by the Hungarian method on their contingency table, which is Eq. 8 and 9
    of the paper written without its permutation matrix. Where there are more of one than of the other, what stays
    unpaired counts as wrong.

    Args:
        clusters: (N,) int64 cluster numbers from 0.
        labels: (N,) int64 class numbers from 0.

    Raises:
        ValueError: if the two do not have the same length, or have none.
    """
    if clusters.shape != labels.shape or clusters.ndim != 1 or not len(labels):
        raise ValueError(f"clusters {clusters.shape} and labels {labels.shape} must both be (N,), N at least 1.")
    together = np.zeros((int(clusters.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(together, (clusters, labels), 1)
    rows, columns = linear_sum_assignment(together, maximize=True)
    return float(together[rows, columns].sum() / len(labels))
