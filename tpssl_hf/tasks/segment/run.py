"""One run of semi-supervised segmentation: what it is made of (paper §III-A, Eq. 4)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from tpssl_hf.augment.segment_views import SegmentViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.masks import IGNORED, Color
from tpssl_hf.data.streams import WithoutMasks
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.features import batches_of
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.segmentation_inference import predict_masks
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig
from tpssl_hf.models.sizes import check_crop
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.finetuning import FinetuningRun
from tpssl_hf.tasks.finetuning_inputs import finetuning_optimizer, keeps_statistics, open_streams
from tpssl_hf.tasks.segment.config import SegmentArgs
from tpssl_hf.tasks.segment.data import EvaluationImages, SegmentingData, data_facts, open_masks
from tpssl_hf.training.accelerator import prepare_method
from tpssl_hf.training.loop import Stream
from tpssl_hf.training.optim import poly
from tpssl_hf.training.run_dir import RunDir

SCHEDULES: dict[str, Callable[[float], float]] = {"constant": lambda progress: 1.0, "poly": poly}
SCORED_TOGETHER = 8  # images of equal size in one pass


@dataclass(frozen=True, kw_only=True)
class SegmentRun(FinetuningRun[SegmentArgs]):
    """A run of segmentation.

    Attributes:
        data: its images and masks.
        views: how they are shown.
    """

    data: SegmentingData
    views: SegmentViewSettings

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return self.views.crop_size

    def data_facts(self) -> dict[str, str]:
        """Return what must be the same of the data when the run is resumed."""
        return data_facts(self.data)

    def announce(self) -> list[str]:
        """Return what is said before the first step, a line each."""
        data = self.data
        return [
            f"{data.labeled.chosen}: {len(data.labeled.indices)} of {len(data.store):,} images, "
            f"{len(data.class_names)} classes; from {self.origin.kind} weights ({self.origin.name}), BatchNorm "
            f"statistics of the backbone {'frozen' if self.statistics_frozen else 'learned'}; {self.max_steps} steps"
        ]

    def draw_first_views(self, path: Path) -> None:
        """Write the image of eight labeled images: crop and mask, and what unlabeled ones are turned into."""
        images = self.first_images("labeled")
        labeled = self.transforms["labeled"](images)
        shown = {
            "labeled": labeled["images"],
            "its mask": _in_color(labeled["masks"], self.data.palette, self.views),
        }
        if "unlabeled" in self.transforms:
            views = self.transforms["unlabeled"](replace(images, masks=None))
            shown |= {f"unlabeled: {name}": value for name, value in views.items() if value.ndim == 4}
        draw_views(path, images, shown, mean=self.views.mean, std=self.views.std)


def prepare(args: SegmentArgs, accelerator: Accelerator, run_dir: RunDir | None) -> SegmentRun:
    """Open the images, choose the masks, load Φ, put a decoder on it and the learner around both."""
    model, optim, choice = args.model, args.optim, args.task
    if optim.max_steps < 1:
        raise InputError(f"max_steps is {optim.max_steps}; give 1 or more (40000 is the paper's).")
    data, spec = open_masks(args, accelerator, run_dir), SEGMENT[choice.method]
    set_seed(args.run.seed)
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
    frozen = keeps_statistics(model.backbone_batchnorm, origin)
    if frozen:
        segmenter.freeze_backbone_statistics()
    views = _view_settings(args, data, segmenter.config)
    check_crop(segmenter, model.backbone, views.crop_size)
    heads = list(segmenter.decoder.parameters())
    method = prepare_method(
        spec.build(segmenter, args.method, len(data.unlabeled)), model, accelerator, args.run.memory_format
    )
    transforms = spec.views(views, args.method)
    assert optim.learning_rate is not None and optim.schedule is not None  # both were resolved
    shape, base_rate = SCHEDULES[optim.schedule], optim.learning_rate
    return SegmentRun(
        args=args,
        accelerator=accelerator,
        dataset_name=data.source.name,
        origin=origin,
        streams=_open_streams(args, data, accelerator, needed="unlabeled" in transforms),
        transforms=transforms,
        method=method,
        optimizer=finetuning_optimizer(args, method, heads),
        max_steps=optim.max_steps,
        learning_rate=lambda step: base_rate * shape(step / optim.max_steps),
        data=data,
        views=views,
        statistics_frozen=frozen,
    )


def _view_settings(
    args: SegmentArgs, data: SegmentingData, normalization: TpsslSegmenterConfig
) -> SegmentViewSettings:
    """Crops of the size asked for, normalized as the weights expect."""
    choice, flip = args.task, args.data.horizontal_flip
    mean, std = (
        cast(tuple[float, float, float], tuple(v)) for v in (normalization.image_mean, normalization.image_std)
    )
    return SegmentViewSettings(
        (choice.crop_height, choice.crop_width),
        mean,
        std,
        args.run.seed,
        data.source.flip_is_safe if flip is None else flip,
        (choice.scale_min, choice.scale_max),
        choice.scale_spacing,
    )


def _open_streams(
    args: SegmentArgs, data: SegmentingData, accelerator: Accelerator, *, needed: bool
) -> dict[str, Stream]:
    """Open the labeled and, where ``needed``, the unlabeled stream, which never carries a mask."""
    if needed and len(data.unlabeled) == 0:
        raise InputError(
            f"all {len(data.store):,} images are labeled and {args.task.method} learns from the others too; give "
            "fewer --labels, or --exclude_labeled false."
        )
    labeled, unlabeled = (data.store, data.labeled.indices), (data.store, data.unlabeled) if needed else None
    streams = open_streams(args, accelerator, labeled, unlabeled)
    return {name: WithoutMasks(stream) if name == "unlabeled" else stream for name, stream in streams.items()}


def predicted(run: SegmentRun, test: EvaluationImages, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pixels (B, H, W, 3), true and predicted classes (B, H, W) of images, batches of one size each."""
    device, network, size = run.accelerator.device, run.method.deployed, run.views.crop_size
    mean, std = (torch.tensor(values, device=device) for values in (run.views.mean, run.views.std))
    for chosen in batches_of(indices, SCORED_TOGETHER):
        for part in _of_equal_size(test.store.gather(chosen, epoch=0).to(device)):
            assert part.masks is not None
            images = ((part.pixels / 255 - mean) / std).permute(0, 3, 1, 2)
            found = predict_masks(network, images, mode=run.args.task.test_mode, size=size, window=size)
            yield part.pixels, part.masks, found


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


def _in_color(masks: Tensor, palette: tuple[Color, ...], views: SegmentViewSettings) -> Tensor:
    """Turn masks (B, H, W) into normalized images (B, 3, H, W) in the palette, white where they are ignored."""
    table = torch.full((IGNORED + 1, 3), 255.0, device=masks.device)
    table[: len(palette)] = torch.tensor(palette, dtype=torch.float32, device=masks.device)
    mean, std = (torch.tensor(values, device=masks.device) for values in (views.mean, views.std))
    return ((table[masks] / 255 - mean) / std).permute(0, 3, 1, 2)
