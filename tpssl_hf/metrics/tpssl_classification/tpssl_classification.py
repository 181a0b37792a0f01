"""Accuracy, accuracy per class, expected calibration error and confusion matrix of a classifier.

This file stands alone: it is what a metric Space on the Hub consists of.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

CITATION = """Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599 (calibration error)"""
DESCRIPTION = "What a classifier trained with few labels is worth: how often, for which classes, how sure it is."
INPUTS = """
Args:
    predictions: probabilities of all classes, one list of numbers that sum to 1 for each image.
    references: the true class numbers from 0.
    bins: bins of equal width for the calibration error, 15 by default.
Returns:
    accuracy, per_class_accuracy (None for a class without an image), mean_class_accuracy (balanced accuracy),
    macro_f1 (over the classes that have images or are predicted), expected_calibration_error, all in [0, 1], and
    confusion_matrix, rows true and columns predicted, in images.
"""


def classification_scores(probabilities: np.ndarray, references: np.ndarray, *, bins: int = 15) -> dict[str, Any]:
    """Score probabilities against true classes.

    Args:
        probabilities: (N, K) float, rows that sum to 1.
        references: (N,) int, true classes from 0 to K - 1.
        bins: bins of equal width over (0, 1] of the expected calibration error (Guo et al., 2017, Eq. 3).

    Returns:
        As JSON values, the keys described in ``INPUTS``.

    Raises:
        ValueError: if shapes do not match, a class does not exist, or a row is no distribution.
    """
    probabilities, references = np.asarray(probabilities, dtype=np.float64), np.asarray(references)
    if probabilities.ndim != 2 or references.shape != probabilities.shape[:1] or len(references) == 0:
        raise ValueError(
            f"probabilities {probabilities.shape} and references {references.shape} do not match; give (N, K) and "
            "(N,) with N above 0."
        )
    classes = probabilities.shape[1]
    if references.min() < 0 or references.max() >= classes:
        raise ValueError(
            f"references run from {references.min()} to {references.max()}; with {classes} classes, 0 to "
            f"{classes - 1} are allowed."
        )
    if (np.abs(probabilities.sum(axis=1) - 1) > 1e-3).any() or probabilities.min() < 0:
        raise ValueError("a row of probabilities is no distribution; give the softmax of the logits.")
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.bincount(references * classes + predicted, minlength=classes**2).reshape(classes, classes)
    totals = confusion.sum(axis=1)
    per_class = [float(confusion[k, k] / totals[k]) if totals[k] else None for k in range(classes)]
    met = totals + confusion.sum(axis=0)  # 2 true positives + false negatives + false positives
    f1 = 2 * confusion.diagonal()[met > 0] / met[met > 0]
    correct = predicted == references
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(float((confidence - correct)[bin_of == number].sum())) for number in range(bins)]
    return {
        "accuracy": float(correct.mean()),
        "per_class_accuracy": per_class,
        "mean_class_accuracy": float(np.mean([value for value in per_class if value is not None])),
        "macro_f1": float(f1.mean()),
        "expected_calibration_error": sum(gaps) / len(references),
        "confusion_matrix": confusion.tolist(),
    }


class TpsslClassification(evaluate.Metric):  # type: ignore[misc]
    """``evaluate.load(folder of this file)``, or used directly; computes :func:`classification_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            predictions=datasets.Sequence(datasets.Value("float32")), references=datasets.Value("int64")
        )
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=INPUTS, features=features
        )

    def _compute(self, *, predictions: Any, references: Any, bins: int = 15) -> dict[str, Any]:
        return classification_scores(np.asarray(predictions), np.asarray(references), bins=bins)
