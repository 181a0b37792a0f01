"""What the analyses share: weights and images, their features, and the form of results."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from tpssl_hf.analysis.config import AnalyzeArgs, AnalyzeConfig
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.shared import DataConfig
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.feature_cache import features_of, open_backbone
from tpssl_hf.models.backbone import WEIGHTS_FILE, WeightsSource, stored_config
from tpssl_hf.training.open_data import open_image_cache, open_source
from tpssl_hf.training.recorded_start import timm_start
from tpssl_hf.training.run_dir import RunDir


@dataclass(frozen=True)
class AnalysisResult:
    """The result of an analysis.

    Attributes:
        table: one entry for each value: row keys, ``value``, and ``seed`` where there is one.
        lines: the same to print, in Markdown.
        facts: the other facts of the JSON file.
    """

    table: list[dict[str, Any]]
    lines: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """One set of weights to analyze.

    Attributes:
        key: ``base``, ``base_statistics`` (the base with BatchNorm statistics re-estimated on these training images,
            as every adapted backbone has them: that gain is no merit of adapting), ``adapted`` or ``adapted_N``.
        init: where they are, as :func:`tpssl_hf.models.backbone.load_backbone` takes it.
        backbone: timm model.
    """

    key: str
    init: str
    backbone: str

    @property
    def architecture(self) -> str:
        """The timm model without the tag of any weights: which weights they are is no part of it."""
        return self.backbone.partition(".")[0]

    @property
    def title(self) -> str:
        """For people: key and name."""
        path = Path(self.init)
        name = f"{path.parent.name}/{path.name}" if path.name == "model" else path.name
        return f"{self.key.replace('_statistics', ', re-estimated BatchNorm').replace('_', ' ')} ({name})"


def located(init: str, backbone: str) -> tuple[str, str]:
    """Return the weights that ``init`` means and their timm model: a run's folder stands for the ``model`` in it."""
    inner = Path(init).expanduser() / "model"
    init = str(inner) if (inner / WEIGHTS_FILE).is_file() else init
    return init, str(stored_config(init).get("architecture", backbone))


def weights_of(config: AnalyzeConfig) -> list[Weights]:
    """Return base, base with re-estimated BatchNorm statistics, and each of ``adapted``.

    Raises:
        InputError: if nothing adapted is named.
    """
    named = [part.strip() for part in config.adapted.split(",") if part.strip()]
    if not named:
        raise InputError(
            "adapted names no weights to compare with base; give --adapted FOLDER of a target pretraining "
            "(`tpssl-hf pretrain` leaves one in outputs/digits)."
        )
    adapted_locations = [located(init, config.backbone)[0] for init in named]
    tagged = timm_start(adapted_locations, config.backbone) if config.base == "timm" else None
    base = located(config.base, tagged or config.backbone)
    keys = ["adapted"] if len(named) == 1 else [f"adapted_{number}" for number in range(1, len(named) + 1)]
    adapted = [Weights(key, *located(init, config.backbone)) for key, init in zip(keys, named, strict=True)]
    return [Weights("base", *base), Weights("base_statistics", *base), *adapted]


def open_split(
    data: DataConfig, accelerator: Accelerator, run: RunDir | None = None, *, wide_range: Range | None = None
) -> tuple[Source, ImageCache]:
    """Open the images of the split ``data.split``.

    With ``run`` the report of the images is printed and written to its folder.

    Raises:
        InputError: if they are to be streamed, or cannot be had.
    """
    if data.streaming:
        raise InputError("images are looked up by number here, which streamed ones have not; leave streaming off.")
    source = open_source(data)
    return source, open_image_cache(source, data, accelerator, run, wide_range=wide_range)


def open_splits(args: AnalyzeArgs, accelerator: Accelerator) -> dict[str, tuple[Source, ImageCache]]:
    """Open the training and, unless it is ``none``, the test split."""
    found = {"train": open_split(args.data, accelerator)}
    if args.task.test_split != "none":
        try:
            wide_range = found["train"][1].wide_range
            test = replace(args.data, split=args.task.test_split)
            found["test"] = open_split(test, accelerator, wide_range=wide_range)
        except InputError as error:
            raise InputError(f"the test images: {error} Say --test_split none to go without.") from error
    return found


def features(
    weights: Weights,
    store: ImageCache,
    indices: np.ndarray,
    args: AnalyzeArgs,
    device: torch.device,
    *,
    training: ImageCache,
) -> np.ndarray:
    """Return (N, D) float32 features of images, kept on disk; statistics are re-estimated on ``training`` images."""
    return features_of(
        store,
        indices,
        backbone=weights.backbone,
        init=weights.init,
        image_size=args.data.image_size,
        device=device,
        statistics=training if weights.key == "base_statistics" else None,
        seed=args.task.seed,
        cache_dir=Path(args.data.cache_dir) / "features" if args.data.cache_dir else None,
    ).values


def network_of(
    weights: Weights, image_size: int, seed: int, device: torch.device
) -> tuple[nn.Module, ViewSettings, WeightsSource]:
    """Load a backbone for images of this size; ``seed`` is that of random weights."""
    return open_backbone(weights.backbone, init=weights.init, image_size=image_size, device=device, seed=seed)


def class_count(source: Source, store: ImageCache, name: str) -> int:
    """Return how many classes the ``name`` images have.

    Raises:
        InputError: if they have no labels.
    """
    if store.labels is None or (store.labels == UNLABELED).all():
        raise InputError(
            f"the {name} images have no labels, and this analysis needs them to score by: name their column with "
            "--label_column (`folder` for the names of sub-folders)."
        )
    return max(int(store.labels.max()) + 1, len(source.class_names or ()))


def markdown(table: Sequence[dict[str, Any]], row_key: str, column_key: str) -> list[str]:
    """Arrange values in [0, 1] as a table of mean ± sample standard deviation in percent."""
    rows, columns = (list(dict.fromkeys(entry[key] for entry in table)) for key in (row_key, column_key))
    lines = [f"| |{'|'.join(f' {column} ' for column in columns)}|", "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        cells = []
        for column in columns:
            values = [100 * e["value"] for e in table if (e[row_key], e[column_key]) == (row, column)]
            plus = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f" {mean(values):.1f}{plus} " if values else " – ")
        lines.append(f"| {row} |{'|'.join(cells)}|")
    return lines
