"""The pictures a run leaves in its folder: what the views look like, and how training went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from tpssl_hf.augment.pictures import Pictures

TITLES = {
    "loss": "loss",
    "projection_std": "std of normalised projections",
    "drift": "drift ‖Φ − Φ_pre‖ / ‖Φ_pre‖",
    "learning_rate": "learning rate",
    "ema_momentum": "EMA momentum of the target",
    "images_per_second": "pictures per second",
}


def draw_views(
    path: Path,
    pictures: Pictures,
    views: Mapping[str, Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write a grid of original and views, one picture per row.

    Args:
        path: PNG file to write.
        pictures: the originals.
        views: name -> (B, 3, H, W) normalised images; entries of other shape are passed over.
        mean: what was subtracted, per channel.
        std: what was divided by, per channel.
    """
    shown = {name: images for name, images in views.items() if images.ndim == 4}
    rows = len(pictures)
    figure = Figure(figsize=(1.6 * (1 + len(shown)), 1.6 * rows))
    axes = figure.subplots(rows, 1 + len(shown), squeeze=False)
    for row in range(rows):
        height, width = pictures.sizes[row].tolist()
        axes[row][0].imshow(pictures.pixels[row, :height, :width].cpu().numpy())
        for column, images in enumerate(shown.values(), start=1):
            image = images[row].float().cpu().permute(1, 2, 0).numpy() * np.asarray(std) + np.asarray(mean)
            axes[row][column].imshow(image.clip(0.0, 1.0))
    for column, name in enumerate(["original", *shown]):
        axes[0][column].set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=110)


def draw_curves(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write one small plot per measure of ``metrics.jsonl`` over the steps.

    Args:
        path: PNG file to write.
        entries: the lines of the log.
    """
    names = [name for name in TITLES if any(name in entry for entry in entries)]
    columns = 3
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
        axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
