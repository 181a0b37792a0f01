"""Audit of pseudo-labels: how many a learner accepts, of which classes, and how many are right."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tpssl_hf.methods.base import PseudoLabels

BINS = 10  # of the confidence, over [0, 1]


class NeverAcceptedWarning(UserWarning):
    """No pseudo-label of some class has been accepted so far: the learner gets no unlabeled image of it."""


class PseudoLabelAudit:
    """Looks at the pseudo-labels of logged steps.

    Args:
        class_names: names of the K classes.
        truth: (N,) int64 true labels of the unlabeled images by their number, -1 for unknown; None where none is
            known. They are used for the hindsight values only and never reach the learner.
        warn_after: completed steps from which on a class that was never accepted is reported, once.
    """

    def __init__(self, class_names: Sequence[str], truth: Tensor | None, *, warn_after: int) -> None:
        self.class_names, self.truth, self.warn_after = tuple(class_names), truth, warn_after
        self.accepted = torch.zeros(len(self.class_names), dtype=torch.float64)
        self.warned: list[int] = []

    def look(self, step: int, pseudo: PseudoLabels) -> dict[str, Any]:
        """Return the entries for the metrics log of one step, and warn of a class that was never accepted.

        Returns:
            ``pseudo_predicted_per_class`` (K), images given each
            pseudo-label; ``pseudo_accepted_per_class`` (K), their weights; ``pseudo_confidence_histogram`` (10),
            images; and where the truth is known ``hindsight_precision`` in [0, 1] and
            ``hindsight_precision_per_class`` (K), None where nothing was accepted.
        """
        classes = len(self.class_names)
        labels, weights = pseudo.labels.cpu(), pseudo.weights.double().cpu()
        predicted = torch.bincount(labels, minlength=classes)
        accepted = torch.bincount(labels, weights=weights, minlength=classes)
        bins = (pseudo.confidence.float().cpu() * BINS).long().clamp(0, BINS - 1)
        self.accepted += accepted
        entries: dict[str, Any] = {
            "pseudo_predicted_per_class": predicted.tolist(),
            "pseudo_accepted_per_class": accepted.tolist(),
            "pseudo_confidence_histogram": torch.bincount(bins, minlength=BINS).tolist(),
        }
        if self.truth is not None:
            entries |= self._hindsight(labels, weights, self.truth[pseudo.index.cpu()])
        if step >= self.warn_after:
            self._warn(step)
        return entries

    def _hindsight(self, labels: Tensor, weights: Tensor, truth: Tensor) -> dict[str, Any]:
        weights = torch.where(truth >= 0, weights, 0.0)
        totals = torch.bincount(labels, weights=weights, minlength=len(self.class_names))
        right = torch.bincount(labels, weights=weights * (labels == truth), minlength=len(self.class_names))
        per_class = [r / t if t > 0 else None for r, t in zip(right.tolist(), totals.tolist(), strict=True)]
        total = float(totals.sum())
        return {
            "hindsight_precision": float(right.sum()) / total if total > 0 else None,
            "hindsight_precision_per_class": per_class,
        }

    def _warn(self, step: int) -> None:
        never = [k for k in range(len(self.class_names)) if self.accepted[k] == 0 and k not in self.warned]
        if never:
            self.warned += never
            names = ", ".join(self.class_names[number] for number in never[:5])
            more = f" and {len(never) - 5} more classes" if len(never) > 5 else ""
            warnings.warn(
                f"up to step {step} no pseudo-label {names}{more} has been accepted, so no unlabeled image counts "
                "as such: train longer, label a few more of them, lower the threshold, or use --method freematch or "
                "flexmatch, whose thresholds follow each class.",
                NeverAcceptedWarning,
                stacklevel=2,
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that :meth:`load` continues from."""
        return {"accepted": self.accepted.clone()}, {"warned": list(self.warned)}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.accepted = tensors["accepted"].clone()
        self.warned = list(values["warned"])


def draw_pseudo_labels(path: Path, entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> None:
    """Write an image of how pseudo-labels developed: accepted share and precision, per class, and confidence.

    Args:
        path: PNG file to write; nothing is written if no entry holds pseudo-labels.
        entries: lines of ``metrics.jsonl``.
        class_names: names of the classes.
    """
    logged = [entry for entry in entries if "pseudo_predicted_per_class" in entry]
    if not logged:
        return
    steps = [entry["step"] for entry in logged]
    figure = Figure(figsize=(13, 0.5 * min(30, max(8, 0.32 * len(class_names) + 4)) + 0.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.2, 1))
    accepted = np.array([entry["pseudo_accepted_per_class"] for entry in logged]).T
    predicted = np.array([entry["pseudo_predicted_per_class"] for entry in logged]).T
    left.plot(steps, 100 * accepted.sum(axis=0) / predicted.sum(axis=0), label="accepted", linewidth=1.4)
    precision = [(entry["step"], entry.get("hindsight_precision")) for entry in logged]
    known = [(step, 100 * value) for step, value in precision if value is not None]
    if known:
        left.plot(*zip(*known, strict=True), label="of these right (hindsight)", linewidth=1.4)
    left.set(title="pseudo-labels", xlabel="step", ylabel="%", ylim=(0, 102))
    left.legend(fontsize=8)
    left.grid(alpha=0.3)
    share = np.divide(100 * accepted, predicted, out=np.full(accepted.shape, np.nan), where=predicted > 0)
    extent = (steps[0], max(steps[-1], steps[0] + 1), len(class_names) - 0.5, -0.5)
    image = middle.imshow(share, aspect="auto", extent=extent, vmin=0, vmax=100, interpolation="nearest")
    middle.set(title="accepted of those predicted, by class (white: none predicted)", xlabel="step")
    if len(class_names) <= 30:
        middle.set_yticks(range(len(class_names)), class_names, fontsize=8)
    figure.colorbar(image, ax=middle, label="%")
    for name, entry in (("first", logged[0]), ("middle", logged[len(logged) // 2]), ("last", logged[-1])):
        counts = np.array(entry["pseudo_confidence_histogram"], dtype=float)
        edges = np.arange(BINS + 1) / BINS
        right.stairs(100 * counts / counts.sum(), edges, label=f"{name}: step {entry['step']}", linewidth=1.4)
    right.set(title="confidence of pseudo-labels", xlabel="probability", ylabel="% of images")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
