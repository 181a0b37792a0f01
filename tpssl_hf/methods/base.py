"""Base class of all methods, and what a task must know about one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewPolicy, ViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.batchnorm import keep_frozen

Batch = Mapping[str, Mapping[str, Tensor]]  # stream name -> field name -> tensor
Losses = dict[str, Tensor]  # "loss" carries the gradient; every other entry is a detached scalar for the log
Views = Mapping[str, Callable[[ImageBatch], dict[str, Tensor]]]  # stream name -> transform of its images


@dataclass(frozen=True)
class PseudoLabels:
    """What a learner took its unlabeled images for in one step, for the audit; without gradients.

    Attributes:
        index: (U,) int64, number of each unlabeled image in its store.
        labels: (U,) int64, the class it was taken for.
        confidence: (U,) float32 in [0, 1], the probability of that class.
        weights: (U,) float32 in [0, 1], how much the image counts in the loss; 0 or 1 for a threshold.
    """

    index: Tensor
    labels: Tensor
    confidence: Tensor
    weights: Tensor


def both_ways(batch: Batch) -> tuple[Batch, Batch]:
    """Return a batch of two views, and the same with ``view1`` for ``view2`` and so for all that is numbered."""
    other = {"1": "2", "2": "1"}
    return batch, {
        stream: {name[:-1] + other.get(name[-1], name[-1]): value for name, value in fields.items()}
        for stream, fields in batch.items()
    }


class Method(nn.Module, ABC):
    """Base class of every method: its networks, its losses, and what follows the optimizer step.

    All state is in parameters and buffers, so that a state dict is the whole of it. A bad step is undone by copies of
    all buffers from before it; a module with large ones can spare the copy by a class attribute ``buffers_change``
    (:mod:`tpssl_hf.models.buffers`).

    Attributes:
        pseudo_labels: those of the last forward pass, for the audit; None before it and for methods without any.
        projection_features: D of the projections whose spread the losses name ``projection_std``; None without any.
        teacher_source: where the weights of a frozen teacher come from that is no part of the state; None without one.
    """

    pseudo_labels: PseudoLabels | None = None
    projection_features: int | None = None
    teacher_source: WeightsSource | None = None

    def begin(self, batches: Iterable[Batch]) -> None:
        """Fit to some images what should not begin at random; nothing by default.

        Called once, before the first step of a run and on no later start.

        Args:
            batches: views of images as ``forward`` takes them, made when asked for.
        """
        return

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        """Return what ``forward`` is given, one after the other, for a batch: the step's loss is the mean of theirs.

        A method that predicts each view from the other goes two ways. Each goes backward before the next one goes
        forward, so that the activations of one view are held at a time.
        """
        return (batch,)

    @abstractmethod
    def forward(self, batch: Batch, progress: float) -> Losses:
        """Compute all losses of one step, or of one of its ways. The only entry point wrapped by DDP and autocast.

        Args:
            batch: the streams that the spec's ``views`` names.
            progress: completed part of the run, in [0, 1).
        """

    def after_step(self, progress: float) -> None:
        """Update teachers and queues after the optimizer step; nothing by default. Called on the unwrapped module."""
        return

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; BatchNorm layers with frozen statistics stay in evaluation mode."""
        super().train(mode)
        keep_frozen(self)
        return self

    @property
    @abstractmethod
    def deployed(self) -> nn.Module:
        """The network that is evaluated, saved and published (online backbone, EMA teacher or student)."""

    @property
    def scored(self) -> Literal["teacher", "student"]:
        """Which network ``deployed`` is: one that the optimizer trains, or one that only follows it."""
        return "student" if any(p.requires_grad for p in self.deployed.parameters()) else "teacher"

    def moved(self) -> dict[str, tuple[float, float]]:
        """Return ‖w − w_start‖² and ‖w_start‖² of each trainable tensor of ``deployed``; empty if no start is kept."""
        return {}


@dataclass(frozen=True)
class MethodSpec:
    """Everything a task must know about one pretraining method.

    Attributes:
        config: dataclass of the method's own hyper-parameters.
        build: (backbone, config) -> method.
        views: (settings, config) -> stream name -> transform; the keys decide which streams exist.
        defaults: values of shared configuration keys that the method's source prescribes.
        check: (backbone, config, image size, images per optimizer step) -> nothing, or an ``InputError`` that says
            what does not fit, before the first step.
        crop_scale: least and greatest area of the views' crops, as shares of the image's.
    """

    config: type
    build: Callable[[nn.Module, Any], Method]
    views: Callable[[ViewSettings, Any], Views]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[nn.Module, Any, int, int], None] = lambda backbone, config, image_size, batch_size: None
    crop_scale: tuple[float, float] = ViewPolicy.crop_scale


@dataclass(frozen=True)
class LearnerSpec:
    """Everything a task must know about one semi-supervised learner.

    Attributes:
        config: dataclass of the learner's own hyper-parameters.
        build: (classifier or segmenter, config, number of unlabeled images) -> method.
        views: (settings, config) -> stream name -> transform; the keys decide which streams exist. The settings are
            those of the task: ``ViewSettings``, or ``SegmentViewSettings``.
        defaults: values of shared configuration keys that the learner's source prescribes.
        fit_labels: of a learner that makes no step: (frozen features (N, D), labels (N,) with −1 for unknown, config)
            -> the labels (N,) and weights (N,) that the classifier is fitted to before the first step.
        several_labels: whether it also learns from several labels an image: ``labels`` (B, K) int64, 1 for a label, 0
            for none, -1 for unknown.
    """

    config: type
    build: Callable[[Any, Any, int], Method]
    views: Callable[[Any, Any], Views]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fit_labels: Callable[[np.ndarray, np.ndarray, Any], tuple[np.ndarray, np.ndarray]] | None = None
    several_labels: bool = False
