"""One run of semi-supervised finetuning: what it is made of, and how it is carried out (paper §III-A, Eq. 4)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.parser import take
from tpssl_hf.config.shared import DataConfig, ModelConfig, RunConfig
from tpssl_hf.data.streams import EndlessStream
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.methods.base import PseudoLabels, Views
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.metrics.tpssl_classification.tpssl_classification import classification_scores
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.classifier import load_classifier
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.monitoring.pseudo_labels import PseudoLabelAudit
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.classify.config import ClassifyConfig, FinetuneConfig
from tpssl_hf.tasks.classify.data import FinetuningData, Split, data_facts, open_data, with_labels
from tpssl_hf.tasks.published_path import check_classifier, some_of
from tpssl_hf.training.accelerator import per_device_batch_size, place, start_tracker
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.loop import LoopSettings, Stream, batches_on_device, train_behind_bar
from tpssl_hf.training.optim import build_optimizer, cosine_7_16, four_steps
from tpssl_hf.training.run_dir import RunDir, StopSignals

EPOCH_RATIO = 7  # unlabeled images per labeled one by which epochs are counted, the same for every learner
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine_7_16, "steps": four_steps}


@dataclass
class Job:
    """Everything one run is made of, settled before its first step."""

    settings: dict[str, Any]
    accelerator: Accelerator
    data: FinetuningData
    origin: WeightsSource
    views: ViewSettings
    streams: Mapping[str, Stream]
    transforms: Views
    method: nn.Module
    optimizer: torch.optim.Optimizer
    epoch_steps: int
    max_steps: int
    rate: Callable[[int], float]

    @property
    def images_per_step(self) -> int:
        """Labeled and unlabeled images of one step of all processes."""
        ratio = self.settings["unlabeled_ratio"] if "unlabeled" in self.transforms else 0
        return int(self.settings["batch_size"] * (1 + ratio))


def prepare(settings: dict[str, Any], method_config: Any, accelerator: Accelerator, run: RunDir | None) -> Job:
    """Open the images, settle the labels, load Φ, put a new classifier on it and the learner around it."""
    data, model, tune = (
        open_data(settings, accelerator, run),
        take(ModelConfig, settings),
        take(FinetuneConfig, settings),
    )
    spec, seed = CLASSIFY[settings["method"]], settings["seed"]
    set_seed(seed)
    classifier, origin = load_classifier(
        model.backbone, init=model.init, classes=len(data.labeled.class_names), image_size=settings["image_size"]
    )
    if model.gradient_checkpointing:
        recompute_activations(classifier)
    views = _view_settings(settings, data, classifier)
    heads = list(classifier.get_classifier().parameters())  # type: ignore[operator]
    method = place(spec.build(classifier, method_config, len(data.unlabeled)), model, accelerator)
    transforms = dict(spec.views(views, method_config))
    transforms["labeled"] = with_labels(transforms["labeled"], data.labeled, len(data.store), accelerator.device)
    optimizer = build_optimizer(
        tune.optimizer,
        method,
        weight_decay=tune.weight_decay,
        momentum=tune.momentum,
        decay_norm_and_bias=tune.decay_norm_and_bias,
        nesterov=tune.nesterov,
        heads=heads,
        head_lr_multiplier=tune.head_lr_multiplier,
    )
    epoch_steps = max(1, len(data.unlabeled) // (EPOCH_RATIO * tune.batch_size))
    max_steps = tune.max_steps or max(1, round(tune.epochs * epoch_steps))
    shape = SCHEDULES[tune.schedule]
    streams = _open_streams(tune, seed, data, accelerator, needed="unlabeled" in transforms)
    return Job(
        settings,
        accelerator,
        data,
        origin,
        views,
        streams,
        transforms,
        method,
        optimizer,
        epoch_steps,
        max_steps,
        lambda step: tune.learning_rate * shape(step / max_steps),
    )


def _view_settings(settings: dict[str, Any], data: FinetuningData, classifier: nn.Module) -> ViewSettings:
    """Views at the images' own size where they are small, resized and normalized as the weights expect.

    Whole images are evaluated, whatever crop the weights came with: whole images are what is learned from.
    """
    choice, options = take(ClassifyConfig, settings), take(DataConfig, settings)
    own = int(np.median(data.unlabeled.shorter_sides))
    return ViewSettings.of(
        preprocessing_of(classifier),
        settings["seed"],
        horizontal_flip=data.source.flip_is_safe if options.horizontal_flip is None else options.horizontal_flip,
        work_size=choice.work_size or min(own, options.image_size),
        crop=choice.crop,
        crop_pct=1.0,
        crop_mode="center",
    )


def _open_streams(
    tune: FinetuneConfig, seed: int, data: FinetuningData, accelerator: Accelerator, *, needed: bool
) -> dict[str, Stream]:
    """Open the labeled and, where ``needed``, the unlabeled stream; labeled images are also unlabeled ones."""
    place_in_world = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    share = per_device_batch_size(tune.batch_size, accelerator.num_processes, 1)
    labeled = EndlessStream(data.store, batch_size=share, seed=seed, indices=data.labeled.indices, **place_in_world)
    if not needed:
        return {"labeled": labeled}
    if tune.unlabeled_ratio < 1:
        raise InputError(f"unlabeled_ratio is {tune.unlabeled_ratio}; this learner needs 1 or more (7 is usual).")
    # Images held out for validation stay in: they are seen without their labels, as every training image is.
    unlabeled = EndlessStream(data.unlabeled, batch_size=share * tune.unlabeled_ratio, seed=seed, **place_in_world)
    return {"labeled": labeled, "unlabeled": unlabeled}


def probabilities(job: Job, network: nn.Module, split: Split) -> np.ndarray:
    """Class probabilities (N, K) float64 of undistorted images, in evaluation mode."""
    logits = extract_features(network, split.store, split.indices, job.views, job.accelerator.device)
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scaled: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return scaled


def scores(job: Job, split: Split) -> dict[str, Any]:
    """Score the deployed network, see :func:`classification_scores`."""
    return classification_scores(probabilities(job, cast(nn.Module, job.method.deployed), split), split.labels)


def score_test(job: Job) -> tuple[dict[str, Any], np.ndarray | None]:
    """Score the deployed network on the test images, if any; returns scores and probabilities, or {} and None."""
    if job.data.test is None:
        return {}, None
    answers = probabilities(job, cast(nn.Module, job.method.deployed), job.data.test)
    return classification_scores(answers, job.data.test.labels), answers


def published_path(job: Job, folder: Path, answers: np.ndarray | None) -> dict[str, Any]:
    """Compare the folder that was saved with the deployed network, see :func:`check_classifier`.

    Args:
        job: the finished run.
        folder: what was saved of it.
        answers: (N, K) probabilities of the test images that were scored, which are not looked at again; None
            without a test split.
    """
    data = job.data
    parts = {"test": data.test, "validation": data.validation}
    parts["training"] = Split(data.store, data.labeled.indices, data.labeled.labels)
    of, split = next((name, split) for name, split in parts.items() if split is not None)
    some = some_of(np.arange(len(split.indices)))
    chosen = replace(split, indices=split.indices[some], labels=split.labels[some])
    own = probabilities(job, cast(nn.Module, job.method.deployed), chosen) if answers is None else answers[some]
    names = list(data.labeled.class_names)
    return check_classifier(folder, chosen.store, chosen.indices, own, names, job.accelerator.device, of)


def evaluations(job: Job, *, test: bool = True) -> dict[str, float]:
    """Return ``test_accuracy`` and ``validation_accuracy`` of the deployed network, as far as there are images."""
    parts = {"test_accuracy": job.data.test if test else None, "validation_accuracy": job.data.validation}
    return {name: scores(job, split)["accuracy"] for name, split in parts.items() if split is not None}


def make_audit(job: Job) -> PseudoLabelAudit:
    """Make the audit of pseudo-labels; a class may go without any for the first quarter of the run."""
    return PseudoLabelAudit(job.data.labeled.class_names, job.data.truth, warn_after=max(1, job.max_steps // 4))


def finetune(
    job: Job, run: RunDir | None, signals: StopSignals, say: Callable[..., None]
) -> tuple[int, dict[str, Any]]:
    """Train from the start or from the newest checkpoint; returns the completed steps and the run's state."""
    options, accelerator = take(RunConfig, job.settings), job.accelerator
    folder, began = Path(options.output_dir), time.perf_counter()
    facts = {**data_facts(job.data), "origin": job.origin.as_dict()}
    checkpoints = CheckpointManager(
        accelerator, run, folder / "checkpoints", job.method, job.optimizer, facts, options.keep_checkpoints
    )
    audit, checkpoint = make_audit(job), checkpoints.restore()
    start_step, state = 0, {"seconds": 0.0}
    if checkpoint:
        start_step, state["seconds"] = checkpoint.step, checkpoint.state["seconds"]
        audit.load(checkpoint.tensors["audit"], checkpoint.state["audit"])
        say(f"resuming after step {start_step} of {job.max_steps}")
    elif run:
        draw_first_views(job, folder / "augmentations.png")
        say(f"{folder / 'augmentations.png'} shows the views: look at it before you wait")
    seconds_before, track = state["seconds"], start_tracker(accelerator, job.settings)
    epochs_between = take(ClassifyConfig, job.settings).evaluate_every
    every = max(1, round(epochs_between * job.epoch_steps)) if epochs_between > 0 else 0

    def log(step: int, values: dict[str, float]) -> None:
        entries: dict[str, Any] = dict(values)
        pseudo: PseudoLabels | None = getattr(job.method, "pseudo_labels", None)
        if run and pseudo is not None:
            entries |= audit.look(step, pseudo)
        last_logged = (step - 1) // options.log_every * options.log_every
        if run and every and step // every > last_logged // every:
            entries |= evaluations(job)
        if run:
            run.append({"step": step, "epoch": step / job.epoch_steps, **entries})
        track({name: value for name, value in entries.items() if isinstance(value, float)}, step)

    def save(step: int) -> None:
        state["seconds"] = seconds_before + time.perf_counter() - began
        tensors, values = audit.state()
        checkpoints.save(step, {**state, "audit": values}, {"audit": tensors})

    done = train_behind_bar(
        accelerator,
        job.method,
        job.optimizer,
        job.rate,
        batches_on_device(job.streams, job.transforms, start_step, accelerator.device),
        LoopSettings(job.max_steps, job.images_per_step, 1, options.log_every, options.save_every, options.seed),
        title=f"{job.settings['method']} on {job.data.source.name}",
        shown=run is not None,
        start_step=start_step,
        log=log,
        save=save,
        stop=lambda: bool(signals.requested),
    )
    return done, state


def draw_first_views(job: Job, path: Path) -> None:
    """Write the image of the first eight images and their views."""
    name = "unlabeled" if "unlabeled" in job.transforms else "labeled"
    batches = job.streams[name].batches(0)
    images = next(batches)[:8].to(job.accelerator.device)
    batches.close()
    made = {key: value for key, value in job.transforms[name](images).items() if value.ndim == 4}
    draw_views(path, images, made, mean=job.views.mean, std=job.views.std)
