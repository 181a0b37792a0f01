"""Health monitor of a run: checks the features of a fixed sample every few epochs, and says when to stop."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.evaluation.batchnorm import with_reestimated_batchnorm
from tpssl_hf.evaluation.drift import IMAGES, StageWatch
from tpssl_hf.evaluation.features import batches_of, extract_features, features_of_views
from tpssl_hf.evaluation.probes import ProbeSplit, knn_accuracy
from tpssl_hf.monitoring.collapse import SAMPLE, HealthMonitor
from tpssl_hf.monitoring.early_stopping import settled

STAGE = "stage."  # what names of tensors that belong to a stage begin with, in a checkpoint
VIEW_EPOCH = 1 << 20  # the views of the sample are those of an epoch no run reaches, so they are new to the network


class HealthWatch:
    """Checks the health of a backbone every ``every`` steps on images of the store, the same ones each time.

    Attributes:
        stop_reason: why the run should stop, in one sentence, or None.

    Args:
        store: the images; at most 1,024 of them, drawn with a fixed seed, are looked at.
        settings: of the views.
        transform: images to views, as the method draws them; two of them are compared.
        device: where the backbone is.
        every: steps between two checks.
        settle_after: steps before the run may count as settled.
        projection_features: width of the method's projections, D; None if it has none.
        stop_on_collapse: whether a collapse stops the run, or only warns.
        stop_when_stable: whether a settled run stops.
        probe: images with labels to log kNN accuracy on, or None.
        reestimate: whether the backbone is saved with re-estimated BatchNorm statistics, and so looked at with them.
    """

    def __init__(
        self,
        store: ImageCache,
        settings: ViewSettings,
        transform: Callable[[ImageBatch], dict[str, Tensor]],
        device: torch.device,
        *,
        every: int,
        settle_after: int,
        projection_features: int | None,
        stop_on_collapse: bool,
        stop_when_stable: bool,
        probe: ProbeSplit | None,
        reestimate: bool = True,
    ) -> None:
        self.store, self.settings, self.transform, self.device = store, settings, transform, device
        self.every, self.settle_after = every, settle_after
        self.projection_features = projection_features
        self.stop_on_collapse, self.stop_when_stable = stop_on_collapse, stop_when_stable
        self.probe, self.reestimate = probe, reestimate
        self.sample = np.sort(np.random.default_rng(0).permutation(len(store))[:SAMPLE])
        self.monitor, self.stages = HealthMonitor(), StageWatch()
        self.stop_reason: str | None = None
        self._checked = 0

    def begin(self, backbone: nn.Module, known: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Keep what Φ_pre makes of the sample, with the BatchNorm statistics of the sample as in every check.

        ``known`` are its features of images by index, where they have been made already.
        """
        backbone = self._reestimated(backbone)
        features = self._features(backbone, self.sample) if known is None else known(self.sample)
        self.monitor.begin(features)
        self.stages.begin(backbone, self._images())

    def due(self, step: int) -> bool:
        """Whether ``every`` more steps are done since the last check."""
        return step // self.every > self._checked // self.every

    def check(
        self,
        step: int,
        backbone: nn.Module,
        projection_std: float | None,
        moved: Mapping[str, tuple[float, float]],
    ) -> dict[str, float]:
        """Measure, warn of a collapse, settle whether to stop; returns entries for the metrics log.

        ``moved`` is what :meth:`tpssl_hf.methods.pretrain.anchor.Anchor.moved` returns.

        What is looked at is the backbone as it would be saved now, with the BatchNorm statistics of the sample.
        """
        self._checked = step
        backbone = self._reestimated(backbone)
        scaled = None
        if projection_std is not None and self.projection_features is not None:
            scaled = projection_std * math.sqrt(self.projection_features)
        knn = None
        if self.probe is not None:
            bank, queries = self._features(backbone, self.probe.bank), self._features(backbone, self.probe.queries)
            knn = knn_accuracy(bank, self.probe.bank_labels, queries, self.probe.query_labels)
        views = features_of_views(backbone, self.store, self.sample, self.transform, self.device, epoch=VIEW_EPOCH)
        report = self.monitor.check(step, self._features(backbone, self.sample), views, scaled, knn)
        if report.collapsed and self.stop_on_collapse:
            self.stop_reason = report.reason
        elif self.stop_when_stable:
            self.stop_reason = settled(self.monitor.reports, after_step=self.settle_after)
        return report.entries() | self.stages.check(backbone, self._images(), moved)

    def _images(self) -> Tensor:
        images = self.store.gather(self.sample[:IMAGES], epoch=0).to(self.device)
        return eval_view(images, self.settings)

    def _reestimated(self, backbone: nn.Module) -> nn.Module:
        if not self.reestimate:
            return copy.deepcopy(backbone).eval()
        images = (self.store.gather(part, epoch=0) for part in batches_of(self.sample))
        return with_reestimated_batchnorm(backbone, images, self.settings, self.device)

    def _features(self, backbone: nn.Module, indices: np.ndarray) -> np.ndarray:
        return extract_features(backbone, self.store, indices, self.settings, self.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that :meth:`load` continues from exactly."""
        tensors, values = self.monitor.state()
        tensors |= {f"{STAGE}{name}": features for name, features in self.stages.start.items()}
        return tensors, {"monitor": values, "stop_reason": self.stop_reason, "checked": self._checked}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.stages.start = {name.removeprefix(STAGE): t for name, t in tensors.items() if name.startswith(STAGE)}
        self.monitor.load({n: t for n, t in tensors.items() if not n.startswith(STAGE)}, values["monitor"])
        self.stop_reason, self._checked = values["stop_reason"], values["checked"]
