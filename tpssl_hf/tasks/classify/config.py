"""Arguments of semi-supervised classification: its keys, how they are parsed, and what depends on other keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tpssl_hf.config.allowed import BELOW_1, FROM_1, SEEDS
from tpssl_hf.config.digits import DIGITS_RUN, DIGITS_SIZE, digits_run
from tpssl_hf.config.image_size import with_image_size
from tpssl_hf.config.own_backbone import gives_pretrained, with_own_backbone
from tpssl_hf.config.parser import Methods, as_command_line, asks_for_help, config_files, key, parse_args
from tpssl_hf.config.shared import (
    LEFT_TO_BUDGET,
    DataConfig,
    ModelConfig,
    PushConfig,
    RunConfig,
    TimeConfig,
    left_to_budget,
)
from tpssl_hf.errors import InputError
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.fixmatch import PUBLISHED_THRESHOLD

DEFAULTS = Path(__file__).parent / "defaults"
DIGITS, PRETRAINED_DIGITS = DEFAULTS / "digits.yaml", DEFAULTS / "digits_pretrained.yaml"
DEFAULT_METHOD = "fixmatch"
RANDOM_RATE, FITTED_RATE = 0.03 / 64, 0.002 / 16  # learning rate per labeled image of a step
FITTED_THRESHOLD, FITTED_ALIGNMENT, FITTED_NORM = 0.8, 0.5, 5.0
METHODS = Methods({name: (spec.config, spec.defaults) for name, spec in CLASSIFY.items()}, DEFAULT_METHOD)


@dataclass(frozen=True)
class ClassifyConfig:
    """Semi-supervised classification."""

    method: str = key(DEFAULT_METHOD, f"Learner: {', '.join(CLASSIFY)}.")
    labels: int | str = key(40, "Labels in all, drawn; or `all`; or a .json or .csv file that says which.")
    label_mode: Literal["balanced", "proportional"] = key(
        "balanced", "Draw the same number for each class, or in proportion to the classes."
    )
    labeled_sampling: Literal["images", "classes"] = key(
        "images",
        "What comes equally often among the labeled images of the steps: each image, or each class, so that rare "
        "classes count as much as common ones.",
    )
    label_seed: int = key(1, "Label seed: decides which labels are drawn.", within=SEEDS)
    label_seeds: list[int] | None = key(
        None, "Several label seeds, `1,2,3`: one run each, below output_dir, with mean and spread.", several=True
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
    limit_test_images: int | None = key(None, "Cap the number of test images (fixed random subset).", within=FROM_1)
    evaluate_every: float = key(
        0.0, "Epochs between evaluations on the test split, for curves and the median of the last 20; 0: only the end."
    )
    select: Literal["best", "last"] = key(
        "best",
        "What model/ holds. best: what was finetuned, unless a probe on frozen features or label spreading is better "
        "by cross-validation on the training labels, which costs as much as another run at most. last: what was "
        "finetuned, as in the paper.",
    )
    head_init: Literal["probe", "random"] | None = key(
        None,
        "Classifier head at the start. probe: logistic regression on the frozen features of the labeled images "
        "(arXiv 2202.10054); random: N(0, 0.01). When not given: probe, or random from random weights.",
    )
    crop: Literal["pad", "rrc"] = key(
        "pad", "Weak crop: reflected padding and shift (FixMatch), or RandomResizedCrop."
    )
    work_size: int | None = key(
        None, "Side at which views are distorted; the images' own, at most image_size, when not given.", within=FROM_1
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Optimization."""

    batch_size: int = key(
        64, "Labeled images per step, over all processes (FixMatch's B; paper §IV-B).", within=FROM_1
    )
    unlabeled_ratio: int = key(7, "Unlabeled images per labeled one (FixMatch's μ; paper §IV-B).")
    epochs: float = key(
        200.0,
        "Passes over the unlabeled images at 7 · batch_size per step, whatever the learner; with budget, the most.",
    )
    max_steps: int | None = key(None, "Steps instead of epochs; every schedule is rescaled to it.")
    optimizer: Literal["sgd", "adamw"] = key("sgd", "Optimizer.")
    learning_rate: float | None = key(
        None,
        "Learning rate for the batch as it is; lower it with batch_size. When not given: 0.03 for a batch of 64 "
        "(FixMatch's), or 0.002 for one of 16 where the head is fitted, in proportion.",
    )
    head_lr_multiplier: float = key(1.0, "Learning-rate multiplier for the classifier head.")
    max_gradient_norm: float | None = key(
        None,
        "Length that longer gradients are cut to; 0 cuts none. When not given: 5 where the head is fitted, which "
        "first steps would else undo, or 0.",
    )
    momentum: float = key(0.9, "Momentum of SGD, first beta of AdamW.", within=BELOW_1)
    nesterov: bool = key(True, "Nesterov's form of momentum.")
    weight_decay: float = key(5e-4, "Weight decay of weights with two or more dimensions (1e-3 for CIFAR-100).")
    decay_norm_and_bias: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    schedule: Literal["cosine", "steps"] = key(
        "cosine", "cosine: cos(7π/16 · progress), FixMatch's; steps: a tenth at four points, Self-Tuning's."
    )


@dataclass(frozen=True)
class ClassifyArgs:
    """Everything a classification is told; ``method`` holds the keys of the learner named in ``task``."""

    task: ClassifyConfig
    data: DataConfig
    model: ModelConfig
    optim: FinetuneConfig
    time: TimeConfig
    run: RunConfig
    push: PushConfig
    method: Any


def parse_classify(
    arguments: Sequence[str] | Mapping[str, Any],
    description: str = "",
    starter: Callable[[], Mapping[str, str]] = dict,
) -> ClassifyArgs:
    """Parse and resolve the keys; without a data set or a config file the embedded digits are learned.

    These start from ``--init`` where it is given, else from the weights of the default target pretraining where they
    are there, else from ``starter``.

    Args:
        arguments: of the command line, or keywords.
        description: what ``--help`` shows above the keys.
        starter: keys of the weights to start from, by name, asked for only if they are wanted.

    Raises:
        InputError: as :func:`tpssl_hf.config.parser.parse_args` does.
    """
    line = with_own_backbone(as_command_line(arguments))
    given = [argument.partition("=")[0] for argument in line]
    if not config_files(line) and "--dataset" not in given:
        found: Mapping[str, str] = {}
        if not {"--init", "--backbone"} & set(given) and not asks_for_help(line):
            former = {name: str(value) for name, value in digits_run().items() if name in ("backbone", "image_size")}
            found = {**former, "init": str(DIGITS_RUN / "model")} if former else starter()
            found = {"image_size": str(DIGITS_SIZE), **found} if found else {}
        start = [part for name, value in found.items() if f"--{name}" not in given for part in (f"--{name}", value)]
        pretrained = found or gives_pretrained(line)
        line = ["--config", str(PRETRAINED_DIGITS if pretrained else DIGITS), *start, *line]
    defaults = {"output_dir": "outputs/ssl_classify"}
    args = parse_args(ClassifyArgs, line, description=description, methods=METHODS, defaults=defaults)
    if args.time.budget:
        args = replace(args, optim=replace(args.optim, **left_to_budget(line)))
    return resolve(args)


def resolve(args: ClassifyArgs) -> ClassifyArgs:
    """Return ``args`` with everything put in that depends on other keys.

    That is the size of the images, how the head begins, and with it the learning rate, the cut of gradients and
    FixMatch's threshold: a fitted head is undone by FixMatch's rate, and its probabilities are less sharp than those
    FixMatch was published with.

    Raises:
        InputError: for a sampling of steps of a learner that makes none.
    """
    if args.task.labeled_sampling != "images" and CLASSIFY[args.task.method].fit_labels is not None:
        raise InputError(
            f"labeled_sampling {args.task.labeled_sampling} is about the images of steps, and {args.task.method} "
            "makes none; leave it out, or take another --method."
        )
    random = args.model.init == "random"
    head = args.task.head_init or ("random" if random else "probe")
    rate, threshold = (FITTED_RATE, FITTED_THRESHOLD) if head == "probe" else (RANDOM_RATE, PUBLISHED_THRESHOLD)
    if args.optim.learning_rate is None and args.optim.batch_size != LEFT_TO_BUDGET:
        args = replace(args, optim=replace(args.optim, learning_rate=float(f"{rate * args.optim.batch_size:.2g}")))
    if args.optim.max_gradient_norm is None:
        args = replace(args, optim=replace(args.optim, max_gradient_norm=FITTED_NORM if head == "probe" else 0.0))
    if getattr(args.method, "threshold", 0.0) is None:
        args = replace(args, method=replace(args.method, threshold=threshold))
    if getattr(args.method, "alignment", 0.0) is None:
        args = replace(args, method=replace(args.method, alignment=FITTED_ALIGNMENT if head == "probe" else 0.0))
    data = with_image_size(args.data, args.model.backbone, args.model.init, args.time)
    return replace(args, data=data, task=replace(args.task, head_init=head))
