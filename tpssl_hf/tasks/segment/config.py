"""Arguments of semi-supervised segmentation: its keys, and how they are parsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tpssl_hf.config.own_backbone import with_own_backbone
from tpssl_hf.config.parser import Methods, as_command_line, config_files, key, parse_args
from tpssl_hf.config.shared import ModelConfig, PushConfig, RunConfig, TimeConfig, left_to_budget
from tpssl_hf.methods.segment import SEGMENT

DIGIT_SCENES = Path(__file__).parent / "defaults" / "digit_scenes.yaml"
DEFAULT_METHOD = "cutmix"
METHODS = Methods({name: (spec.config, spec.defaults) for name, spec in SEGMENT.items()}, DEFAULT_METHOD)


@dataclass(frozen=True)
class MaskDataConfig:
    """Images and masks."""

    dataset: str = key(
        "digit_scenes",
        "digit_scenes, a folder (images and masks, Pascal VOC, Cityscapes, ISIC 2017, parquet, saved), or a Hub id.",
    )
    split: str = key("train", "Split whose images are learned from.")
    dataset_config: str | None = key(None, "Configuration name of a Hub data set that has several.")
    image_column: str | None = key(None, "Column or folder of the images; found when not given.")
    mask_column: str | None = key(None, "Column or folder of the masks; found when not given.")
    mask_threshold: int | None = key(None, "For black and white masks: values from this on are class 1, others 0.")
    mask_orientation: Literal["image", "stored"] | None = key(
        None, "Masks beside images turned by EXIF were drawn on the image as it is shown, or on its stored pixels."
    )
    limit_images: int | None = key(None, "Cap the number of images (fixed random subset).")
    shorter_side: int = key(
        512, "Largest shorter side, in pixels, at which images are learned and scored; none is enlarged."
    )
    horizontal_flip: bool | None = key(
        None, "Flip half of the crops; off by default where it changes meaning (digits)."
    )
    num_workers: int = key(2, "Threads that decode images.", carry_out=True)
    cache_budget: float = key(
        16.0, "Largest decoded cache on disk, in GiB; above it images are decoded on demand.", carry_out=True
    )
    cache_dir: str | None = key(None, "Folder of the decoded cache; below HF_HOME when not given.", carry_out=True)


@dataclass(frozen=True)
class SegmentConfig:
    """Semi-supervised segmentation."""

    method: str = key(DEFAULT_METHOD, f"Learner: {', '.join(SEGMENT)}.")
    labels: int | str = key(
        20, "Masks in all, drawn; or a percentage such as `2%`; or `all`; or a .json or .txt file (names or rows)."
    )
    label_seed: int = key(1, "Label seed: decides which masks are drawn.")
    label_seeds: list[int] | None = key(
        None, "Several label seeds, `1,2,3`: one run each, below output_dir, with mean and spread.", several=True
    )
    exclude_labeled: bool = key(False, "Take unlabeled images from those without a chosen mask only.")
    test_dataset: str | None = key(None, "Where the test images are; in `dataset` when not given.")
    test_split: str = key("test", "Split the score is taken on; `none` for no score.")
    limit_test_images: int | None = key(None, "Cap the number of test images (fixed random subset).")
    test_mode: Literal["whole", "resize", "slide"] = key(
        "whole", "Whole images; or resized to the crop size; or windows of the crop size that overlap by half."
    )
    crop_height: int = key(321, "Height of the crops, in pixels (321 for VOC, 256 for Cityscapes; paper §IV-B).")
    crop_width: int = key(321, "Width of the crops, in pixels (321 for VOC, 512 for Cityscapes; paper §IV-B).")
    scale_min: float = key(0.5, "Smallest factor by which images are scaled before cropping; clmb has its own.")
    scale_max: float = key(1.5, "Largest such factor.")
    scale_spacing: Literal["tenths", "uniform", "log"] = key(
        "tenths", "Factors are 0.1 apart, or any in the range, or any by their logarithm; unimatch takes any."
    )
    output_stride: int = key(16, "Pixels per cell of the backbone's last map: 16, or 8 (finer, slower).")
    decoder_width: int = key(256, "Channels of the decoder's maps.")


@dataclass(frozen=True)
class SegmentOptimConfig:
    """Optimization."""

    batch_size: int = key(20, "Labeled images per step, over all processes (20 VOC, 8 Cityscapes; paper §IV-B).")
    unlabeled_ratio: int = key(2, "Unlabeled images per labeled one; cutmix mixes each two of them to one.")
    max_steps: int = key(40000, "Steps (paper §IV-B); every schedule is scaled to it.")
    optimizer: Literal["sgd", "adamw"] = key("adamw", "Optimizer; adamw with weight_decay 0 is Adam.")
    learning_rate: float = key(1e-5, "Learning rate for the batch as it is (paper §IV-B).")
    head_lr_multiplier: float = key(1.0, "Learning-rate multiplier for the decoder.")
    max_gradient_norm: float = key(0.0, "Length that longer gradients are cut to; 0 cuts none.")
    momentum: float = key(0.9, "Momentum of SGD, first beta of AdamW.")
    nesterov: bool = key(False, "Nesterov's form of momentum.")
    weight_decay: float = key(0.0, "Weight decay of weights with two or more dimensions.")
    decay_norm_and_bias: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    schedule: Literal["constant", "poly"] = key("constant", "constant, or poly: (1 - progress)^0.9, DeepLab's.")


@dataclass(frozen=True)
class SegmentArgs:
    """Everything a segmentation is told; ``method`` holds the keys of the learner named in ``task``."""

    task: SegmentConfig
    data: MaskDataConfig
    model: ModelConfig
    optim: SegmentOptimConfig
    time: TimeConfig
    run: RunConfig
    push: PushConfig
    method: Any


def parse_segment(arguments: Sequence[str] | Mapping[str, Any], description: str = "") -> SegmentArgs:
    """Parse the keys; without a data set or a config file the embedded digit scenes are learned.

    Nothing of them depends on other keys: the crops have a size of their own.

    Raises:
        InputError: as :func:`tpssl_hf.config.parser.parse_args` does.
    """
    line = with_own_backbone(as_command_line(arguments))
    if not config_files(line) and not any(argument.partition("=")[0] == "--dataset" for argument in line):
        line = ["--config", str(DIGIT_SCENES), *line]
    defaults = {"output_dir": "outputs/ssl_segment", "backbone": "resnet50"}
    args = parse_args(SegmentArgs, line, description=description, methods=METHODS, defaults=defaults)
    return replace(args, optim=replace(args.optim, **left_to_budget(line))) if args.time.budget else args
