from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from tpssl_hf.metrics.tpssl_classification import tpssl_classification
from tpssl_hf.metrics.tpssl_classification.tpssl_classification import (
    TpsslClassification,
    classification_scores,
)


def some_predictions(count: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, classes))
    references = random.integers(classes, size=count)
    logits[np.arange(count), references] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, references


def test_accuracy_and_confusion_are_those_of_scikit_learn() -> None:
    probabilities, references = some_predictions()
    scores = classification_scores(probabilities, references)
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(references, predicted)
    assert scores["accuracy"] == pytest.approx(accuracy_score(references, predicted))
    assert scores["confusion_matrix"] == confusion.tolist()
    assert scores["per_class_accuracy"] == pytest.approx((confusion.diagonal() / confusion.sum(axis=1)).tolist())
    assert scores["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(references, predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(references, predicted, average="macro"))


def test_a_classifier_that_answers_the_largest_class_has_a_small_macro_f1() -> None:
    references = np.array([0] * 90 + [1] * 10)
    scores = classification_scores(np.tile([0.9, 0.1, 0.0], (100, 1)), references)
    assert scores["accuracy"] == 0.9 and scores["mean_class_accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx(f1_score(references, np.zeros(100), average="macro", zero_division=0))


def test_calibration_error_of_three_images_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    scores = classification_scores(probabilities, np.array([0, 1, 1]), bins=10)
    # bin (0.8, 0.9]: 2 of 3 images, confidence 0.9 and accuracy 0.5; bin (0.5, 0.6]: 1 of 3, 0.6 and 1
    assert scores["expected_calibration_error"] == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.4)


def test_a_perfect_and_sure_classifier_has_no_calibration_error() -> None:
    scores = classification_scores(np.eye(3), np.arange(3))
    assert scores["accuracy"] == 1 and scores["expected_calibration_error"] == 0


def test_a_class_without_images_has_no_accuracy_and_does_not_count_in_the_mean() -> None:
    scores = classification_scores(np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]), np.array([0, 0]))
    assert scores["per_class_accuracy"] == [0.5, None, None] and scores["mean_class_accuracy"] == 0.5


def test_the_class_and_the_module_loaded_by_its_folder_agree_offline() -> None:
    probabilities, references = some_predictions(50)
    folder = Path(tpssl_classification.__file__).parent
    loaded = evaluate.load(str(folder))
    direct = TpsslClassification()
    rows = probabilities.astype(np.float32).tolist()
    results = [metric.compute(predictions=rows, references=references.tolist()) for metric in (loaded, direct)]
    assert results[0] == results[1]
    assert results[0]["accuracy"] == pytest.approx(classification_scores(probabilities, references)["accuracy"])


def test_adding_batch_by_batch_gives_what_one_call_gives() -> None:
    probabilities, references = some_predictions(40)
    rows = probabilities.astype(np.float32).tolist()
    metric = TpsslClassification()
    for part in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=rows[part], references=references[part].tolist())
    assert metric.compute() == TpsslClassification().compute(predictions=rows, references=references.tolist())


@pytest.mark.parametrize(
    ("probabilities", "references", "sentence"),
    [
        (np.eye(3), np.arange(2), "do not match"),
        (np.eye(3), np.array([0, 1, 3]), "0 to 2 are allowed"),
        (np.eye(3) * 2, np.arange(3), "no distribution"),
        (np.zeros((0, 3)), np.arange(0), "do not match"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    probabilities: np.ndarray, references: np.ndarray, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        classification_scores(probabilities, references)
