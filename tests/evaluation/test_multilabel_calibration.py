"""Temperatures of several labels an image, on labels drawn from known probabilities."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from tpssl_hf.evaluation.multilabel import sigmoid
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration, fit_temperature, log_loss, logit


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are ``temperature`` times those that their labels are drawn from."""
    random = np.random.default_rng(seed)
    logits = random.normal(-1.0, 2.0, (count, 4))
    return sigmoid(logits * temperature), (random.random(logits.shape) < sigmoid(logits)).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_labels_is_found_whatever_is_not_known(temperature: float) -> None:
    probabilities, labels = drawn(3000, temperature)
    found = MultilabelCalibration.measure(probabilities, labels, "images").temperature
    assert found == pytest.approx(temperature, rel=0.08)
    labels[::3, 1], probabilities[::3, 1] = -1, 0.5
    again = MultilabelCalibration.measure(probabilities, labels, "images")
    assert again.temperature == pytest.approx(temperature, rel=0.08) and again.images == 3000
    known = labels >= 0
    assert fit_temperature(logit(probabilities[known]), labels[known] == 1) == again.temperature


def test_it_lowers_the_log_loss_of_other_images() -> None:
    found = MultilabelCalibration.measure(*drawn(60, 2.5), "training images held out in turn")
    assert found.temperature is not None and found.reason is None
    others, labels = drawn(3000, 2.5, seed=1)
    before, after = (log_loss(logit(others), labels == 1, value) for value in (1.0, found.temperature))
    assert after < before - 0.1
    by_hand = -np.log(np.where(labels == 1, others, 1 - others)).mean()
    assert before == pytest.approx(by_hand, abs=1e-4)
    assert "goes from" in found.sentence() and "of the 60 training images held out in turn" in found.sentence()
    assert MultilabelCalibration(**json.loads(json.dumps(asdict(found)))) == found


def test_too_few_images_or_errors_are_said_and_fit_nothing() -> None:
    probabilities, labels = drawn(41, 2.5)
    labels[:2] = -1  # an image of which no label is known does not count
    few = MultilabelCalibration.measure(probabilities, labels, "training images")
    assert few.temperature is None and few.log_loss_calibrated is None and few.log_loss > 0
    assert few.sentence().startswith("confidences are not calibrated: training images are 39, fewer than the 40")
    sure = MultilabelCalibration.measure(np.where(drawn(60, 1.0)[1] == 1, 1.0, 0.0), drawn(60, 1.0)[1], "images")
    assert sure.temperature is None and sure.reason is not None and "0 labels of images were wrong" in sure.reason
    assert np.isfinite(sure.log_loss)
