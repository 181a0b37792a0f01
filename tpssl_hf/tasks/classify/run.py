"""One run of semi-supervised classification: what it is made of (paper §III-A, Eq. 4)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.evaluation.multilabel import mean_average_precision, sigmoid
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.metrics.tpssl_classification.tpssl_classification import classification_scores
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.classifier import load_classifier
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.monitoring.pseudo_labels import PseudoLabelAudit
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.classify.data import FinetuningData, Split, data_facts, open_data, with_labels
from tpssl_hf.tasks.classify.frozen import fit_first_head, head_of
from tpssl_hf.tasks.classify.selection import Folds, plan_folds
from tpssl_hf.tasks.finetuning import FinetuningRun
from tpssl_hf.tasks.finetuning_inputs import finetuning_optimizer, keeps_statistics, open_streams
from tpssl_hf.training.accelerator import prepare_method
from tpssl_hf.training.optim import cosine_7_16, four_steps
from tpssl_hf.training.run_dir import RunDir

EPOCH_RATIO = 7  # unlabeled images per labeled one by which epochs are counted, the same for every learner
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine_7_16, "steps": four_steps}


@dataclass(frozen=True, kw_only=True)
class ClassifyRun(FinetuningRun[ClassifyArgs]):
    """A run of classification.

    Attributes:
        data: its images and labels.
        views: how they are shown.
        audit: of the pseudo-labels.
        fit_seconds: how long the head was fitted before the first step.
    """

    data: FinetuningData
    views: ViewSettings
    audit: PseudoLabelAudit
    fit_seconds: float

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return (self.args.data.image_size, self.args.data.image_size)

    def data_facts(self) -> dict[str, str]:
        """Return what must be the same of the data when the run is resumed."""
        return data_facts(self.data)

    def announce(self) -> list[str]:
        """Return what is said before the first step, a line each."""
        data = self.data
        return [
            f"{data.labeled.chosen}: {len(data.labeled.indices)} of {len(data.store):,} images; "
            f"from {self.origin.kind} weights ({self.origin.name}), BatchNorm statistics of the backbone "
            f"{'frozen' if self.statistics_frozen else 'learned'}, {self._begins_with()}",
            *(f"  {note}" for note in data.notes),
            *self._compares(),
            *(note for note in (rate_note(self.args, self.origin.kind), self._size_note()) if note),
        ]

    def _begins_with(self) -> str:
        if self.max_steps == 0:
            return f"head fitted by {self.args.task.method} in {self.fit_seconds:.0f} s; no steps"
        return f"head {self.args.task.head_init}; {self.max_steps} steps"

    @property
    def folds(self) -> Folds | None:
        """The labels that are held out together for the comparison at the end; None where there is none."""
        if self.args.task.select == "last":
            return None
        return plan_folds(self.data.labeled.labels, self.max_steps, self.args.task.label_seed)

    def _compares(self) -> list[str]:
        if (folds := self.folds) is None or folds.steps == 0:
            return []
        others = "" if self.data.labeled.several else " and label spreading"
        return [
            f"then {folds.count} x {folds.steps} steps without some of the labels each, to compare it with a frozen "
            f"probe{others} (--select last does without)"
        ]

    def _size_note(self) -> str:
        return self.origin.size_note(self.views.image_size)

    def draw_first_views(self, path: Path) -> None:
        """Write the image of the first eight images and their views."""
        name = "unlabeled" if "unlabeled" in self.transforms else "labeled"
        images = self.first_images(name)
        made = {key: value for key, value in self.transforms[name](images).items() if value.ndim == 4}
        draw_views(path, images, made, mean=self.views.mean, std=self.views.std)

    def observe(self, step: int) -> dict[str, Any]:
        """Return the audit of pseudo-labels, and scores where they are due."""
        pseudo = self.method.pseudo_labels
        entries: dict[str, Any] = {} if pseudo is None else dict(self.audit.look(step, pseudo))
        epochs, log_every = self.args.task.evaluate_every, self.args.run.log_every
        every = max(1, round(epochs * (self.epoch_steps or 1))) if epochs > 0 else 0
        last_logged = (step - 1) // log_every * log_every
        if every and step // every > last_logged // every:
            entries |= evaluations(self)
        return entries

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the audit so far."""
        return self.audit.state()

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Give back what :meth:`state` returned."""
        self.audit.load(dict(tensors), dict(values))


def prepare(args: ClassifyArgs, accelerator: Accelerator, run_dir: RunDir | None) -> ClassifyRun:
    """Open the images, choose the labels, load Φ, put a new classifier on it and the learner around it."""
    return assemble(args, accelerator, open_data(args, accelerator, run_dir))


def assemble(args: ClassifyArgs, accelerator: Accelerator, data: FinetuningData) -> ClassifyRun:
    """Load Φ, put a new classifier on it and the learner around it; the same for the same arguments and labels."""
    model, optim, spec = args.model, args.optim, CLASSIFY[args.task.method]
    classifier, origin = load_start(args, data)
    if model.gradient_checkpointing:
        recompute_activations(classifier)
    views = _view_settings(args, data, classifier)
    frozen = keeps_statistics(model.backbone_batchnorm, origin)
    if frozen:
        freeze_statistics(classifier)
    began = time.perf_counter()
    fit_first_head(args, classifier, data, views, accelerator.device)
    fit_seconds = time.perf_counter() - began
    heads = list(head_of(classifier).parameters())
    method = prepare_method(
        spec.build(classifier, args.method, len(data.unlabeled)), model, accelerator, args.run.memory_format
    )
    transforms = dict(spec.views(views, args.method))
    transforms["labeled"] = with_labels(transforms["labeled"], data.labeled, len(data.store), accelerator.device)
    epoch_steps = steps_per_epoch(data, optim.batch_size)
    max_steps = 0 if spec.fit_labels else optim.max_steps or max(1, round(optim.epochs * epoch_steps))
    shape, learning_rate = SCHEDULES[optim.schedule], optim.learning_rate
    assert learning_rate is not None, "resolve() puts it in"
    # Images held out for validation stay in: they are seen without their labels, as every training image is.
    unlabeled = (data.unlabeled, None) if "unlabeled" in transforms else None
    return ClassifyRun(
        args=args,
        accelerator=accelerator,
        dataset_name=data.source.name,
        origin=origin,
        streams=open_streams(
            args,
            accelerator,
            (data.store, data.labeled.indices),
            unlabeled,
            classes=data.labeled.labels if args.task.labeled_sampling == "classes" else None,
        ),
        transforms=transforms,
        method=method,
        optimizer=finetuning_optimizer(args, method, heads),
        epoch_steps=epoch_steps,
        max_steps=max_steps,
        learning_rate=lambda step: learning_rate * shape(step / max_steps),
        data=data,
        views=views,
        statistics_frozen=frozen,
        fit_seconds=fit_seconds,
        # a class may go without any pseudo-label for the first quarter of the run
        audit=PseudoLabelAudit(data.labeled.class_names, data.truth, warn_after=max(1, max_steps // 4)),
    )


def steps_per_epoch(data: FinetuningData, batch_size: int) -> int:
    """Return the steps of an epoch with ``batch_size`` labeled images each."""
    return max(1, len(data.unlabeled) // (EPOCH_RATIO * batch_size))


def load_start(args: ClassifyArgs, data: FinetuningData) -> tuple[nn.Module, WeightsSource]:
    """Load Φ with a new classifier; random weights are those that the seed gives."""
    set_seed(args.run.seed)
    model, classes = args.model, len(data.labeled.class_names)
    return load_classifier(model.backbone, init=model.init, classes=classes, image_size=args.data.image_size)


def _view_settings(args: ClassifyArgs, data: FinetuningData, classifier: nn.Module) -> ViewSettings:
    """Views at the images' own size where they are small, resized and normalized as the weights expect.

    Whole images are evaluated, whatever crop the weights came with: whole images are what is learned from.
    """
    own, flip = int(np.median(data.unlabeled.shorter_sides)), args.data.horizontal_flip
    return ViewSettings.of(
        preprocessing_of(classifier),
        args.run.seed,
        horizontal_flip=data.source.flip_is_safe if flip is None else flip,
        work_size=args.task.work_size or min(own, args.data.image_size),
        crop=args.task.crop,
        crop_pct=1.0,
        crop_mode="center",
    )


def rate_note(args: ClassifyArgs, start: str) -> str | None:
    """Say so if pretrained weights are about to be undone: a rate that is far above 0.03 for 64, in proportion."""
    optim, proportional = args.optim, 0.03 * args.optim.batch_size / 64
    if start == "random" or optim.optimizer != "sgd" or (optim.learning_rate or 0.0) <= 2 * proportional:
        return None
    return (
        f"note: learning_rate {optim.learning_rate:g} is high for {optim.batch_size} labeled images a "
        "step and may undo what was pretrained; "
        f"in proportion to FixMatch's 0.03 for 64 it would be {proportional:.2g}"
    )


def probabilities(run: ClassifyRun, network: nn.Module, split: Split) -> np.ndarray:
    """Class probabilities (N, K) float64 of undistorted images, in evaluation mode; of several labels, one each."""
    logits = extract_features(network, split.store, split.indices, run.views, run.accelerator.device)
    if run.data.labeled.several:
        return sigmoid(logits)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scaled: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return scaled


def measure_of(run: ClassifyRun) -> str:
    """Return the name of the score that a run is judged by."""
    return "mean_average_precision" if run.data.labeled.several else "accuracy"


def main_score(run: ClassifyRun, network: nn.Module, split: Split) -> float | None:
    """Share of images that a network gives their class; of several labels the mAP, None where it has none."""
    if run.data.labeled.several:
        return mean_average_precision(probabilities(run, network, split), split.labels)
    return float(classification_scores(probabilities(run, network, split), split.labels)["accuracy"])


def evaluations(run: ClassifyRun) -> dict[str, float]:
    """Return ``test_accuracy`` and ``validation_accuracy`` of the network as it is, as far as there are images.

    Of several labels they are ``test_mean_average_precision`` and ``validation_mean_average_precision``.
    """
    parts = {"test": run.data.test, "validation": run.data.validation}
    found = {name: main_score(run, run.method.deployed, split) for name, split in parts.items() if split is not None}
    return {f"{name}_{measure_of(run)}": value for name, value in found.items() if value is not None}
