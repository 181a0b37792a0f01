"""Configuration of a verdict: which weights are compared, on how many labels."""

from dataclasses import MISSING, dataclass, fields
from typing import Literal

from tpssl_hf.config.allowed import FROM_1, SEEDS
from tpssl_hf.config.parser import as_command_line, flat, key
from tpssl_hf.config.shared import DataConfig


@dataclass(frozen=True)
class VerdictConfig:
    """Verdict: did adapting help."""

    base: str = key(
        "timm",
        "What was adapted: timm (those of timm that the run began from) | random | a timm weight tag | a folder | "
        "a file | a Hub id.",
    )
    adapted: str = key(
        "",
        "Adapted weights: a run's folder, its model/, a file or a Hub id; several with commas are ranked.",
        several=True,
    )
    backbone: str | None = key(
        None, "Architecture of the base; that of its folder, or of the adapted weights, when not given."
    )
    adapted_backbone: str | None = key(
        None, "Architecture of adapted weights that do not name it themselves; the base's when not given."
    )
    teacher: str | None = key(
        None,
        "The teacher of a distillation, frozen, as a row of its own: a timm model, a folder or a Hub id; that of the "
        "adapted run when not given; `none` leaves it out.",
    )
    teacher_image_size: int = key(
        0, "Side of the images the teacher is shown; 0: as in its run, else the size its weights were trained at."
    )
    labels: int | str = key(
        40, "Your budget of labels; or `all`; or a .json or .csv file that lists them; `none` does without."
    )
    label_mode: Literal["balanced", "proportional"] = key(
        "balanced", "Draw the same number for each class, or in proportion to the classes."
    )
    draws: int = key(20, "Number of label seeds, at least 5.")
    queries: int = key(2000, "Largest number of labeled images to predict; no label is drawn from them.")
    images: int = key(4000, "Cap the number of images (fixed random subset); never below 4 times `labels`.")


@dataclass(frozen=True)
class VerdictRunConfig:
    """Run."""

    output_dir: str = key("outputs/verdict", "Folder of the verdict.", carry_out=True)
    seed: int = key(0, "Seed of random weights, of label seeds and of intervals.", within=SEEDS)
    feature_dir: str | None = key(None, "Folder of cached features; below HF_HOME when not given.", carry_out=True)
    cpu_threads: int | None = key(
        None, "CPU threads of this process; chosen for the machine when not given.", carry_out=True, within=FROM_1
    )


@dataclass(frozen=True)
class VerdictArgs:
    """Arguments of a verdict."""

    task: VerdictConfig
    data: DataConfig
    run: VerdictRunConfig


def command_of(args: VerdictArgs) -> list[str]:
    """Return the words of the command that gives this verdict again."""
    defaults = {
        item.name: item.default
        for group in (args.task, args.data, args.run)
        for item in fields(group)
        if item.default is not MISSING
    }
    given = {name: value for name, value in flat(args).items() if name == "dataset" or value != defaults[name]}
    return ["tpssl-hf", "verdict", *as_command_line(given)]
