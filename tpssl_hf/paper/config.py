"""Configuration of the reproduction of the paper's tables and figures."""

from dataclasses import dataclass
from typing import Literal

from tpssl_hf.config.parser import key


@dataclass(frozen=True)
class ReproduceConfig:
    """Tables and figures of the paper."""

    table: str | None = key(None, "Table: I, II, III, IV, V, VI or VII.")
    figure: str | None = key(None, "Figure: 1, 3, 4 or 5.")
    cells: str | None = key(
        None, "Only these cells, ROW/COLUMN with commas between; * stands for anything.", several=True
    )
    scale: Literal["paper", "small", "smoke"] = key(
        "small",
        "paper: presets as they are, for a GPU; small: for two CPU cores; smoke: seconds, numbers mean nothing.",
    )
    list: bool = key(False, "Print the cells, their state, their commands and what is missing; run nothing.")
    init: str = key(
        "timm", "ImageNet-supervised weights: timm's from the Hub, or what else --init of a training takes."
    )
    backbone: str | None = key(None, "Architecture of those weights, where it is not the presets'.")
    init_pixpro: str | None = key(None, "PixPro's ImageNet weights (Tables II and IV), likewise; there is no default.")
    dataset: str | None = key(None, "The data set, where a table has one: a folder or Hub id of your own.")
    dataset_paths: str | None = key(
        None, "Likewise for several: cifar10=PATH,svhn=PATH; --list says the names.", several=True
    )
    select: Literal["best", "last"] | None = key(
        None, "What a target pretraining hands on, where it is not what the scale says: see tpssl-hf pretrain --help."
    )
    output_dir: str = key("outputs/reproduce", "Folder of runs/, logs/ and tables/; finished runs in it are kept.")


@dataclass(frozen=True)
class ReproduceArgs:
    """Every key of reproduce."""

    reproduce: ReproduceConfig
