"""Arguments of target pretraining: its keys, how they are parsed, and what depends on other keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tpssl_hf.config.image_size import with_image_size
from tpssl_hf.config.own_backbone import gives_pretrained, with_own_backbone
from tpssl_hf.config.parser import Methods, as_command_line, asks_for_help, config_files, key, method_named, parse_args
from tpssl_hf.config.shared import DataConfig, ModelConfig, OptimConfig, PushConfig, RunConfig, TimeConfig
from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.own_size import own_image_size

DEFAULTS = Path(__file__).parent / "defaults"  # METHOD.yaml: settings of the embedded digits
AUTO, USUAL_METHOD, OF_SMALL_IMAGES = "auto", "moco", "distill"
STARTED = DEFAULTS / "moco_from_imagenet.yaml"
L2_WEIGHT = 1e-2  # METHODS: the paper's λ
OPTIMIZER, RATE = "optimizer", "base_learning_rate"  # what depends on where a run starts
PRETRAINED_SHARE = 0.1  # of a method's own rate with SGD for pretrained weights, the paper's rule
ADAMW_RATE = 4e-4  # for 256 images; docs/evidence.md
KEYS = {
    name: (spec.config, {key: value for key, value in spec.defaults.items() if key not in (OPTIMIZER, RATE)})
    for name, spec in PRETRAIN.items()
}
METHODS = Methods({AUTO: KEYS[USUAL_METHOD], **KEYS}, AUTO)


@dataclass(frozen=True)
class PretrainConfig:
    """Target pretraining."""

    method: str = key(
        AUTO,
        f"How to adapt: {AUTO}, {', '.join(PRETRAIN)} (pixpro and densecl learn feature maps, distill follows a "
        f"teacher). {AUTO}: {USUAL_METHOD}, or {OF_SMALL_IMAGES} with the weights as their own teacher where they are "
        "shown smaller images than they were trained at, unless labels say that they see them worse enlarged.",
    )
    l2_weight: float | None = key(
        None, "L2-SP weight λ, the penalty toward Φ_pre (Eq. 3); 1e-2 when not given, 0 from random weights."
    )
    select: Literal["best", "last"] = key(
        "best",
        "What model/ holds. best: the snapshot that labels of training images show to be better than the start, else "
        "the start itself; without labels, or from random weights, the last one. last: the last one, as in the paper.",
    )
    probe_images: int = key(
        4000,
        "Labeled training images that choose what model/ holds and judge it, at most; without labels crops of a "
        "fourth as many choose. --budget lowers it where looking would take too long.",
    )
    l2_mode: Literal["loss", "decoupled"] = key(
        "loss", "The penalty in the loss (Eq. 3), or as a step beside the optimizer's (ablation)."
    )


@dataclass(frozen=True)
class HealthConfig:
    """Health and length of a run."""

    health_every: float = key(1.0, "Epochs between checks of the features' health; 0 never checks.")
    on_collapse: Literal["warn", "stop"] = key("warn", "What a collapse of the features does.")
    stop_when: Literal["never", "stable"] = key("never", "stable: stop once the features have settled.")
    probe_labels: bool = key(False, "Log kNN accuracy on held-out training labels at every check.")


@dataclass(frozen=True)
class PretrainArgs:
    """Everything a target pretraining is told; ``method`` holds the keys of the method named in ``task``."""

    task: PretrainConfig
    health: HealthConfig
    time: TimeConfig
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    run: RunConfig
    push: PushConfig
    method: Any


def parse_pretrain(
    arguments: Sequence[str] | Mapping[str, Any],
    description: str = "",
    starter: Callable[[], Mapping[str, str]] = dict,
) -> PretrainArgs:
    """Parse and resolve the keys; without a data set or a config file the embedded digits are adapted to.

    Args:
        arguments: of the command line, or keywords.
        description: what ``--help`` shows above the keys.
        starter: keys of the weights that the default method starts from on the digits, by name, asked for only if
            they are wanted; random ones if there are none, or another method is named.

    Raises:
        InputError: as :func:`tpssl_hf.config.parser.parse_args` does.
    """
    given = with_own_backbone(as_command_line(arguments))
    if not config_files(given) and not any(argument.partition("=")[0] == "--dataset" for argument in given):
        method, names = method_named(given, AUTO), {argument.partition("=")[0] for argument in given}
        usual = method in (AUTO, USUAL_METHOD)
        own = bool({"--init", "--backbone"} & names) or asks_for_help(given) or not usual
        found = {} if own else starter()
        pretrained = usual and gives_pretrained(given)
        digits = STARTED if found or pretrained else DEFAULTS / f"{USUAL_METHOD if usual else method}.yaml"
        start = [part for name, value in found.items() for part in (f"--{name}", value)]
        given = ["--config", str(digits), *start, *given] if digits.exists() else given
    return resolve(parse_args(PretrainArgs, given, description=description, methods=METHODS))


def resolve(args: PretrainArgs) -> PretrainArgs:
    """Return ``args`` with everything put in that depends on other keys.

    That is the λ of Eq. 3, the size of the images, the optimizer and its learning rate. From pretrained
    weights AdamW makes the same way in fewer steps than what methods were published with for random ones, and undoes
    less. With SGD a tenth of the published rate does; LARS is left its own, because it moves a tensor by a part of its
    length.
    """
    data = with_image_size(args.data, args.model.backbone, args.model.init, args.time)
    random, optim = args.model.init == "random", args.optim
    own = PRETRAIN[USUAL_METHOD if args.task.method == AUTO else args.task.method].defaults
    weight, rate = args.task.l2_weight, optim.base_learning_rate
    optimizer = optim.optimizer or (own[OPTIMIZER] if random else "adamw")
    if rate is None and optimizer == "adamw":
        rate = own[RATE] if random and own[OPTIMIZER] == "adamw" else ADAMW_RATE
    elif rate is None:
        rate = own[RATE] if random or optimizer == "lars" else float(f"{PRETRAINED_SHARE * own[RATE]:.6g}")
    if weight is None:  # METHODS: a penalty toward random weights means nothing
        weight = 0.0 if args.model.init == "random" else L2_WEIGHT
    if getattr(args.method, "teacher", None) == "" and not random:
        args = replace(args, method=replace(args.method, **own_teacher(args.model)))
    optim = replace(optim, optimizer=optimizer, base_learning_rate=rate)
    return replace(args, task=replace(args.task, l2_weight=weight), data=data, optim=optim)


def own_teacher(model: ModelConfig) -> dict[str, str | None]:
    """Return the keys that make the weights a run starts from its teacher."""
    if model.init == "timm":
        return {"teacher": model.backbone, "teacher_backbone": None}
    return {"teacher": model.init, "teacher_backbone": model.backbone}


def check_own_teacher(args: PretrainArgs) -> None:
    """Refuse weights that would follow themselves at the same size of the images, where nothing is to be learned.

    Asked when the size is settled, which with a budget is after :func:`resolve`.

    Raises:
        InputError: if they would.
    """
    size, model = args.data.image_size, args.model
    if getattr(args.method, "teacher", None) == own_teacher(model)["teacher"]:
        seen = args.method.teacher_image_size or own_image_size(model.backbone, model.init)
        if seen <= size:
            raise InputError(
                f"the teacher is what the run starts from and would see {seen} px, which the run itself sees "
                f"at {size} px: give another --teacher, or a smaller --image_size."
            )
