"""One run of target pretraining, Φ_pre → Φ_T (paper §III-B, Eq. 3): what it is made of, and how it is carried out."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.parser import take
from tpssl_hf.config.shared import DataConfig, ModelConfig, OptimConfig, RunConfig
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.data.streams import ImageStream
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import REESTIMATION_IMAGES, sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.evaluation.probes import probe, probe_split
from tpssl_hf.methods.base import Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import WeightsSource, load_backbone
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.monitoring.feature_monitor import HealthWatch
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.pretrain.config import HealthConfig, PretrainConfig
from tpssl_hf.tasks.pretrain.data import open_images
from tpssl_hf.training.accelerator import per_device_batch_size, place, start_tracker
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.loop import LoopSettings, Stream, batches_on_device, train_behind_bar
from tpssl_hf.training.optim import build_optimizer, lars_reach, warmup_cosine
from tpssl_hf.training.run_dir import RunDir, StopSignals

# A reach (see lars_reach) below which a backbone stays what it was. The shortest presets seen to change features have
# 4 to 5 %, the paper's runs 40 % and more.
LEAST_REACH = 0.03


@dataclass
class Job:
    """Everything one run is made of, settled before its first step."""

    settings: dict[str, Any]
    accelerator: Accelerator
    source: Source
    store: ImageCache | None  # None when streaming
    stream: Stream
    origin: WeightsSource
    views: ViewSettings
    transforms: Views
    method: nn.Module
    optimizer: torch.optim.Optimizer
    epoch_steps: int | None  # None when streaming
    max_steps: int
    rate: Callable[[int], float]
    projection_features: int


def prepare(settings: dict[str, Any], method_config: Any, accelerator: Accelerator, run: RunDir | None) -> Job:
    """Open the images, load Φ_pre, put the method around it, plan the length."""
    choice, data, model = take(PretrainConfig, settings), take(DataConfig, settings), take(ModelConfig, settings)
    optim, options = take(OptimConfig, settings), take(RunConfig, settings)
    source = load_source(
        data.dataset,
        split=data.split,
        dataset_config=data.dataset_config,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
    )
    share = per_device_batch_size(optim.batch_size, accelerator.num_processes, optim.gradient_accumulation_steps)
    spec = PRETRAIN[choice.method]
    store, stream = open_images(source, data, share, options.seed, accelerator, run, spec.crop_scale)
    batches_per_epoch = stream.steps_per_epoch if isinstance(stream, ImageStream) else None
    epoch_steps = batches_per_epoch and max(1, batches_per_epoch // optim.gradient_accumulation_steps)
    set_seed(options.seed)
    backbone, origin = load_backbone(model.backbone, init=model.init, image_size=data.image_size)
    flip = source.flip_is_safe if data.horizontal_flip is None else data.horizontal_flip
    views = ViewSettings.of(preprocessing_of(backbone), options.seed, horizontal_flip=flip)
    spec.check(backbone, method_config, data.image_size, optim.batch_size)
    max_steps = optim.max_steps or optim.epochs * (epoch_steps or 0)
    if max_steps < 1:
        raise InputError("a streamed data set has no known length: give --max_steps, a whole number above 0.")
    rate = schedule(optim, max_steps, epoch_steps)
    beside = (lambda progress: rate(round(progress * max_steps))) if choice.l2_mode == "decoupled" else None
    if model.gradient_checkpointing:
        recompute_activations(backbone)
    inner = spec.build(backbone, method_config)
    method = place(Anchor(inner, choice.l2_weight or 0.0, decoupled_rate=beside), model, accelerator)
    optimizer = build_optimizer(
        optim.optimizer,
        method,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_norm_and_bias=optim.decay_norm_and_bias,
    )
    return Job(
        settings,
        accelerator,
        source,
        store,
        stream,
        origin,
        views,
        spec.views(views, method_config),
        method,
        optimizer,
        epoch_steps,
        max_steps,
        rate,
        method_config.projection_features,
    )


def schedule(optim: OptimConfig, max_steps: int, epoch_steps: int | None) -> Callable[[int], float]:
    """Return the rate of each step; where the length of an epoch is unknown, a warm-up is a tenth of the run."""
    epochs = optim.warmup_epochs
    warmup = round(epochs * epoch_steps) if epoch_steps else max_steps if epochs > 0 else 0
    return partial(
        warmup_cosine,
        base=optim.learning_rate * optim.batch_size / 256,
        max_steps=max_steps,
        warmup_steps=min(warmup, max_steps // 10),
    )


def cautions(job: Job) -> list[str]:
    """Say what a run cannot do: weights that can hardly move, and what is off where images are streamed."""
    found = []
    reach = lars_reach(job.rate, job.max_steps)
    if job.settings["optimizer"] == "lars" and 0 < reach < LEAST_REACH:
        found.append(
            f"caution: at these rates LARS moves a weight tensor by {reach:.2%} of its length in all "
            f"{job.max_steps:,} steps (a run that adapts needs {LEAST_REACH:.0%} or more); give more steps, or "
            f"--learning_rate {job.settings['learning_rate'] * LEAST_REACH / reach:.2g}"
        )
    if job.store is None:
        length = "a tenth of the steps" if job.settings["warmup_epochs"] > 0 else "off"
        found.append(
            f"streaming: epochs have no known length, so warm-up is {length}. Health checks (health_every, "
            "on_collapse, stop_when, probe_labels), probes with their verdict, and the scan are off"
        )
    return found


def pretrain(
    job: Job, run: RunDir | None, signals: StopSignals, say: Callable[..., None]
) -> tuple[int, dict[str, Any]]:
    """Train from the start or from the newest checkpoint; returns the completed steps and what came up on the way."""
    optim, options = take(OptimConfig, job.settings), take(RunConfig, job.settings)
    accelerator, parts = job.accelerator, optim.gradient_accumulation_steps
    folder, began = Path(options.output_dir), time.perf_counter()
    facts = {"dataset": job.source.fingerprint, "origin": job.origin.as_dict()}
    checkpoints = CheckpointManager(
        accelerator, run, folder / "checkpoints", job.method, job.optimizer, facts, options.keep_checkpoints
    )
    watch = make_watch(job) if run else None
    checkpoint = checkpoints.restore()
    start_step = checkpoint.step if checkpoint else 0
    if checkpoint:
        state = {name: checkpoint.state[name] for name in ("seconds", "before", "statistics_only", "stop_reason")}
        if watch:
            watch.load(checkpoint.tensors["health"], checkpoint.state["health"])
        say(f"resuming after step {start_step} of {job.max_steps}")
    else:
        before = probed_before(job) if run else {"before": {}, "statistics_only": {}}
        state = {"seconds": 0.0, **before, "stop_reason": None}
        if watch:
            watch.begin(job.method.deployed)  # type: ignore[arg-type]
        if run:
            draw_first_views(job, folder / "augmentations.png")
            say(f"{folder / 'augmentations.png'} shows the views: look at it before you wait")
    seconds_before, track = state["seconds"], start_tracker(accelerator, job.settings)

    def log(step: int, values: dict[str, float]) -> None:
        if watch and watch.due(step):
            moved = job.method.moved()  # type: ignore[operator]
            values = {**values, **watch.check(step, job.method.deployed, values.get("projection_std"), moved)}  # type: ignore[arg-type]
            state["stop_reason"] = watch.stop_reason
        if run:
            run.append({"step": step, "epoch": step / job.epoch_steps if job.epoch_steps else None, **values})
        track(values, step)

    def save(step: int) -> None:
        state["seconds"] = seconds_before + time.perf_counter() - began
        tensors, health = watch.state() if watch else ({}, {})
        checkpoints.save(step, {**state, "health": health}, {"health": tensors})

    done = start_step
    if state["stop_reason"] is None:  # else it had stopped for good, and was killed before its results
        done = train_behind_bar(
            accelerator,
            job.method,
            job.optimizer,
            job.rate,
            batches_on_device({"images": job.stream}, job.transforms, start_step * parts, accelerator.device),
            LoopSettings(job.max_steps, optim.batch_size, parts, options.log_every, options.save_every, options.seed),
            title=f"{job.settings['method']} on {job.source.name}",
            shown=run is not None,
            start_step=start_step,
            log=log,
            save=save,
            stop=lambda: bool(signals.requested or state["stop_reason"]),
        )
    state["stop_reason"] = broadcast_object_list([state["stop_reason"]])[0]
    return done, state


def make_watch(job: Job) -> HealthWatch | None:
    """Make the watch over the features' health; none where it was switched off or images are only streamed by."""
    health = take(HealthConfig, job.settings)
    if job.store is None or job.epoch_steps is None or health.health_every <= 0:
        return None
    labels = job.store.labels if health.probe_labels else None
    return HealthWatch(
        job.store,
        job.views,
        next(iter(job.transforms.values())),
        job.accelerator.device,
        every=max(1, round(health.health_every * job.epoch_steps)),
        settle_after=job.max_steps // 4,  # past the warm-up, which is a tenth of the run at most
        projection_features=job.projection_features,
        stop_on_collapse=health.on_collapse == "stop",
        stop_when_stable=health.stop_when == "stable",
        probe=probe_split(labels, most=2000) if labels is not None else None,
    )


def draw_first_views(job: Job, path: Path) -> None:
    """Write the image of the first eight images and their views."""
    batches = job.stream.batches(0)
    images = next(batches)[:8].to(job.accelerator.device)
    batches.close()
    views = next(iter(job.transforms.values()))(images)
    draw_views(path, images, views, mean=job.views.mean, std=job.views.std)


def finished_backbone(job: Job) -> nn.Module:
    """Copy the backbone as it is now, with the BatchNorm statistics of the images as they are, not of their views.

    Frozen features are several points better for it (benchmarks/RESULTS.md), and whoever finetunes with frozen
    BatchNorm depends on it.
    """
    if job.store is not None:
        images: Iterable[ImageBatch] = sample_for_statistics(job.store)
    else:
        images = islice(job.stream.batches(0), max(1, REESTIMATION_IMAGES // job.settings["batch_size"]))
    backbone: Any = job.method.deployed
    return with_reestimated_batchnorm(backbone, images, job.views, job.accelerator.device)


def probed_before(job: Job) -> dict[str, dict[str, list[int]]]:
    """Probe Φ_pre as it came, and with nothing new but the statistics every saved backbone gets."""
    backbone, finished = cast(nn.Module, job.method.deployed), finished_backbone(job)
    before = probed(job, backbone)
    moved = any(not torch.equal(a, b) for a, b in zip(backbone.buffers(), finished.buffers(), strict=True))
    return {"before": before, "statistics_only": probed(job, finished) if moved else before}


def probed(job: Job, backbone: nn.Module) -> dict[str, list[int]]:
    """Return what :func:`probe` does where the training images have labels; labels never reach the training."""
    split = probe_split(job.store.labels) if job.store and job.store.labels is not None else None
    if job.store is None or split is None:
        return {}
    store, device = job.store, job.accelerator.device
    return probe(lambda indices: extract_features(backbone, store, indices, job.views, device), split)
