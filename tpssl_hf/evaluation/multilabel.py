"""Scores of several labels an image: average precision, F1 at thresholds, and the thresholds themselves.

Labels are (N, K) int64: 1 where an image has a label, 0 where it has not, -1 where nobody says, which counts nowhere.
"""

from typing import Any

import numpy as np

from tpssl_hf.data.multilabel_splits import fewest

RESAMPLINGS = 200
LEVEL = 0.95


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities float64 of logits, without overflow."""
    exponents = np.exp(-np.abs(logits.astype(np.float64)))
    probabilities: np.ndarray = np.where(logits >= 0, 1.0, exponents) / (1.0 + exponents)
    return probabilities


class Ranking:
    """The images of one label in the order of their scores, the highest first.

    Images of equal scores share a place, as in scikit-learn; a score that is not finite comes last.

    Args:
        scores: (N,).
        labels: (N,) of the same images; those of which the label is not known are left out.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        finite = np.where(np.isfinite(scores), scores, -np.inf)
        known = np.flatnonzero(labels >= 0)
        self._order = known[np.argsort(-finite[known], kind="stable")]
        self._having, ordered = labels[self._order] == 1, finite[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))

    def average_precision(self, counts: np.ndarray) -> float | None:
        """Return the mean, over the images that have the label, of the precision at their place.

        Args:
            counts: (N,) how often each image counts.

        Returns:
            It, in [0, 1]; None where all or none of the images that count have the label.
        """
        counted = counts[self._order]
        found, seen = np.cumsum(counted * self._having)[self._ends], np.cumsum(counted)[self._ends]
        if not len(found) or found[-1] == 0 or found[-1] == seen[-1]:
            return None
        gained = np.diff(found, prepend=0)
        return float((gained * found / np.maximum(seen, 1)).sum() / found[-1])


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """Return the average precision of each label; None for one that all or none of the images have.

    Args:
        scores: (N, K), the higher the more likely.
        labels: (N, K).
    """
    once = np.ones(len(labels), dtype=np.int64)
    return [ranking.average_precision(once) for ranking in _rankings(scores, labels)]


def _rankings(scores: np.ndarray, labels: np.ndarray) -> list[Ranking]:
    return [Ranking(scores[:, label], labels[:, label]) for label in range(labels.shape[1])]


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the mean of :func:`average_precisions` over the labels that have one (mAP); None where none has."""
    return _mean(average_precisions(scores, labels))


def multilabel_scores(probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> dict[str, Any]:
    """Score probabilities (N, K) against labels (N, K), as JSON values.

    Args:
        probabilities: in [0, 1].
        labels: as above.
        thresholds: (K,), at and above which an image is given a label.

    Returns:
        ``mean_average_precision``; ``chance_mean_average_precision``, what scores without any sense get: the share of
        images that have a label; ``macro_f1`` at the thresholds, over the same labels; and ``per_label_...`` of both.
    """
    precisions = average_precisions(probabilities, labels)
    chances: list[float | None] = []
    f1: list[float | None] = []
    for label, precision in enumerate(precisions):
        known = labels[:, label] >= 0
        having, given = labels[known, label] == 1, probabilities[known, label] >= thresholds[label]
        chances.append(None if precision is None else float(having.mean()))
        f1.append(None if precision is None else _f1(given, having))
    return {
        "mean_average_precision": _mean(precisions),
        "chance_mean_average_precision": _mean(chances),
        "macro_f1": _mean(f1),
        "per_label_average_precision": precisions,
        "per_label_f1": f1,
    }


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each label the threshold (K,) with the highest F1 on these images; of equal ones that nearest 0.5.

    It lies halfway between two probabilities. It is 0.5 unless another is better beyond one standard error, as the
    best of few is partly luck: in simulations of a label that a tenth or three tenths of the images have, 2 to 5 of
    these cost 0.3 to 2.0 points of F1 on other images where 0.5 was right (0.2 to 2.9 without that rule), and gained
    4 to 17 where logits were 1.5 too low (10 to 23).

    Args:
        probabilities: (N, K), finite, of images that were not learned from.
        labels: (N, K).
    """
    thresholds = np.full(labels.shape[1], 0.5)
    for label in np.flatnonzero(fewest(labels) > 0).tolist():
        known = labels[:, label] >= 0
        scores, having = probabilities[known, label], labels[known, label] == 1
        steps, count = np.unique(scores), having.sum()
        tried = np.unique(np.append((steps[1:] + steps[:-1]) / 2, 0.5))
        tried = tried[np.argsort(np.abs(tried - 0.5), kind="stable")]
        given = len(scores) - np.searchsorted(np.sort(scores), tried)
        found = count - np.searchsorted(np.sort(scores[having]), tried)
        best = tried[int(np.argmax(2 * found / (given + count)))]
        if _is_surely_better(scores >= best, scores >= 0.5, having):
            thresholds[label] = best
    clipped: np.ndarray = np.clip(thresholds.round(6), 1e-6, 1 - 1e-6)
    return clipped


def difference_of_precision(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Return ``mean``, the mAP of scores ``after`` minus that of ``before``, and how sure that is.

    Images are resampled, the same for both (paired bootstrap); ``low`` and ``high`` are the ends of the interval,
    ``standard_error`` is the deviation over the resamplings, ``questions`` the number of images.

    Args:
        before: (N, K) scores.
        after: (N, K) scores of the same images.
        labels: (N, K).
        seed: of the resamplings.
    """
    random, changes = np.random.default_rng(seed), []
    pairs = list(zip(_rankings(before, labels), _rankings(after, labels), strict=True))
    for _ in range(RESAMPLINGS):
        counts = np.bincount(random.integers(0, len(labels), len(labels)), minlength=len(labels))
        found = [(one.average_precision(counts), other.average_precision(counts)) for one, other in pairs]
        moved = [other - one for one, other in found if one is not None and other is not None]
        changes += [float(np.mean(moved))] if moved else []
    whole = (mean_average_precision(after, labels) or 0.0) - (mean_average_precision(before, labels) or 0.0)
    low, high = np.quantile(changes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    error = float(np.std(changes, ddof=1))
    return {"mean": whole, "low": low, "high": high, "standard_error": error, "questions": len(labels)}


def _is_surely_better(given: np.ndarray, before: np.ndarray, having: np.ndarray) -> bool:
    """Return whether answers (N,) have a higher F1 than those before, beyond one standard error over the images."""
    counts = np.random.default_rng(0).multinomial(len(having), np.full(len(having), 1 / len(having)), RESAMPLINGS)
    f1 = [
        2 * (counts @ (answers & having)) / np.maximum(1, counts @ answers.astype(int) + counts @ having.astype(int))
        for answers in (given, before)
    ]
    return _f1(given, having) - _f1(before, having) > float((f1[0] - f1[1]).std(ddof=1))


def _f1(given: np.ndarray, having: np.ndarray) -> float:
    return float(2 * (given & having).sum() / max(1, given.sum() + having.sum()))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
