"""Configuration of semi-supervised finetuning: which labels, which learner, how it is optimized."""

from dataclasses import dataclass
from typing import Literal

from tpssl_hf.config.parser import key


@dataclass
class ClassifyConfig:
    """Semi-supervised classification."""

    method: str = key(
        "fixmatch",
        "Learner: supervised, mean_teacher, vat, uda, fixmatch, self_tuning, flexmatch, freematch, softmatch, "
        "linear_probe, pseudo_label.",
    )
    labels: int | str = key(40, "Labels in all, drawn; or `all`; or a .json or .csv file that says which.")
    label_mode: Literal["balanced", "proportional"] = key(
        "balanced", "Draw the same number for each class, or in proportion to the classes."
    )
    label_seed: int = key(1, "Seed of the draw of labels.")
    label_seeds: list[int] | None = key(
        None, "Several draws, `1,2,3`: one run each, below output_dir, and their spread.", several=True
    )
    validation_labels: int | None = key(
        None,
        "Labels held out of training to watch the run by; 0 trains on all. When not given: none, or, without test "
        "images, a fifth of each class if each has 10 labels.",
    )
    unlabeled_dataset: str | None = key(
        None, "Other images to learn from without labels; those of `dataset` when not given."
    )
    unlabeled_split: str = key("train", "Split of unlabeled_dataset.")
    test_dataset: str | None = key(None, "Where the test images are; in `dataset` when not given.")
    test_split: str | None = key(
        None,
        "Split the score is taken on; `none` for no score. When not given: test, or no score if there is none; "
        "all images of a test_dataset that is one folder without splits.",
    )
    limit_test_images: int | None = key(None, "Score on so many test images only, a fixed random subset.")
    evaluate_every: float = key(
        0.0, "Epochs between evaluations on the test split, for curves and the median of the last 20; 0: only the end."
    )
    crop: Literal["pad", "rrc"] = key(
        "pad", "Weak crop: reflected padding and shift (FixMatch), or RandomResizedCrop."
    )
    work_size: int | None = key(
        None, "Side at which views are distorted; the images' own, at most image_size, when not given."
    )


@dataclass
class FinetuneConfig:
    """Optimization."""

    batch_size: int = key(64, "Labeled images per step, over all processes (FixMatch's B; paper §IV-B).")
    unlabeled_ratio: int = key(7, "Unlabeled images per labeled one (FixMatch's μ; paper §IV-B).")
    epochs: float = key(200.0, "Passes over the unlabeled images at 7 · batch_size per step, whatever the learner.")
    max_steps: int | None = key(None, "Steps instead of epochs; every schedule is rescaled to it.")
    optimizer: Literal["sgd", "adamw"] = key("sgd", "Optimizer.")
    learning_rate: float = key(
        0.03, "Learning rate for the batch as it is; lower it with batch_size (FixMatch: 0.03 for 64)."
    )
    head_lr_multiplier: float = key(1.0, "The classifier learns so many times as fast as the backbone.")
    momentum: float = key(0.9, "Momentum of SGD, first beta of AdamW.")
    nesterov: bool = key(True, "Nesterov's form of momentum.")
    weight_decay: float = key(5e-4, "Weight decay of weights with two or more dimensions (1e-3 for CIFAR-100).")
    decay_norm_and_bias: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    schedule: Literal["cosine", "steps"] = key(
        "cosine", "cosine: cos(7π/16 · progress), FixMatch's; steps: a tenth at four points, Self-Tuning's."
    )
