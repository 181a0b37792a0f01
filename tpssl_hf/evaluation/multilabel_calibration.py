"""How far to believe the probabilities of a classifier of several labels an image, from labels it was not shown.

Logits are divided by one temperature for all labels, as those of a softmax are (Guo et al., ICML 2017, arXiv
1706.04599). Labels are those of :mod:`tpssl_hf.evaluation.multilabel`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from tpssl_hf.evaluation.calibration import best_temperature

# Below these a fitted temperature may do harm. In simulations of 2, 5 and 20 labels, 40 images of a classifier that
# was calibrated already cost 0.001 to 0.006 nats a label on average, 10 images up to 0.028; those of logits twice or
# half as large as they should be gained 0.04 to 0.08, also where the labels of an image err together.
LEAST_IMAGES, LEAST_WRONG = 40, 3
CERTAIN = 1e-6  # a probability is no nearer to 0 or 1 than that


@dataclass(frozen=True)
class MultilabelCalibration:
    """What labels that a classifier was not shown say of its probabilities; ``calibration.json`` holds these keys.

    Attributes:
        temperature: by which logits are divided before the sigmoid; None where the labels are too few to fit it.
        reason: why there is no temperature, the end of a sentence; None where there is one.
        held_out: which images these are.
        images: how many.
        log_loss: of probabilities as the network gives them, in nats, the mean over known labels.
        log_loss_calibrated: after the temperature, on the labels it was fitted to; None without.
    """

    temperature: float | None
    reason: str | None
    held_out: str
    images: int
    log_loss: float
    log_loss_calibrated: float | None

    @classmethod
    def measure(cls, probabilities: np.ndarray, labels: np.ndarray, held_out: str) -> Self:
        """Fit a temperature to finite probabilities (N, K) of held-out labels (N, K), if they suffice.

        Images count, not labels, because those of an image are not independent of each other.
        """
        known = labels >= 0
        logits, having = logit(probabilities[known]), labels[known] == 1
        images, wrong = int(known.any(axis=1).sum()), int(((logits >= 0) != having).sum())
        temperature, reason = None, None
        if images < LEAST_IMAGES:
            reason = f"{held_out} are {images}, fewer than the {LEAST_IMAGES} that a temperature takes"
        elif wrong < LEAST_WRONG:
            reason = f"{wrong} labels of {held_out} were wrong, fewer than the {LEAST_WRONG} that a temperature takes"
        else:
            temperature = fit_temperature(logits, having)
        calibrated = log_loss(logits, having, temperature) if temperature else None
        return cls(temperature, reason, held_out, images, log_loss(logits, having), calibrated)

    def sentence(self) -> str:
        """Say whether confidences are calibrated, and by how much."""
        if self.temperature is None:
            return f"confidences are not calibrated: {self.reason}"
        return (
            f"confidences are calibrated (temperature {self.temperature:.3g}): the log loss of the {self.images} "
            f"{self.held_out} goes from {self.log_loss:.3f} to {self.log_loss_calibrated:.3f} nats a label"
        )


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits float64 of probabilities in [0, 1]."""
    inside = np.clip(probabilities.astype(np.float64), CERTAIN, 1 - CERTAIN)
    logits: np.ndarray = np.log(inside) - np.log1p(-inside)
    return logits


def log_loss(logits: np.ndarray, having: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean over logits (N,) of minus the log-probability of what is so, (N,) bool, in nats."""
    return float(np.logaddexp(0, np.where(having, -logits, logits) / temperature).mean())


def fit_temperature(logits: np.ndarray, having: np.ndarray) -> float:
    """Return the temperature that minimizes :func:`log_loss`, from 1/20 to 20."""
    return best_temperature(lambda temperature: log_loss(logits, having, temperature))
