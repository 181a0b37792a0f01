"""Arguments of semi-supervised segmentation: its keys, and how they are parsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tpssl_hf.config.allowed import ANY, BELOW_1, FROM_1, SEEDS, ZOOMS
from tpssl_hf.config.own_backbone import with_own_backbone
from tpssl_hf.config.parser import Methods, as_command_line, config_files, key, parse_args
from tpssl_hf.config.shared import ModelConfig, PushConfig, RunConfig, TimeConfig, left_to_budget, open_keys
from tpssl_hf.methods.segment import SEGMENT

DIGIT_SCENES = Path(__file__).parent / "defaults" / "digit_scenes.yaml"
AUTO, USUAL_METHOD, OF_SHORT_RUNS = "auto", "cutmix", "supervised"
BY_LENGTH = ("optimizer", "learning_rate", "head_lr_multiplier", "schedule")  # what depends on the length of a run
KEYS = {
    name: (spec.config, {key: value for key, value in spec.defaults.items() if key not in BY_LENGTH})
    for name, spec in SEGMENT.items()
}
METHODS = Methods({AUTO: KEYS[USUAL_METHOD], **KEYS}, AUTO)
PAPER_STEPS, PAPER_RATE = 40_000, 1e-5  # §IV-B
SIZE_KEYS = ("crop_height", "crop_width", "decoder_width")  # with a budget these depend on the device
SHORT_RATE, SHORT_HEAD = 3e-4, 10.0  # the highest rate of a shorter run, and its multiplier for the decoder


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
    mask_threshold: int | None = key(
        None, "For black and white masks: values from this on are class 1, others 0.", within=ANY
    )
    mask_orientation: Literal["image", "stored"] | None = key(
        None, "Masks beside images turned by EXIF were drawn on the image as it is shown, or on its stored pixels."
    )
    limit_images: int | None = key(None, "Cap the number of images (fixed random subset).", within=FROM_1)
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

    method: str = key(
        AUTO,
        f"Learner: {AUTO}, {', '.join(SEGMENT)}. {AUTO}: {USUAL_METHOD}; or {OF_SHORT_RUNS} where a budget is so "
        "short that more steps are worth more than images without masks.",
    )
    labels: int | str = key(
        20, "Masks in all, drawn; or a percentage such as `2%`; or `all`; or a .json or .txt file (names or rows)."
    )
    label_seed: int = key(1, "Label seed: decides which masks are drawn.", within=SEEDS)
    label_seeds: list[int] | None = key(
        None, "Several label seeds, `1,2,3`: one run each, below output_dir, with mean and spread.", several=True
    )
    exclude_labeled: bool = key(False, "Take unlabeled images from those without a chosen mask only.")
    test_dataset: str | None = key(None, "Where the test images are; in `dataset` when not given.")
    test_split: str = key("test", "Split the score is taken on; `none` for no score.")
    limit_test_images: int | None = key(None, "Cap the number of test images (fixed random subset).", within=FROM_1)
    test_mode: Literal["whole", "resize", "slide"] = key(
        "whole", "Whole images; or resized to the crop size; or windows of the crop size that overlap by half."
    )
    crop_height: int = key(
        321, "Height of the crops, in pixels (321 for VOC, 256 for Cityscapes; paper §IV-B); 128 with budget on a CPU."
    )
    crop_width: int = key(321, "Width of the crops (321 for VOC, 512 for Cityscapes; likewise).")
    scale_min: float = key(
        0.5, "Smallest factor by which images are scaled before cropping; clmb has its own.", within=ZOOMS
    )
    scale_max: float = key(1.5, "Largest such factor.", within=ZOOMS)
    scale_spacing: Literal["tenths", "uniform", "log"] = key(
        "tenths", "Factors are 0.1 apart, or any in the range, or any by their logarithm; unimatch takes any."
    )
    output_stride: int = key(16, "Pixels per cell of the backbone's last map: 16, or 8 (finer, slower).")
    decoder_width: int = key(256, "Channels of the decoder's maps; 64 with budget on a CPU.", within=FROM_1)


@dataclass(frozen=True)
class SegmentOptimConfig:
    """Optimization."""

    batch_size: int = key(
        20, "Labeled images per step, over all processes (20 VOC, 8 Cityscapes; paper §IV-B).", within=FROM_1
    )
    unlabeled_ratio: int = key(2, "Unlabeled images per labeled one; cutmix mixes each two of them to one.")
    max_steps: int = key(PAPER_STEPS, "Steps (paper §IV-B); every schedule is scaled to it.")
    optimizer: Literal["sgd", "adamw"] | None = key(
        None,
        "Optimizer; adamw with weight_decay 0 is Adam. When not given: the learner's own (adamw for cutmix), or "
        "adamw in runs of under 40,000 steps; the next two and the schedule likewise.",
    )
    learning_rate: float | None = key(
        None,
        "Learning rate for the batch as it is. When not given: the learner's own (1e-5 for cutmix, paper §IV-B); with "
        "adamw in runs of under 40,000 steps 1e-5 times 40,000 by their number, 3e-4 at most.",
    )
    head_lr_multiplier: float | None = key(None, "Multiplier of the rate for the decoder; 10 in such shorter runs.")
    max_gradient_norm: float = key(0.0, "Length that longer gradients are cut to; 0 cuts none.")
    momentum: float = key(0.9, "Momentum of SGD, first beta of AdamW.", within=BELOW_1)
    nesterov: bool = key(False, "Nesterov's form of momentum.")
    weight_decay: float = key(0.0, "Weight decay of weights with two or more dimensions.")
    decay_norm_and_bias: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    schedule: Literal["constant", "poly"] | None = key(
        None, "constant, or poly: (1 - progress)^0.9, DeepLab's; poly in such shorter runs."
    )


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

    Raises:
        InputError: as :func:`tpssl_hf.config.parser.parse_args` does.
    """
    line = with_own_backbone(as_command_line(arguments))
    if not config_files(line) and not any(argument.partition("=")[0] == "--dataset" for argument in line):
        line = ["--config", str(DIGIT_SCENES), *line]
    defaults = {"output_dir": "outputs/ssl_segment", "backbone": "resnet50"}
    args = parse_args(SegmentArgs, line, description=description, methods=METHODS, defaults=defaults)
    if args.time.budget:
        size = open_keys(line, SIZE_KEYS)
        return replace(args, optim=replace(args.optim, **left_to_budget(line)), task=replace(args.task, **size))
    return resolve(of_method(args, USUAL_METHOD) if args.task.method == AUTO else args)


def of_method(args: SegmentArgs, name: str) -> SegmentArgs:
    """Return the arguments of a run whose method is ``auto`` with a method that learns with the usual one's keys."""
    same = args.method if name == USUAL_METHOD else KEYS[name][0]()
    return replace(args, task=replace(args.task, method=name), method=same)


def resolve(args: SegmentArgs) -> SegmentArgs:
    """Return ``args`` with optimizer, rate and schedule put in, which depend on the length of the run.

    A run of the paper's length has what its learner was published with. At such rates a decoder of random weights
    still is random after a few hundred steps, so shorter runs have AdamW with a higher one.
    """
    own, optim = SEGMENT[args.task.method].defaults, args.optim
    found: dict[str, Any] = {name: own[name] for name in BY_LENGTH}
    if optim.max_steps < PAPER_STEPS and optim.optimizer != "sgd":
        rate = min(SHORT_RATE, PAPER_RATE * PAPER_STEPS / max(1, optim.max_steps))
        found = dict(zip(BY_LENGTH, ("adamw", float(f"{rate:.2g}"), SHORT_HEAD, "poly"), strict=True))
    return replace(args, optim=replace(optim, **{k: v for k, v in found.items() if getattr(optim, k) is None}))
