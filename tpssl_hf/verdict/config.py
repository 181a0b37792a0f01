"""Configuration of a verdict: which weights are compared, on how many labels."""

from dataclasses import dataclass
from typing import Literal

from tpssl_hf.config.parser import key


@dataclass
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
        None, "Architecture of adapted weights that do not say it themselves; the base's when not given."
    )
    labels: int | str = key(
        40, "Your budget of labels; or `all`; or a .json or .csv file that says which; `none` does without."
    )
    label_mode: Literal["balanced", "proportional"] = key(
        "balanced", "Draw the same number for each class, or in proportion to the classes."
    )
    draws: int = key(20, "Draws of labels, at least 5.")
    queries: int = key(2000, "Labeled images asked about at most; no draw takes its labels from them.")
    images: int = key(4000, "Images whose features are looked at, at most, or 4 times `labels` if that is more.")


@dataclass
class VerdictRunConfig:
    """Run."""

    output_dir: str = key("outputs/verdict", "Folder of the verdict.")
    seed: int = key(0, "Seed of random weights, of draws and of intervals.")
    feature_dir: str | None = key(None, "Folder of cached features; below HF_HOME when not given.")
    cpu_threads: int | None = key(None, "CPU threads of this process; chosen for the machine when not given.")
