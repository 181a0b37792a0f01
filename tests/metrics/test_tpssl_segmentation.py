from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from tpssl_hf.errors import InputError
from tpssl_hf.metrics.tpssl_segmentation import tpssl_segmentation
from tpssl_hf.metrics.tpssl_segmentation.confusion import ConfusionMatrix
from tpssl_hf.metrics.tpssl_segmentation.tpssl_segmentation import (
    TpsslSegmentation,
    lesion_scores,
    segmentation_scores,
)

CLASSES = 4


def some_maps(images: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    targets = random.integers(CLASSES, size=(images, 9, 11)).astype(np.uint8)
    predictions = np.where(random.random(targets.shape) < 0.6, targets, random.integers(CLASSES, size=targets.shape))
    targets[:, :2] = 255
    return predictions.astype(np.uint8), targets


def counted(predictions: np.ndarray, targets: np.ndarray, classes: int = CLASSES) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.add(torch.from_numpy(predictions), torch.from_numpy(targets))
    return matrix


def test_scores_are_those_of_scikit_learn_on_pixels_that_count() -> None:
    predictions, targets = some_maps()
    kept = targets != 255
    scores = segmentation_scores(counted(predictions, targets).counts.numpy())
    wanted, found = targets[kept], predictions[kept]
    assert scores["confusion_matrix"] == confusion_matrix(wanted, found).tolist()
    assert scores["per_class_iou"] == pytest.approx(jaccard_score(wanted, found, average=None).tolist())
    assert scores["mean_iou"] == pytest.approx(jaccard_score(wanted, found, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx((wanted == found).mean())


def test_counting_is_over_all_images_and_not_the_mean_of_images() -> None:
    targets = np.array([[[1, 1, 1, 1]], [[0, 0, 0, 1]]])
    predictions = np.array([[[1, 1, 1, 1]], [[0, 0, 0, 0]]])
    matrix = ConfusionMatrix(2)
    each = matrix.add(torch.from_numpy(predictions), torch.from_numpy(targets)).numpy()
    scores = segmentation_scores(matrix.counts.numpy())
    assert scores["per_class_iou"] == [3 / 4, 4 / 5] and scores["mean_iou"] == pytest.approx((3 / 4 + 4 / 5) / 2)
    images = [segmentation_scores(image)["mean_iou"] for image in each]
    assert np.mean(images) != pytest.approx(scores["mean_iou"])


def test_adding_batch_by_batch_gives_what_one_call_gives_for_any_integer_type() -> None:
    predictions, targets = some_maps()
    matrix = ConfusionMatrix(CLASSES)
    for part, kind in ((slice(0, 2), torch.int64), (slice(2, 6), torch.uint8)):
        matrix.add(torch.from_numpy(predictions[part]).to(kind), torch.from_numpy(targets[part]).to(kind))
    assert torch.equal(matrix.counts, counted(predictions, targets).counts)
    assert matrix.counts.sum() == (targets != 255).sum()


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    predictions, targets = some_maps()
    before = counted(predictions, targets).counts
    predictions[targets == 255] = 200
    assert torch.equal(counted(predictions, targets).counts, before)


def test_a_class_that_is_nowhere_counts_as_zero_in_the_mean() -> None:
    scores = segmentation_scores(np.diag([5, 5, 0]))
    assert scores["per_class_iou"] == [1.0, 1.0, 0.0] and scores["mean_iou"] == pytest.approx(2 / 3)


def test_lesions_are_scored_over_all_images_and_image_by_image() -> None:
    large, small, none = [[10, 0], [10, 80]], [[96, 2], [1, 1]], [[100, 0], [0, 0]]
    scores = lesion_scores(np.array([large, small, none]))
    assert scores["mean_image_jaccard"] == pytest.approx((80 / 90 + 1 / 4 + 1) / 3)
    assert scores["lesion_iou"] == pytest.approx(81 / 94)
    assert scores["background_iou"] == pytest.approx(206 / 219)
    assert scores["mean_iou"] == pytest.approx((scores["lesion_iou"] + scores["background_iou"]) / 2)


def test_the_class_and_the_module_loaded_by_its_folder_agree_offline() -> None:
    predictions, targets = some_maps()
    loaded = evaluate.load(str(Path(tpssl_segmentation.__file__).parent))
    results = [
        metric.compute(predictions=predictions.tolist(), references=targets.tolist(), classes=CLASSES)
        for metric in (loaded, TpsslSegmentation())
    ]
    assert results[0] == results[1] == segmentation_scores(counted(predictions, targets).counts.numpy())


def test_images_of_different_sizes_can_be_scored_together() -> None:
    found, wanted = [[[0, 1]], [[1], [1]]], [[[0, 0]], [[1], [255]]]
    scores = TpsslSegmentation().compute(predictions=found, references=wanted, classes=2)
    assert scores["confusion_matrix"] == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("confusion", "sentence"), [(np.ones((2, 3)), r"give \(K, K\)"), (np.zeros((2, 2)), "counts no pixel")]
)
def test_matrices_that_cannot_be_scored_are_refused(confusion: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        segmentation_scores(confusion)


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="resize one"):
        TpsslSegmentation().compute(predictions=[[[0, 1]]], references=[[[0]]], classes=2)
    with pytest.raises(ValueError, match="class 2 occurs"):
        TpsslSegmentation().compute(predictions=[[[0, 2]]], references=[[[0, 1]]], classes=2)
    with pytest.raises(ValueError, match=r"\(N, 2, 2\)"):
        lesion_scores(np.ones((2, 2)))
    with pytest.raises(InputError, match="same shape"):
        ConfusionMatrix(2).add(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
