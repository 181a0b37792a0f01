"""Configuration of the choice of images to label next."""

from dataclasses import dataclass
from typing import Literal

from tpssl_hf.config.allowed import FROM_1, SEEDS
from tpssl_hf.config.parser import key
from tpssl_hf.config.shared import DataConfig

Strategy = Literal["auto", "typical", "coverage", "doubtful", "random"]


@dataclass(frozen=True)
class PickLabelsConfig:
    """Which images to label next."""

    count: int = key(40, "Images to label.")
    strategy: Strategy = key(
        "auto",
        "auto: doubtful where init is a finished classifier and there are four labels a class, else typical. "
        "typical: the most typical image of each cluster (TypiClust); coverage: images whose surroundings hold "
        "most others (ProbCover); doubtful: different ones of those the classifier doubts; random: none of these.",
    )
    labeled: str | None = key(None, "Labels there are already, a .json or .csv file as --labels of classify takes it.")
    init: str = key(
        "random",
        "Weights of the features: a run's folder, a finished classifier's too, or whatever --init of classify takes.",
    )
    backbone: str = key("resnet18", "timm model, where the weights do not say of which model they are.")
    output_dir: str = key("outputs/to_label", "Folder of the list and the contact sheet.", carry_out=True)
    seed: int = key(0, "Seed of k-means and of random draws.", within=SEEDS)
    cpu_threads: int | None = key(
        None, "CPU threads of this process; chosen for the machine when not given.", within=FROM_1
    )


@dataclass(frozen=True)
class PickLabelsArgs:
    """Arguments of the choice of images to label next."""

    task: PickLabelsConfig
    data: DataConfig
