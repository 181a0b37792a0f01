"""Which images to label next: typical ones of each cluster, ones that cover the others, or ones that are in doubt.

All of them work on features of length one and give the same answer for the same seed. Distances are Euclidean, between
such features: 0 to 2.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.clustering import cluster

NEIGHBORS = 20  # Hacohen et al., 2022
MOST_CLUSTERS, FEWEST_MEMBERS = 500, 5  # likewise, their code
MOST_DOUBTFUL = 10  # times as many images as are asked for are clustered; ours
DUPLICATE = 0.1  # of the median distance of two images: nearer ones tell nothing new; ours
MOST_CANDIDATES = 10_000  # of the coverage, whose memory grows with their square; a random subset of more
CHUNK = 1024


@dataclass(frozen=True)
class Known:
    """Images that are labeled already.

    Attributes:
        indices: (L,) int64, which rows of the features.
        labels: (L,) int64, class numbers from 0.
        classes: how many classes there are, those without a label included.
    """

    indices: np.ndarray
    labels: np.ndarray
    classes: int


NONE_KNOWN = Known(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 0)


def choose_images(
    features: np.ndarray,
    count: int,
    *,
    strategy: str,
    seed: int,
    known: Known = NONE_KNOWN,
    doubt: np.ndarray | None = None,
) -> np.ndarray:
    """Choose ``count`` images to label that are not labeled yet.

    Args:
        features: (N, D) of all images.
        count: how many.
        strategy: ``typical``, ``coverage``, ``doubtful`` or ``random``; see the functions of these names.
        seed: of k-means and draws.
        known: what is labeled already.
        doubt: (N,) float32 in [0, 1], how doubtful each image is to a classifier; only ``doubtful`` needs it.

    Returns:
        (count,) int64 rows of ``features``, the most wanted first.

    Raises:
        InputError: for a count below one, or above the number of images without a label.
        ValueError: for ``doubtful`` without ``doubt``.
    """
    free = len(features) - len(known.indices)
    if not 1 <= count <= free:
        raise InputError(f"count {count}: give a number from 1 to {free:,}, the images that have no label yet.")
    if strategy == "random":
        unlabeled = np.setdiff1d(np.arange(len(features)), known.indices)
        chosen: np.ndarray = np.random.default_rng(seed).permutation(unlabeled)[:count]
        return chosen
    unit = (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    if strategy == "doubtful":
        if doubt is None:
            raise ValueError("the strategy doubtful needs the doubt of each image.")
        return doubtful(unit, count, seed, known, doubt)
    return STRATEGIES[strategy](unit, count, seed, known)


def typical(unit: np.ndarray, count: int, seed: int, known: Known) -> np.ndarray:
    """TypiClust (Hacohen et al., 2022): the most typical image of each of the largest clusters without label.

    k-means makes as many clusters as there will be labels, 500 at most. Next comes an image of the cluster that holds
    fewest labeled or chosen images; of several such clusters, one whose class has been given least, and of those
    the largest; clusters of less than five images come last. Typical is what lies nearest, on average, to its 20
    nearest neighbors of the same cluster. Near duplicates of labeled or chosen images are passed over while there
    is anything else. The class of a cluster is that of the nearest mean of labeled images (ours: the paper leaves
    classes out).

    Args:
        unit: (N, D) features of length one.
        count: how many to choose.
        seed: of k-means.
        known: what is labeled already.

    Returns:
        (count,) int64 rows.
    """
    wanted = min(count + len(known.indices), MOST_CLUSTERS, len(unit))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters: some stay empty
        groups = cluster(unit, wanted, seed=seed)
    sizes, used = np.bincount(groups, minlength=wanted), np.bincount(groups[known.indices], minlength=wanted)
    class_of = _classes_of_clusters(unit, groups, wanted, known)
    given = np.bincount(known.labels, minlength=max(1, known.classes))
    members = [_by_typicality(unit, np.flatnonzero(groups == number)) for number in range(wanted)]
    near = _near_duplicates(unit, seed)
    taken, alike = np.zeros((2, len(unit)), dtype=bool)  # labeled or chosen; and what hardly differs from those
    taken[known.indices] = True
    for index in known.indices.tolist():
        alike |= near(index)
    chosen: list[int] = []
    while len(chosen) < count:
        turn = np.lexsort((-sizes, given[class_of], used, sizes < FEWEST_MEMBERS))
        candidates = (rows[~(taken | alike)[rows]] for rows in (members[number] for number in turn))
        row = next((int(rows[0]) for rows in candidates if len(rows)), None)
        if row is None:  # nothing but near duplicates is left: allow them again, none twice
            alike[:] = False
            continue
        chosen.append(row)
        taken[row] = True
        alike |= near(row)
        used[groups[row]] += 1
        given[class_of[groups[row]]] += 1
    return np.array(chosen, dtype=np.int64)


def coverage(unit: np.ndarray, count: int, seed: int, known: Known) -> np.ndarray:
    """ProbCover (Yehuda et al., 2022): next comes the image whose ball holds most images outside all balls.

    Labeled images have their balls already. The radius is ours: such that a ball holds, on average, as many
    images as each label must stand for, N / (count + L); the paper's needs the number of classes. Where every
    image is covered, the one farthest from all balls' centers comes next.

    Args:
        unit: (N, D) features of length one; of more than 10,000 a random subset is considered.
        count: how many to choose.
        seed: of the subset.
        known: what is labeled already.

    Returns:
        (count,) int64 rows.
    """
    order = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(unit)), known.indices))
    candidates = np.sort(order[: max(MOST_CANDIDATES, count)])
    points, centers = unit[candidates], unit[known.indices]
    fraction = 1.0 / (count + len(centers))
    radius = float(np.quantile(_distances(points, points[_sample(len(points), seed)]), fraction))
    inside = np.concatenate([_distances(part, points) <= radius for part in _parts(points)])
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for part in _parts(centers):
        nearest = np.minimum(nearest, _distances(part, points).min(axis=0))
    gains = inside[:, nearest > radius].sum(axis=1)
    chosen: list[int] = []
    for _ in range(count):
        best = int(np.lexsort((-nearest, -gains))[0])
        chosen.append(best)
        distances = _distances(points[best : best + 1], points)[0]
        newly = (nearest > radius) & (distances <= radius)
        gains = gains - inside[:, newly].sum(axis=1)
        gains[best] = -1  # never again
        nearest = np.minimum(nearest, distances)
    rows: np.ndarray = candidates[chosen]
    return rows


def doubtful(unit: np.ndarray, count: int, seed: int, known: Known, doubt: np.ndarray) -> np.ndarray:
    """Choose different ones among the images in doubt (Zhdanov, 2019, arXiv 1901.05954).

    The ten times as many images that are most in doubt fall into as many clusters as are asked for, by k-means in
    which each counts by its doubt; of each cluster the one nearest to its mean is taken. Near duplicates of labeled
    images are passed over while there is anything else.

    Args:
        unit: (N, D) features of length one.
        count: how many to choose.
        seed: of k-means.
        known: what is labeled already.
        doubt: (N,) in [0, 1].

    Returns:
        (count,) int64 rows, the most doubtful first.
    """
    near, alike = _near_duplicates(unit, seed), np.zeros(len(unit), dtype=bool)
    for index in known.indices.tolist():
        alike |= near(index)
    free = np.setdiff1d(np.arange(len(unit)), known.indices)
    new = free[~alike[free]]
    free = new if len(new) >= count else free
    candidates = free[np.argsort(-doubt[free], kind="stable")][: MOST_DOUBTFUL * count]
    weights = doubt[candidates].astype(np.float64) + 1e-6  # k-means wants some that is above 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters: some stay empty
        groups = cluster(unit[candidates], count, seed=seed, restarts=3, weights=weights)
    chosen = []
    for number in np.unique(groups):
        own = np.flatnonzero(groups == number)
        mean = np.average(unit[candidates[own]], axis=0, weights=weights[own])[None].astype(np.float32)
        chosen.append(int(candidates[own[_distances(mean, unit[candidates[own]])[0].argmin()]]))
    rest = candidates[~np.isin(candidates, chosen)][: count - len(chosen)]
    rows = np.array([*chosen, *rest], dtype=np.int64)
    ordered: np.ndarray = rows[np.argsort(-doubt[rows], kind="stable")]
    return ordered


STRATEGIES: dict[str, Callable[[np.ndarray, int, int, Known], np.ndarray]] = {
    "typical": typical,
    "coverage": coverage,
}


def _classes_of_clusters(unit: np.ndarray, groups: np.ndarray, clusters: int, known: Known) -> np.ndarray:
    """(clusters,) int64: the class whose labeled images' mean is nearest to each cluster's; 0 without labels."""
    present = np.unique(known.labels)
    if not len(present):
        return np.zeros(clusters, dtype=np.int64)
    means = np.stack([unit[known.indices[known.labels == label]].mean(axis=0) for label in present])
    own = np.zeros((clusters, unit.shape[1]), dtype=np.float32)
    np.add.at(own, groups, unit)
    own /= np.maximum(np.bincount(groups, minlength=clusters), 1)[:, None]
    nearest: np.ndarray = present[_distances(own, means).argmin(axis=1)]
    return nearest


def _by_typicality(unit: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Members (M,) of a cluster, the most typical first."""
    if not len(members):
        return members
    k = min(NEIGHBORS, len(members) - 1)
    own = unit[members]
    spread = [np.partition(_distances(part, own), k, axis=1)[:, : k + 1].mean(axis=1) for part in _parts(own)]
    ordered: np.ndarray = members[np.argsort(np.concatenate(spread), kind="stable")]
    return ordered


def _near_duplicates(unit: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """Return how to tell which images hardly differ from one, (N,) bool, itself included."""
    some = unit[_sample(len(unit), seed)]
    limit = DUPLICATE * float(np.median(_distances(some, some)))
    return lambda index: _distances(unit[index : index + 1], unit)[0] <= max(limit, 1e-3)  # float32


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) float32 Euclidean distances."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * (a @ b.T)
    distances: np.ndarray = np.sqrt(np.maximum(squared, 0.0))
    return distances


def _sample(count: int, seed: int, most: int = 500) -> np.ndarray:
    sample: np.ndarray = np.random.default_rng(seed).permutation(count)[:most]
    return sample


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
