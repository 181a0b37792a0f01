"""Health of a run without labels: measures of the features of a fixed sample, and whether it collapsed.

The measures are taken in evaluation mode on the same images every time; nothing here learns or sees a label.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.feature_metrics import (
    NEIGHBORS,
    alignment,
    effective_rank,
    embedding_std,
    linear_cka,
    neighbor_agreement,
    neighbors,
    uniformity,
)
from tpssl_hf.evaluation.features import finite

SAMPLE = 1024  # images of the fixed sample: a check then takes a second, and the measures settle to two digits

# Collapse, see HealthMonitor.check. Projections: at a scaled std s two images have a mean cosine of 1 - s², 0.94
# here; healthy runs were seen at 0.6 to 1, runs made to collapse at 0.22 and below.
PROJECTION_STD_LEAST = 0.25
# Features, as shares of the start's: ten times closer together; a twentieth of the dimensions.
STD_SHARE_LEAST, RANK_SHARE_LEAST = 0.1, 0.05
# And at any start: a line has rank 1; float32 tells unit vectors this close apart no more.
RANK_LEAST, STD_LEAST = 2.0, 1e-5
STARTED_FROM = "the network that the run started from"


class CollapseWarning(UserWarning):
    """The features or projections of different images have become nearly the same."""


@dataclass(frozen=True)
class HealthReport:
    """What one check found; numbers are NaN where features were not finite.

    Attributes:
        step: completed optimizer steps.
        embedding_std: 1 for spread features, 0 for a single point.
        effective_rank: number of dimensions in use.
        alignment: mean squared distance of two views of an image.
        uniformity: 0 for a single point, the lower the more even.
        neighbor_agreement_previous: share of nearest neighbors kept since the previous check.
        neighbor_agreement_start: share of nearest neighbors kept since Φ_pre.
        cka_start: linear CKA with Φ_pre's features.
        knn_accuracy: of labels of the training set at hand, if any.
        collapsed: whether the run has collapsed.
        reason: if so, what was measured, what it means and what to do, in one sentence.
    """

    step: int
    embedding_std: float
    effective_rank: float
    alignment: float
    uniformity: float
    neighbor_agreement_previous: float
    neighbor_agreement_start: float
    cka_start: float
    knn_accuracy: float | None
    collapsed: bool
    reason: str | None

    def entries(self) -> dict[str, float]:
        """Return the numbers as ``health_NAME``, for a line of the metrics log."""
        numbers = {name: value for name, value in asdict(self).items() if name not in ("step", "reason")}
        return {f"health_{name}": float(value) for name, value in numbers.items() if value is not None}


class HealthMonitor:
    """Watches the features of a fixed sample from Φ_pre on; begin it once, then check it every few epochs.

    Attributes:
        reports: what was found so far, in order.
    """

    def __init__(self, k: int = NEIGHBORS) -> None:
        self.k = k
        self.reports: list[HealthReport] = []
        self._tensors: dict[str, Tensor] = {}
        self._start: dict[str, float] = {}

    def begin(self, features: np.ndarray) -> None:
        """Keep Φ_pre's features (N, D) of the sample; every later check is held against them.

        Raises:
            InputError: if there are fewer than three images, or their features are not finite.
        """
        if len(features) < 3:
            raise InputError(
                f"the health of a run needs 3 images or more, there are {len(features)}; give more, or switch it off "
                "with --health_every 0."
            )
        found = torch.from_numpy(neighbors(finite(features, STARTED_FROM), self.k))
        self._start = {"std": embedding_std(features), "rank": effective_rank(features)}
        start = torch.from_numpy(features.astype(np.float32))
        self._tensors = {"start_features": start, "start_neighbors": found, "previous_neighbors": found.clone()}

    def check(
        self,
        step: int,
        features: np.ndarray,
        views: tuple[np.ndarray, np.ndarray],
        projection_std_scaled: float | None = None,
        knn: float | None = None,
    ) -> HealthReport:
        """Measure, compare with Φ_pre and the previous check, and warn once when the run collapses.

        Features of a randomly initialized ReLU network share a large mean, lie close together and have a low rank
        without having collapsed, so features are judged by their spread and rank about their mean, against the
        start's. BatchNorm can hold features apart while the head maps all of them to one point, from where nothing is
        learned any more, and it can hold projections apart while features shrink: so both are judged. A run has
        collapsed when any of these holds:

        - features are not finite;
        - the projections' std times √D is below 0.25;
        - the features' std is at most 0.1 of the start's, or 1e-5;
        - the features' effective rank is below 0.05 of the start's, or below 2 and half of the start's.

        Args:
            step: completed optimizer steps.
            features: (N, D) of the sample, in the order of ``begin``.
            views: features (N, D) of two distorted views of the sample, the same at every check.
            projection_std_scaled: std of the method's l2-normalized projections times √D, if it has them.
            knn: kNN accuracy on held-out labels of the training set, if there are any.
        """
        start = self._tensors["start_features"].numpy()
        if not all(np.isfinite(matrix).all() for matrix in (features, *views)):
            lost = "features are no finite numbers"
            nan = math.nan
            return self._keep(HealthReport(step, nan, nan, nan, nan, nan, nan, nan, knn, True, _reason(step, lost)))
        found = neighbors(features, self.k)
        previous, first = (self._tensors[f"{name}_neighbors"].numpy() for name in ("previous", "start"))
        std, rank = embedding_std(features), effective_rank(features)
        fault = _fault(std, rank, self._start, projection_std_scaled)
        report = HealthReport(
            step,
            std,
            rank,
            alignment(*views),
            uniformity(features),
            neighbor_agreement(found, previous),
            neighbor_agreement(found, first),
            linear_cka(features, start),
            knn,
            fault is not None,
            fault and _reason(step, fault),
        )
        self._tensors["previous_neighbors"] = torch.from_numpy(found)
        return self._keep(report)

    def _keep(self, report: HealthReport) -> HealthReport:
        if report.collapsed and not (self.reports and self.reports[-1].collapsed):
            warnings.warn(str(report.reason), CollapseWarning, stacklevel=3)
        self.reports.append(report)
        return report

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that :meth:`load` continues from exactly."""
        reports = [asdict(report) for report in self.reports]
        return dict(self._tensors), {"k": self.k, "start": self._start, "reports": reports}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.k, self._start, self._tensors = values["k"], values["start"], dict(tensors)
        self.reports = [HealthReport(**report) for report in values["reports"]]


def _fault(std: float, rank: float, start: Mapping[str, float], projection_std: float | None) -> str | None:
    if projection_std is not None and not projection_std >= PROJECTION_STD_LEAST:
        return f"projections have {projection_std:.3g} of the std of spread ones (least {PROJECTION_STD_LEAST})"
    if std <= max(STD_LEAST, STD_SHARE_LEAST * start["std"]):
        return f"features have a std of {std:.3g}, {start['std']:.3g} at the start"
    if rank < max(RANK_SHARE_LEAST * start["rank"], min(RANK_LEAST, start["rank"] / 2)):
        return f"features have an effective rank of {rank:.3g}, {start['rank']:.3g} at the start"
    return None


def _reason(step: int, fault: str) -> str:
    return (
        f"step {step}: {fault}, so different images look nearly the same and the run has collapsed: lower "
        "base_learning_rate, raise batch_size or l2_weight, and check augmentations.png, in a new output_dir."
    )
