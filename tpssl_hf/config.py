"""Configuration: flat dataclasses, one key per field; defaults < YAML file < command line."""

import difflib
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from tpssl_hf.config_lists import WRITTEN, settle_lists
from tpssl_hf.errors import InputError
from tpssl_hf.runtime import values_of


def key(default: Any, help_text: str, *, several: bool = False) -> Any:
    """Declare one configuration key: its default, the sentence ``--help`` shows for it, whether it may be a list."""
    return field(default=default, metadata={"help": help_text, "several": several})


@dataclass
class DataConfig:
    """Pictures."""

    dataset: str = key(
        "digits", "digits | cifar10 | cifar100 | svhn, a Hub id, or a folder (pictures, parquet, saved)."
    )
    split: str = key("train", "Split whose pictures are used.")
    dataset_config: str | None = key(None, "Configuration name of a Hub data set that has several.")
    image_column: str | None = key(None, "Column that holds the pictures; found by its type when not given.")
    label_column: str | None = key(None, "Column that holds labels; found when not given. `folder`: sub-folder names.")
    streaming: bool = key(False, "Read a Hub or parquet data set in shards, never holding it whole.")
    limit_images: int | None = key(None, "Use only so many pictures, a fixed random subset.")
    image_size: int = key(224, "Side of the square views, in pixels.")
    horizontal_flip: bool | None = key(
        None, "Flip half of the views; off by default where it changes meaning (digits)."
    )
    num_workers: int = key(2, "Threads that decode pictures.")
    cache_budget: float = key(16.0, "Largest decoded cache on disk, in GiB; above it pictures are decoded on demand.")
    cache_scale: float = key(
        2.5, "Images are stored with the shorter side at most so many times image_size: what small crops are cut from."
    )
    cache_dir: str | None = key(None, "Folder of the decoded cache; below HF_HOME when not given.")


@dataclass
class PretrainConfig:
    """Target pretraining."""

    method: str = key("byol", "How to adapt: byol, moco, simclr (whole pictures), pixpro, densecl (feature maps).")
    l2_weight: float | None = key(
        None, "λ of the pull toward Φ_pre (Eq. 3); 1e-2 when not given, 0 from random weights."
    )
    l2_mode: Literal["loss", "decoupled"] = key(
        "loss", "The pull in the loss (Eq. 3), or as a step beside the optimizer's (ablation)."
    )


@dataclass
class HealthConfig:
    """Health and length of a run."""

    health_every: float = key(1.0, "Epochs between checks of the features' health; 0 never checks.")
    on_collapse: Literal["warn", "stop"] = key("warn", "What a collapse of the features does.")
    stop_when: Literal["never", "stable"] = key("never", "stable: stop once the features have settled.")
    probe_labels: bool = key(False, "Log kNN accuracy on held-out training labels at every check.")
    budget: str | None = key(None, "Time for the run (90s, 30m, 1h30m): batch size and length are chosen to fit it.")
    plan: bool = key(False, "With budget: print the plan and stop.")


@dataclass
class ModelConfig:
    """Backbone."""

    backbone: str = key("resnet18", "A timm model, with a tag of its weights if wanted (resnet18.tv_in1k).")
    init: str = key(
        "random", "random | timm | a timm weight tag | a folder | a .safetensors file | a Hub id[@revision]."
    )
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass: less memory, more time.")
    compile: bool = key(False, "torch.compile the training step (worth it on a GPU; minutes of compiling on a CPU).")
    sync_batchnorm: bool = key(True, "With several processes: BatchNorm statistics over all of them.")


@dataclass
class OptimConfig:
    """Optimisation."""

    batch_size: int = key(256, "Pictures per optimizer step, over all processes and accumulation steps.")
    epochs: int = key(100, "Passes over the pictures.")
    max_steps: int | None = key(None, "Optimizer steps instead of epochs; every schedule is rescaled to it.")
    optimizer: Literal["lars", "sgd", "adamw"] = key("lars", "Optimizer.")
    learning_rate: float = key(0.3, "Base learning rate for 256 pictures; multiplied by batch_size / 256.")
    weight_decay: float = key(1e-6, "Weight decay of weights with two or more dimensions.")
    decay_vectors: bool = key(False, "Weight decay of one-dimensional parameters (BatchNorm, biases) as well.")
    momentum: float = key(0.9, "Momentum of SGD and LARS, first beta of AdamW.")
    warmup_epochs: float = key(10.0, "Epochs of linear warm-up; at most a tenth of the run, and that when streaming.")
    gradient_accumulation_steps: int = key(1, "Parts a batch is computed in; each part sees only itself in BatchNorm.")


@dataclass
class RunConfig:
    """Run."""

    output_dir: str = key("outputs/target_pretrain", "Folder of the run; an unfinished run in it is resumed.")
    seed: int = key(0, "Seed of weights, order and augmentation.")
    resume: bool = key(True, "Continue an unfinished run of the same configuration; false refuses instead.")
    save_every: int = key(500, "Steps between checkpoints.")
    keep_checkpoints: int = key(2, "Checkpoints kept.")
    log_every: int = key(10, "Steps between lines of metrics.jsonl.")
    log_with: Literal["none", "tensorboard", "trackio", "wandb"] = key("none", "Tracker beside metrics.jsonl.")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "auto: bfloat16 where the hardware multiplies it.")
    cpu_threads: int | None = key(None, "CPU threads of this process; chosen for the machine when not given.")


HUB_KEYS = frozenset({"push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision"}) | frozenset(
    {"hub_license", "hub_base_model", "hub_base_note"}
)
# Keys that change how a run is carried out but not what comes out of it; a resumed run may change them.
CARRY_OUT_KEYS = HUB_KEYS | frozenset(
    {
        "output_dir",
        "resume",
        "save_every",
        "keep_checkpoints",
        "log_with",
        "num_workers",
        "cache_dir",
        "cache_budget",
        "plan",
    }
)

ConfigType = TypeVar("ConfigType")


class _PlainDescription(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help whose description keeps its lines, so that commands in it can be copied."""


def build_parser(groups: Sequence[type], description: str, defaults: Mapping[str, Any]) -> ArgumentParser:
    """Make a parser with one flat key per field of ``groups``, grouped in ``--help`` by dataclass.

    Raises:
        ValueError: if two dataclasses declare the same key.
    """
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        formatter_class=_PlainDescription,
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of keys; the command line beats it.")
    seen: set[str] = set()
    for group_type in groups:
        title = (group_type.__doc__ or group_type.__name__).strip().splitlines()[0].rstrip(".")
        group = parser.add_argument_group(title)
        hints = get_type_hints(group_type)
        for item in fields(group_type):
            if item.name in seen:
                raise ValueError(f"two configuration classes declare the key {item.name!r}")
            seen.add(item.name)
            default = defaults.get(item.name, None if item.default is MISSING else item.default)
            switch: dict[str, Any] = {"nargs": "?", "const": True} if hints[item.name] in (bool, bool | None) else {}
            hint = WRITTEN if item.metadata.get("several") else hints[item.name]
            text = item.metadata.get("help", "")
            group.add_argument(f"--{item.name}", type=hint, default=default, help=text, **switch)
    return parser


def parse_config(
    groups: Sequence[type],
    arguments: Sequence[str],
    *,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Resolve all keys of ``groups`` from ``arguments``: defaults < ``--config`` file < command line.

    Args:
        groups: dataclasses whose fields are the keys.
        arguments: the command line without the program's name.
        description: text above ``--help``.
        defaults: values that replace the dataclasses' defaults (a method's preset, say).

    Returns:
        Key to value, in the order of the dataclasses.

    Raises:
        InputError: for an unknown key (naming the nearest known one), a wrong type, or a file that cannot be read.
    """
    parser = build_parser(groups, description, defaults or {})
    known = [item.name for group in groups for item in fields(group)]
    _refuse_unknown(_given_keys(arguments), known)
    try:
        namespace: Namespace = parser.parse_args(list(arguments))
    except Exception as error:  # jsonargparse raises several kinds; every one is about what the user gave
        raise InputError(_first_sentence(str(error))) from error
    return settle_lists(groups, {name: getattr(namespace, name) for name in known})


def _given_keys(arguments: Sequence[str]) -> list[str]:
    keys = [a[2:].partition("=")[0] for a in arguments if a.startswith("--") and len(a) > 2]
    for path in config_files(arguments):
        keys += list(read_config_file(path))
    return [name for name in keys if name not in ("config", "help", "print_config")]


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files named by ``--config`` on a command line."""
    return [Path(value) for value in values_of("--config", arguments)]


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one flat YAML file of keys.

    Raises:
        InputError: if the file is missing, is not YAML or is not a flat mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--config {path} cannot be read ({error.strerror}); give the path of a YAML file."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold `key: value` lines, one per setting.")
    return content


def _refuse_unknown(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"the nearest known one is {near[0]!r}" if near else "--help lists the known ones"
            raise InputError(f"unknown setting {name!r}; {hint}.")


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).removeprefix("error: ") + " (--help lists every setting)"


def take(config_type: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Build one dataclass from the resolved values it declares."""
    assert is_dataclass(config_type)
    return config_type(**{item.name: values[item.name] for item in fields(config_type)})


def as_plain(*configs: Any) -> dict[str, Any]:
    """Merge dataclasses into one flat dictionary, for ``config.yaml`` and ``results.json``."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged.update(asdict(config))
    return merged


def method_named(arguments: Sequence[str], default: str = "byol") -> str:
    """Return the method that a command line asks for, itself or in its ``--config`` files, else ``default``."""
    name = default
    for path in config_files(arguments):
        name = str(read_config_file(path).get("method", name))
    return ([name] + values_of("--method", arguments))[-1]


def parse_with_method(
    arguments: Sequence[str],
    groups: Sequence[type],
    methods: Mapping[str, tuple[type, Mapping[str, Any]]],
    *,
    description: str,
    default: str = "byol",
) -> tuple[dict[str, Any], Any]:
    """Resolve all keys of a recipe whose ``method`` brings keys and defaults of its own.

    Args:
        arguments: the command line without the program's name.
        groups: dataclasses shared by all methods; one of them declares ``method``.
        methods: method name -> (dataclass of its keys, its values for shared keys).
        description: text above ``--help``.
        default: method where none is named.

    Returns:
        Every key with its value, and the method's own dataclass.

    Raises:
        InputError: for an unknown method, and as :func:`parse_config` does.
    """
    name = method_named(arguments, default)
    if name not in methods:
        raise InputError(f"method {name!r} is not one of {', '.join(sorted(methods))}.")
    config_type, defaults = methods[name]
    values = parse_config([*groups, config_type], arguments, description=description, defaults=defaults)
    return values, take(config_type, values)
