"""Mean intersection over union, its classes, pixel accuracy and confusion matrix of a segmenter.

This file stands alone: it is what a metric Space on the Hub consists of.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

CITATION = """Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015 (IoU)
Gutman et al., Skin Lesion Analysis toward Melanoma Detection, 2016, arXiv 1605.01397 (Jaccard index of an image)"""
DESCRIPTION = "How much of each class a segmenter finds, and how much of what it finds is of that class."
INPUTS = """
Args:
    predictions: predicted class number of every pixel, one map (H, W) for each image; images may differ in size.
    references: the true class numbers, maps of the same sizes; 255 for pixels that do not count.
    classes: number of classes.
Returns:
    mean_iou over all classes, one that is neither there nor predicted counting as 0; per_class_iou; pixel_accuracy;
    all in [0, 1]; and confusion_matrix, rows true and columns predicted, in pixels of all images together.
"""
IGNORED = 255


def segmentation_scores(confusion: np.ndarray) -> dict[str, Any]:
    """Score a confusion matrix of all images of a set together.

    The mean is over all classes. A class that is neither there nor predicted has an IoU of 0, as in the code of French
    et al. (2020, arXiv 1906.01916); on sets that show every class this is no choice.

    Args:
        confusion: (K, K) counts, rows true and columns predicted.

    Returns:
        As JSON values, the keys described in ``INPUTS``.

    Raises:
        ValueError: if it is not square or counts no pixel.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"the confusion matrix has shape {confusion.shape}; give (K, K).")
    if confusion.min() < 0 or confusion.sum() == 0:
        raise ValueError("the confusion matrix counts no pixel; were all of them ignored?")
    intersection = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection
    per_class = intersection / np.maximum(union, 1)
    return {
        "mean_iou": float(per_class.mean()),
        "per_class_iou": per_class.tolist(),
        "pixel_accuracy": float(intersection.sum() / confusion.sum()),
        "confusion_matrix": confusion.tolist(),
    }


def lesion_scores(confusions: np.ndarray) -> dict[str, float]:
    """Score the segmentation of one kind of thing against the rest, as it is done for skin lesions (ISIC).

    The challenge's Jaccard index is that of class 1, taken image by image and averaged (Gutman et al., 2016); an
    image without any lesion in which none is predicted has 1. French et al. (2020) report the IoU of class 1 over
    all images together.

    Args:
        confusions: (N, 2, 2) counts of each image, rows true and columns predicted; class 1 is the lesion.

    Returns:
        lesion_iou, background_iou and mean_iou over all images together, and mean_image_jaccard, all in [0, 1].

    Raises:
        ValueError: for another shape, or if no pixel is counted.
    """
    confusions = np.asarray(confusions)
    if confusions.ndim != 3 or confusions.shape[1:] != (2, 2):
        raise ValueError(f"the confusion matrices have shape {confusions.shape}; give (N, 2, 2).")
    scores = segmentation_scores(confusions.sum(axis=0))
    found, union = confusions[:, 1, 1], confusions[:, 1, 1] + confusions[:, 0, 1] + confusions[:, 1, 0]
    jaccard = np.where(union > 0, found / np.maximum(union, 1), 1.0)
    return {
        "lesion_iou": scores["per_class_iou"][1],
        "background_iou": scores["per_class_iou"][0],
        "mean_iou": scores["mean_iou"],
        "mean_image_jaccard": float(jaccard.mean()),
    }


def _counts(prediction: Any, reference: Any, classes: int) -> np.ndarray:
    """Count one image: (K, K).

    Raises:
        ValueError: for maps of different sizes and classes that do not exist.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise ValueError(f"a prediction is {prediction.shape} and its reference {reference.shape}; resize one.")
    kept = reference != IGNORED
    wanted, found = reference[kept].astype(np.int64), prediction[kept].astype(np.int64)
    largest = max(wanted.max(initial=0), found.max(initial=0))
    if largest >= classes:
        raise ValueError(f"class {largest} occurs; with {classes} classes, 0 to {classes - 1} are allowed, and 255.")
    return np.bincount(wanted * classes + found, minlength=classes**2).reshape(classes, classes)


class TpsslSegmentation(evaluate.Metric):  # type: ignore[misc]
    """``evaluate.load(folder of this file)``, or used directly; computes :func:`segmentation_scores`."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(predictions=maps, references=maps),
        )

    def _compute(self, *, predictions: Any, references: Any, classes: int) -> dict[str, Any]:
        counts = np.zeros((classes, classes), dtype=np.int64)
        for found, wanted in zip(predictions, references, strict=True):
            counts += _counts(found, wanted, classes)
        return segmentation_scores(counts)
