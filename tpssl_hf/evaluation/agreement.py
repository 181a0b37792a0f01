"""Agreement of two crops: what features are worth where nobody has labels."""

import numpy as np


def reciprocal_ranks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return 1 / rank of each image's second crop among the second crops of all images, nearest to its first crop.

    Features that know an image again in another crop and other colors find it first. Unlike the loss of a contrastive
    method this asks features as they are saved, without a head.

    Args:
        one: (N, D) features of a crop of each image.
        other: (N, D) features of another crop, in the same order.

    Returns:
        (N,) float64 in (0, 1]; similarity is the cosine, and of equal ones an image's own counts as the last, as it
        does where features are not finite.
    """
    with np.errstate(invalid="ignore"):
        unit = [f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (one, other)]
        similarities = unit[0] @ unit[1].T
    ranks = len(similarities) - (similarities < np.diagonal(similarities)[:, None]).sum(axis=1)
    reciprocals: np.ndarray = 1.0 / ranks
    return reciprocals


def paired_difference(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return ``mean`` of after minus before with ``low`` and ``high`` of its 95 % interval, by image.

    Args:
        before: (N,) values, one for each image, two images at least.
        after: (N,) values of the same images.
    """
    changes = np.asarray(after, float) - np.asarray(before, float)
    error = float(changes.std(ddof=1)) / len(changes) ** 0.5
    mean = float(changes.mean())
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}
