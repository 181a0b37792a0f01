"""Temperatures, intervals and promises against what they must be on labels drawn from known probabilities."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from tpssl_hf.evaluation.calibration import (
    Calibration,
    choose_threshold,
    fit_temperature,
    labels_to_promise,
    negative_log_likelihood,
    share_interval,
    tempered,
)


def drawn(count: int, temperature: float, seed: int = 0, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``temperature`` times as large as the logits their labels are drawn from."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 5)) * scale
    labels = (tempered(logits, 1.0).cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_labels_is_found(temperature: float) -> None:
    logits, labels = drawn(4000, temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.08)
    values = [negative_log_likelihood(logits, labels, found * factor) for factor in (0.9, 1, 1.1)]
    assert values[1] < min(values[0], values[2])


def test_the_likelihood_is_that_of_the_probabilities_and_shifts_change_nothing() -> None:
    logits, labels = drawn(50, 2.0)
    by_hand = -np.log(tempered(logits, 2.0)[np.arange(50), labels]).mean()
    assert negative_log_likelihood(logits, labels, 2.0) == pytest.approx(by_hand)
    shifted = np.log(tempered(logits, 1.0))  # what folds keep
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    assert np.isfinite(tempered(np.array([[1e4, -1e4]]), 0.05)).all()


def test_calibrating_lowers_the_error_on_other_labels() -> None:
    logits, labels = drawn(100, 3.0)
    found = Calibration.measure(logits, labels, "labels")
    assert found.temperature is not None and found.reason is None
    others, theirs = drawn(5000, 3.0, seed=1)
    before, after = (Calibration.measure(others / t, theirs, "") for t in (1.0, found.temperature))
    assert after.expected_calibration_error < before.expected_calibration_error / 3
    assert found.expected_calibration_error_calibrated is not None
    assert found.expected_calibration_error_calibrated < found.expected_calibration_error
    assert Calibration(**json.loads(json.dumps(asdict(found)))) == found
    assert "confidences are calibrated (temperature" in found.sentence() and "the 100 labels" in found.sentence()


def test_too_few_labels_or_errors_are_said_and_fit_nothing() -> None:
    few = Calibration.measure(*drawn(39, 2.0), held_out="training labels")
    assert few.temperature is None and few.expected_calibration_error_calibrated is None
    assert few.sentence().startswith("confidences are not calibrated: training labels are 39, fewer than the 40")
    known = np.arange(60) % 3
    perfect = Calibration.measure(5.0 * np.eye(3)[known], known, "training labels")
    assert perfect.temperature is None and perfect.reason is not None and "0 of training labels" in perfect.reason
    assert perfect.expected_accuracy() == {"accuracy": 1.0, "low": pytest.approx(0.025 ** (1 / 60)), "high": 1.0}


def test_the_interval_is_clopper_and_pearsons() -> None:
    low, high = share_interval(17, 20)
    assert stats.binom.sf(16, 20, low) == pytest.approx(0.025) and stats.binom.cdf(17, 20, high) == pytest.approx(
        0.025
    )
    assert share_interval(0, 5)[0] == 0 and share_interval(5, 5)[1] == 1


def test_a_promise_takes_most_of_what_holds_it() -> None:
    confidences = np.linspace(1, 0, 1000, endpoint=False)
    right = np.ones(1000, dtype=int)
    right[605::4] = 0  # from there on a fourth is wrong
    found = choose_threshold(confidences, right, 0.94)
    assert found is not None and found.coverage == 0.7 and found.accuracy == pytest.approx(1 - 24 / 700)
    assert found.threshold == confidences[699] and 0.94 <= found.low < found.accuracy
    assert stats.binom.sf(675, 700, found.low) == pytest.approx(0.05 / 10)


def test_equal_confidences_are_taken_or_left_together() -> None:
    found = choose_threshold(np.array([0.9] * 550 + [0.5] * 450), np.array([1] * 550 + [0] * 450), 0.95)
    assert found is not None and found.coverage == 0.55 and found.accuracy == 1


def test_where_labels_do_not_suffice_nothing_is_promised() -> None:
    needed = labels_to_promise(0.95)
    for count, promised in ((needed, True), (needed - 1, False)):
        found = choose_threshold(np.linspace(0.1, 1, count), np.ones(count, dtype=int), 0.95)
        assert (found is not None) == promised
    assert choose_threshold(np.linspace(0.1, 1, 1000), np.tile([0, 1], 500), 0.95) is None


def test_promises_are_kept_as_often_as_they_say() -> None:
    """Of the thresholds chosen on 300 labels, one in twenty at most may be less accurate than was promised."""
    logits, labels = drawn(60_000, 1.0, scale=6.0)
    confidences, right = tempered(logits, 1.0).max(axis=1), (logits.argmax(axis=1) == labels).astype(int)
    broken, made = 0, 0
    for part in range(100):
        own = slice(300 * part, 300 * (part + 1))
        if (found := choose_threshold(confidences[own], right[own], 0.9)) is not None:
            made += 1
            broken += right[30_000:][confidences[30_000:] >= found.threshold].mean() < 0.9
    assert made > 50 and broken <= 5
