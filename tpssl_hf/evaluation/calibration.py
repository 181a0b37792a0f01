"""How far a classifier's confidence may be believed, from labels it was not shown.

Temperature scaling is that of Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599. The
threshold of selective prediction is promised as Geifman and El-Yaniv do (NeurIPS 2017, arXiv 1705.08500): an exact
binomial bound whose level is shared among the thresholds that are tried; they halve an interval, here tenths of the
labels are tried.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from tpssl_hf.metrics.tpssl_classification.tpssl_classification import classification_scores

# Below these a fitted temperature may do harm: in simulations of 10 classes, 40 labels of a classifier that was
# calibrated already cost 0.01 nats on average, 10 labels up to 0.06; those of others gained 0.01 to 0.27.
LEAST_LABELS, LEAST_WRONG = 40, 3
LEVEL = 0.95  # of intervals and promises
TENTHS = 10  # thresholds that are tried
LARGEST_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Calibration:
    """What labels that a classifier was not shown say of it; ``calibration.json`` holds these keys.

    Attributes:
        temperature: by which logits are divided before the softmax; None where the labels are too few to fit it.
        reason: why there is no temperature, the end of a sentence; None where there is one.
        held_out: which labels these are.
        expected_calibration_error: of confidences as the network gives them.
        expected_calibration_error_calibrated: after the temperature, on the labels it was fitted to; None without.
        confidences: (N,) of the labels, after the temperature.
        right: (N,) 1 for each label that was found, else 0.
    """

    temperature: float | None
    reason: str | None
    held_out: str
    expected_calibration_error: float
    expected_calibration_error_calibrated: float | None
    confidences: list[float]
    right: list[int]

    @classmethod
    def measure(cls, logits: np.ndarray, labels: np.ndarray, held_out: str) -> Self:
        """Fit a temperature to finite logits (N, K) of held-out labels (N,), if they suffice."""
        right = (logits.argmax(axis=1) == labels).astype(int)
        wrong, temperature, reason = int((1 - right).sum()), None, None
        if len(labels) < LEAST_LABELS:
            reason = f"{held_out} are {len(labels)}, fewer than the {LEAST_LABELS} that a temperature takes"
        elif wrong < LEAST_WRONG:
            reason = (
                f"{wrong} of {held_out} were answered wrong, fewer than the {LEAST_WRONG} that a temperature takes"
            )
        else:
            temperature = fit_temperature(logits, labels)
        errors = [
            float(classification_scores(tempered(logits, value), labels)["expected_calibration_error"])
            for value in (1.0, *([temperature] if temperature else []))
        ]
        confidences = tempered(logits, temperature or 1.0).max(axis=1)
        rounded = [float(f"{value:.6g}") for value in confidences]
        calibrated = errors[1] if temperature else None
        return cls(temperature, reason, held_out, errors[0], calibrated, rounded, right.tolist())

    def expected_accuracy(self) -> dict[str, float]:
        """Return ``accuracy`` on the held-out labels with the ends ``low`` and ``high`` of its exact interval."""
        low, high = share_interval(sum(self.right), len(self.right))
        return {"accuracy": sum(self.right) / len(self.right), "low": low, "high": high}

    def sentence(self) -> str:
        """Say whether confidences are calibrated, and what accuracy is to be expected."""
        found = self.expected_accuracy()
        accuracy, low, high = (100 * found[name] for name in ("accuracy", "low", "high"))
        expected = (
            f"expected accuracy {accuracy:.1f} % ({low:.1f} to {high:.1f} %) on images like the {len(self.right)} "
            f"{self.held_out}"
        )
        if self.temperature is None:
            return f"confidences are not calibrated: {self.reason}; {expected}"
        return f"confidences are calibrated (temperature {self.temperature:.3g}); {expected}"


@dataclass(frozen=True)
class Selection:
    """Predictions to be taken without a look.

    Attributes:
        threshold: confidence from which on they are taken.
        coverage: share of the labels that are.
        accuracy: of these, on the labels that the threshold was chosen on.
        low: what their accuracy is not below, at ``LEVEL`` over all thresholds that were tried.
    """

    threshold: float
    coverage: float
    accuracy: float
    low: float


def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities (N, K) float64 of logits (N, K) that are divided by a temperature above 0."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean over logits (N, K) of minus the log-probability of labels (N,), in nats."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that minimizes the negative log-likelihood of labels, from 1/20 to 20.

    Args:
        logits: (N, K) of images that the classifier was not shown the labels of; log-probabilities will do.
        labels: (N,) int64 in [0, K).
    """
    return best_temperature(lambda temperature: negative_log_likelihood(logits, labels, temperature))


def best_temperature(loss: Callable[[float], float]) -> float:
    """Return the temperature from 1/20 to 20 that minimizes ``loss`` of it."""
    widest = np.log(LARGEST_TEMPERATURE)
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=(-widest, widest), method="bounded")
    return float(np.exp(found.x))


def share_interval(right: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact interval (Clopper and Pearson, 1934) of a share of which ``right`` of ``count`` were seen."""
    interval = stats.binomtest(right, count).proportion_ci(confidence_level=level, method="exact")
    return float(interval.low), float(interval.high)


def choose_threshold(confidences: np.ndarray, right: np.ndarray, accuracy: float) -> Selection | None:
    """Return the threshold that takes most and promises an accuracy; None where the labels promise it for no part.

    The most confident tenth of the labels is tried, the two most confident tenths, and so on to all of them. A lower
    bound of the accuracy holds for each at a tenth of the error, so for all of them together at ``LEVEL``.

    Args:
        confidences: (N,) of labels that the classifier was not shown.
        right: (N,) 1 where it found the label, else 0.
        accuracy: above 0 and below 1, what is to be promised.
    """
    ordered = np.sort(confidences)[::-1]
    for tenths in range(TENTHS, 0, -1):
        threshold = float(ordered[max(1, len(ordered) * tenths // TENTHS) - 1])
        taken = confidences >= threshold  # those of equal confidence as well
        hits, count = int(right[taken].sum()), int(taken.sum())
        low = share_interval(hits, count, level=1 - 2 * (1 - LEVEL) / TENTHS)[0]  # its lower end alone
        if low >= accuracy:
            return Selection(threshold, count / len(right), hits / count, low)
    return None


def labels_to_promise(accuracy: float) -> int:
    """Return how many labels without a single error promise an accuracy, in the largest part that is tried."""
    return int(np.ceil(np.log((1 - LEVEL) / TENTHS) / np.log(accuracy)))
