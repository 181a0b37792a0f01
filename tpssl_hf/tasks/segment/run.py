"""One run of semi-supervised segmentation: what it is made of, and how it is carried out (paper §III-A, Eq. 4)."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from tpssl_hf.augment.segment_views import SegmentViewSettings
from tpssl_hf.config.parser import take
from tpssl_hf.config.shared import ModelConfig, RunConfig
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.masks import IGNORED, Color
from tpssl_hf.data.segmentation_classes import ISIC
from tpssl_hf.data.streams import EndlessStream, WithoutMasks
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.features import batches_of
from tpssl_hf.methods.base import Views
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.metrics.tpssl_segmentation.confusion import ConfusionMatrix
from tpssl_hf.metrics.tpssl_segmentation.tpssl_segmentation import lesion_scores, segmentation_scores
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.segmentation_inference import predict_masks
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.models.sizes import check_crop
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.published_path import check_segmenter, some_of
from tpssl_hf.tasks.segment.config import MaskDataConfig, SegmentConfig, SegmentOptimConfig
from tpssl_hf.tasks.segment.data import EvaluationImages, SegmentingData, data_facts, open_masks
from tpssl_hf.training.accelerator import per_device_batch_size, place, start_tracker
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.loop import LoopSettings, Stream, batches_on_device, train_behind_bar
from tpssl_hf.training.optim import build_optimizer, poly
from tpssl_hf.training.run_dir import RunDir, StopSignals

SCHEDULES: dict[str, Callable[[float], float]] = {"constant": lambda progress: 1.0, "poly": poly}
SCORED_TOGETHER = 8  # images of equal size in one pass
DRAWN = 8


@dataclass
class Job:
    """Everything one run is made of, settled before its first step."""

    settings: dict[str, Any]
    accelerator: Accelerator
    data: SegmentingData
    origin: WeightsSource
    views: SegmentViewSettings
    statistics_frozen: bool
    streams: Mapping[str, Stream]
    transforms: Views
    method: nn.Module
    optimizer: torch.optim.Optimizer
    max_steps: int
    rate: Callable[[int], float]

    @property
    def images_per_step(self) -> int:
        """Labeled and unlabeled images of one step of all processes."""
        ratio = self.settings["unlabeled_ratio"] if "unlabeled" in self.transforms else 0
        return int(self.settings["batch_size"] * (1 + ratio))

    @property
    def scored(self) -> str:
        """Which network is scored and saved: ``teacher`` or ``student``."""
        return str(self.method.scored)


def prepare(settings: dict[str, Any], method_config: Any, accelerator: Accelerator, run: RunDir | None) -> Job:
    """Open the images, settle the labels, load Φ, put a decoder on it and the learner around both."""
    model, tune, choice = (
        take(ModelConfig, settings),
        take(SegmentOptimConfig, settings),
        take(SegmentConfig, settings),
    )
    if tune.max_steps < 1:
        raise InputError(f"max_steps is {tune.max_steps}; give 1 or more (40000 is the paper's).")
    data, spec, seed = open_masks(settings, accelerator, run), SEGMENT[settings["method"]], settings["seed"]
    set_seed(seed)
    segmenter, origin = build_segmenter(
        model.backbone,
        init=model.init,
        class_names=list(data.class_names),
        palette=[list(color) for color in data.palette],
        output_stride=choice.output_stride,
        decoder_width=choice.decoder_width,
    )
    if model.gradient_checkpointing:
        recompute_activations(segmenter.backbone)
    asked = choice.freeze_backbone_statistics
    frozen = origin.kind != "random" if asked is None else asked
    if frozen:
        segmenter.freeze_backbone_statistics()
    views = _view_settings(settings, data, segmenter.config)
    check_crop(segmenter, model.backbone, views.crop_size)
    heads = list(segmenter.decoder.parameters())
    method = place(spec.build(segmenter, method_config, len(data.unlabeled)), model, accelerator)
    transforms = spec.views(views, method_config)
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
    streams = _open_streams(settings, data, accelerator, needed="unlabeled" in transforms)
    shape = SCHEDULES[tune.schedule]
    return Job(
        settings,
        accelerator,
        data,
        origin,
        views,
        frozen,
        streams,
        transforms,
        method,
        optimizer,
        tune.max_steps,
        lambda step: tune.learning_rate * shape(step / tune.max_steps),
    )


def _view_settings(settings: dict[str, Any], data: SegmentingData, normalization: Any) -> SegmentViewSettings:
    """Crops of the size asked for, normalized as the weights expect."""
    choice, flip = take(SegmentConfig, settings), take(MaskDataConfig, settings).horizontal_flip
    return SegmentViewSettings(
        (choice.crop_height, choice.crop_width),
        tuple(normalization.image_mean),
        tuple(normalization.image_std),
        settings["seed"],
        data.source.flip_is_safe if flip is None else flip,
        (choice.scale_min, choice.scale_max),
        choice.scale_spacing,
    )


def _open_streams(
    settings: dict[str, Any], data: SegmentingData, accelerator: Accelerator, *, needed: bool
) -> dict[str, Stream]:
    """Open the labeled and, where ``needed``, the unlabeled stream, which never carries a mask."""
    tune, seed = take(SegmentOptimConfig, settings), settings["seed"]
    place_in_world = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    share = per_device_batch_size(tune.batch_size, accelerator.num_processes, 1)
    labeled = EndlessStream(data.store, batch_size=share, seed=seed, indices=data.labeled.indices, **place_in_world)
    if not needed:
        return {"labeled": labeled}
    if tune.unlabeled_ratio < 1:
        raise InputError(f"unlabeled_ratio is {tune.unlabeled_ratio}; this learner needs 1 or more (2 for cutmix).")
    if len(data.unlabeled) == 0:
        raise InputError(
            f"all {len(data.store):,} images are labeled and {settings['method']} learns from the others too; give "
            "fewer --labels, or --exclude_labeled false."
        )
    unlabeled = EndlessStream(
        data.store,
        batch_size=share * tune.unlabeled_ratio,
        seed=seed,
        indices=data.unlabeled,
        **place_in_world,
    )
    return {"labeled": labeled, "unlabeled": WithoutMasks(unlabeled)}


def predicted(job: Job, test: EvaluationImages, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pixels (B, H, W, 3), true and predicted classes (B, H, W) of images, batches of one size each."""
    choice, network = take(SegmentConfig, job.settings), cast(nn.Module, job.method.deployed)
    mean, std = (torch.tensor(values, device=job.accelerator.device) for values in (job.views.mean, job.views.std))
    for chosen in batches_of(indices, SCORED_TOGETHER):
        batch = test.store.gather(chosen, epoch=0).to(job.accelerator.device)
        for part in _of_equal_size(batch):
            assert part.masks is not None
            images = ((part.pixels / 255 - mean) / std).permute(0, 3, 1, 2)
            size = job.views.crop_size
            yield (
                part.pixels,
                part.masks,
                predict_masks(network, images, mode=choice.test_mode, size=size, window=size),
            )


def _of_equal_size(images: ImageBatch) -> list[ImageBatch]:
    """Return the batch without padding: as it is, or image by image."""
    sizes = images.sizes.tolist()
    if all(size == sizes[0] for size in sizes):
        return [images]
    single = [images[row : row + 1] for row in range(len(images))]
    return [
        replace(one, pixels=one.pixels[:, :height, :width], masks=one.masks[:, :height, :width])
        for one, (height, width) in zip(single, sizes, strict=True)
        if one.masks is not None
    ]


def evaluate(job: Job, test: EvaluationImages) -> dict[str, Any]:
    """Score the deployed network on all test images together, see :func:`segmentation_scores`."""
    matrix = ConfusionMatrix(len(job.data.class_names), device=job.accelerator.device)
    counts = [matrix.add(found, wanted) for _, wanted, found in predicted(job, test, test.indices)]
    scores = segmentation_scores(matrix.counts.cpu().numpy())
    if job.data.source.masks == ISIC:
        scores |= lesion_scores(torch.cat(counts).cpu().numpy())
    return scores


def published_path(job: Job, folder: Path) -> dict[str, Any]:
    """Compare the folder that was saved with the deployed network, see :func:`check_segmenter`."""
    data = job.data
    of, asked = ("test", data.test) if data.test else ("training", EvaluationImages(data.store, data.labeled.indices))
    chosen = some_of(asked.indices)
    masks = [mask for _, _, found in predicted(job, asked, chosen) for mask in found.cpu().numpy()]
    return check_segmenter(folder, asked.store, chosen, masks, job.accelerator.device, of)


def segment(
    job: Job, run: RunDir | None, signals: StopSignals, say: Callable[..., None]
) -> tuple[int, dict[str, Any]]:
    """Train from the start or from the newest checkpoint; returns the completed steps and the run's state."""
    options, accelerator = take(RunConfig, job.settings), job.accelerator
    folder, began = Path(options.output_dir), time.perf_counter()
    facts = {**data_facts(job.data), "origin": job.origin.as_dict()}
    checkpoints = CheckpointManager(
        accelerator, run, folder / "checkpoints", job.method, job.optimizer, facts, options.keep_checkpoints
    )
    checkpoint, start_step, state = checkpoints.restore(), 0, {"seconds": 0.0}
    if checkpoint:
        start_step, state["seconds"] = checkpoint.step, checkpoint.state["seconds"]
        say(f"resuming after step {start_step} of {job.max_steps}")
    elif run:
        draw_first_views(job, folder / "augmentations.png")
        say(f"{folder / 'augmentations.png'} shows the views: look at it before you wait")
    seconds_before, track = state["seconds"], start_tracker(accelerator, job.settings)

    def log(step: int, values: dict[str, float]) -> None:
        if run:
            run.append({"step": step, **values})
        track(values, step)

    def save(step: int) -> None:
        state["seconds"] = seconds_before + time.perf_counter() - began
        checkpoints.save(step, state)

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
    """Write the image of eight labeled images: crop and mask, and what unlabeled ones are turned into."""
    batches = job.streams["labeled"].batches(0)
    images = next(batches)[:DRAWN].to(job.accelerator.device)
    batches.close()
    labeled = job.transforms["labeled"](images)
    shown = {
        "labeled": labeled["images"],
        "its mask": _in_color(labeled["masks"], job.data.palette, job.views),
    }
    if "unlabeled" in job.transforms:
        views = job.transforms["unlabeled"](replace(images, masks=None))
        shown |= {f"unlabeled: {name}": value for name, value in views.items() if value.ndim == 4}
    draw_views(path, images, shown, mean=job.views.mean, std=job.views.std)


def _in_color(masks: Tensor, palette: tuple[Color, ...], views: SegmentViewSettings) -> Tensor:
    """Turn masks (B, H, W) into normalized images (B, 3, H, W) in the palette, white where they are ignored."""
    table = torch.full((IGNORED + 1, 3), 255.0, device=masks.device)
    table[: len(palette)] = torch.tensor(palette, dtype=torch.float32, device=masks.device)
    mean, std = (torch.tensor(values, device=masks.device) for values in (views.mean, views.std))
    return ((table[masks] / 255 - mean) / std).permute(0, 3, 1, 2)
