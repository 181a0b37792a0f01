"""Configuration shared by the tasks: images, backbone, optimization, run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tpssl_hf.config.allowed import BELOW_1, FROM_1, SEEDS
from tpssl_hf.config.parser import given_keys, key

LEFT_TO_BUDGET = -1  # number of images that no key gives, until a budget has chosen it


@dataclass(frozen=True)
class DataConfig:
    """Images."""

    dataset: str = key("digits", "digits | cifar10 | cifar100 | svhn, a Hub id, or a folder (images, parquet, saved).")
    split: str = key("train", "Split whose images are used.")
    dataset_config: str | None = key(None, "Configuration name of a Hub data set that has several.")
    image_column: str | None = key(None, "Column that holds the images; found by its type when not given.")
    label_column: str | None = key(None, "Column that holds labels; found when not given. `folder`: sub-folder names.")
    streaming: bool = key(False, "Read a Hub or parquet data set in shards, never holding it whole.")
    limit_images: int | None = key(None, "Cap the number of images (fixed random subset).", within=FROM_1)
    image_size: int = key(
        0,
        "Side of the square views, in pixels; 0: the size the weights were trained at, 224 for random ones, or with "
        "budget on a CPU the largest at which enough steps fit.",
    )
    horizontal_flip: bool | None = key(
        None, "Flip half of the views; off by default where it changes meaning (digits)."
    )
    num_workers: int = key(2, "Threads that decode images.", carry_out=True)
    cache_budget: float = key(
        16.0, "Largest decoded cache on disk, in GiB; above it images are decoded on demand.", carry_out=True
    )
    cache_scale: float = key(
        2.5,
        "Largest shorter side of stored images, as a multiple of image_size: what small crops are cut from.",
        within=FROM_1,
    )
    cache_dir: str | None = key(None, "Folder of the decoded cache; below HF_HOME when not given.", carry_out=True)


@dataclass(frozen=True)
class ModelConfig:
    """Backbone."""

    backbone: str = key("resnet18", "A timm model, with a tag of its weights if wanted (resnet18.tv_in1k).")
    init: str = key(
        "random", "random | timm | a timm weight tag | a folder | a .safetensors file | a Hub id[@revision]."
    )
    backbone_batchnorm: Literal["auto", "frozen", "train"] = key(
        "auto",
        "BatchNorm of the backbone. frozen: the running statistics of the weights stay; train: those of the images "
        "are learned; auto: train for random weights, else frozen, unless target pretraining measures, by labels of "
        "training images, that others serve better.",
    )
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass: less memory, more time.")
    compile: bool = key(False, "torch.compile the training step (worth it on a GPU; minutes of compiling on a CPU).")
    sync_batchnorm: bool = key(True, "With several processes: BatchNorm statistics over all of them.")


@dataclass(frozen=True)
class OptimConfig:
    """Optimization."""

    batch_size: int = key(256, "Images per optimizer step, over all processes and accumulation steps.", within=FROM_1)
    epochs: int = key(100, "Passes over the images.")
    max_steps: int | None = key(None, "Optimizer steps instead of epochs; every schedule is rescaled to it.")
    optimizer: Literal["lars", "sgd", "adamw"] | None = key(
        None, "Optimizer. When not given: the method's own from random weights, adamw from pretrained ones."
    )
    base_learning_rate: float | None = key(
        None,
        "Learning rate for 256 images a step; multiplied by batch_size / 256. When not given: 0.0004 with adamw, "
        "else the method's own, a tenth of it for pretrained weights and sgd (paper, §IV-B).",
    )
    weight_decay: float = key(1e-6, "Weight decay of weights with two or more dimensions.")
    decay_norm_and_bias: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    momentum: float = key(0.9, "Momentum of SGD and LARS, first beta of AdamW.", within=BELOW_1)
    warmup_epochs: float = key(10.0, "Epochs of linear warm-up; at most a tenth of the run, and that when streaming.")
    gradient_accumulation_steps: int = key(
        1, "Parts a batch is computed in; each part sees only itself in BatchNorm.", within=FROM_1
    )


@dataclass(frozen=True)
class RunConfig:
    """Run."""

    output_dir: str = key(
        "outputs/target_pretrain", "Folder of the run; an unfinished run in it is resumed.", carry_out=True
    )
    seed: int = key(0, "Seed of weights, order and augmentation.", within=SEEDS)
    resume: bool = key(
        True, "Continue an unfinished run of the same configuration; false refuses instead.", carry_out=True
    )
    save_every: int = key(500, "Steps between checkpoints.", carry_out=True, within=FROM_1)
    keep_checkpoints: int = key(2, "Checkpoints kept.", carry_out=True, within=FROM_1)
    log_every: int = key(10, "Steps between lines of metrics.jsonl.", within=FROM_1)
    log_with: Literal["none", "tensorboard", "trackio", "wandb"] = key(
        "none", "Tracker beside metrics.jsonl.", carry_out=True
    )
    precision: Literal["auto", "fp32", "bf16"] = key(
        "auto",
        "auto: bfloat16 where the hardware multiplies it; on a CPU, in runs long enough, what is faster there, "
        "measured once (`tpssl-hf doctor --benchmark` shows the table). A run that has begun keeps what it has.",
    )
    memory_format: Literal["auto", "channels_last", "contiguous"] = key(
        "auto",
        "Layout of images and weights in memory. auto: channels_last, or what is measured with precision auto.",
        carry_out=True,
    )
    cpu_threads: int | None = key(
        None, "CPU threads of this process; chosen for the machine when not given.", within=FROM_1
    )


@dataclass(frozen=True)
class TimeConfig:
    """Time for a run."""

    budget: str | None = key(None, "Time for the run (90s, 30m, 1h30m): batch size and length are chosen to fit it.")
    plan: bool = key(False, "With budget: print the plan and stop.", carry_out=True)


def left_to_budget(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the images of a step as a budget wants them where a command line does not give them."""
    return open_keys(arguments, ("batch_size", "unlabeled_ratio"))


def open_keys(arguments: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return those of ``names`` that a command line does not give, each left to the budget."""
    given = given_keys(arguments)
    return {name: LEFT_TO_BUDGET for name in names if name not in given}


@dataclass(frozen=True)
class PushConfig:
    """Publishing when done."""

    push_to_hub: bool = key(
        False,
        "Publish the finished run as `tpssl-hf publish` does; of several label seeds, the first one given.",
        carry_out=True,
    )
    hub_model_id: str | None = key(None, "Repository on the Hub, `owner/name`.", carry_out=True)
    hub_private_repo: bool = key(
        False, "Make the repository visible to you, or the organization's members, only.", carry_out=True
    )
    hub_revision: str | None = key(
        None, "Branch to push to, made if it is missing; `main` when not given.", carry_out=True
    )
    hub_license: str | None = key(
        None,
        "License of the weights as the Hub spells it (apache-2.0); that of the base weights when not given.",
        carry_out=True,
    )
    hub_base_model: str | None = key(
        None,
        "Published weights that init goes back to, a Hub id, or `none` for random ones; found when not given.",
        carry_out=True,
    )
    hub_base_note: str | None = key(
        None,
        "What the weights that init goes back to are, in a few words, where they are published nowhere.",
        carry_out=True,
    )
