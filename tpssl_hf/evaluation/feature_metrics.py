"""Label-free measures of features: how spread out, how many dimensions, how near two views, what changed between two.

Every one takes NumPy matrices with a row per image and computes in float64.
"""

import math

import numpy as np

NEIGHBORS = 10


def embedding_std(features: np.ndarray) -> float:
    """Std over the sample of l2-normalized features (N, D), times √D (Chen & He, 2021, §4.1): 1 spread, 0 a point."""
    return float(_unit_rows(features).std(axis=0).mean() * math.sqrt(features.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """Exponential of the entropy of the normalized singular values of the centered features (N, D).

    Roy & Vetterli (2007), on centered features: a large common mean would otherwise count as the one direction there
    is. It is k when k singular values are equal and the others 0; 0 for constant features and infinite ones.
    """
    if not np.isfinite(features).all():
        return 0.0
    values = np.linalg.svd(_centered(features), compute_uv=False)
    if values[0] <= 1e-12 * max(1.0, float(np.abs(features).max())):
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(view1: np.ndarray, view2: np.ndarray) -> float:
    """Mean squared distance of the l2-normalized features (N, D) of two views (Wang & Isola, 2020, §4.1): 0 to 4."""
    return float(((_unit_rows(view1) - _unit_rows(view2)) ** 2).sum(axis=1).mean())


def uniformity(features: np.ndarray, t: float = 2.0) -> float:
    """Log of the mean of exp(−t·‖u − v‖²) over pairs of l2-normalized features (Wang & Isola, 2020, §4.1).

    0 when all are one point; the lower, the more evenly they cover the sphere (about −2t in many dimensions).
    """
    unit = _unit_rows(features)
    first, second = np.triu_indices(len(unit), k=1)
    squared = np.clip(2.0 - 2.0 * (unit @ unit.T)[first, second], 0.0, None)
    return float(np.log(np.exp(-t * squared).mean()))


def neighbors(features: np.ndarray, k: int = NEIGHBORS) -> np.ndarray:
    """Indices (N, k) of each row's k nearest others by cosine, in no particular order; k is at most N − 1."""
    unit = _unit_rows(features)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    k = min(k, len(unit) - 1)
    nearest: np.ndarray = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    return nearest


def neighbor_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Mean fraction of neighbors (N, k) that two neighborhoods have in common, in [0, 1]."""
    return float(np.mean([len(np.intersect1d(one, other)) / len(one) for one, other in zip(a, b, strict=True)]))


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Linear centered kernel alignment of two feature matrices (N, D1), (N, D2), in [0, 1] (Kornblith et al., 2019).

    1 for features that differ by a rotation, a shift and a scale; 0 when one of the two is constant.
    """
    a, b = _centered(a), _centered(b)
    gram_a, gram_b = a @ a.T, b @ b.T
    norm = float(np.linalg.norm(gram_a) * np.linalg.norm(gram_b))
    return float((gram_a * gram_b).sum()) / norm if norm > 0 else 0.0


def _unit_rows(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    unit: np.ndarray = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _centered(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    centered: np.ndarray = features - features.mean(axis=0)
    return centered
