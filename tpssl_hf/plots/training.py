"""Figures of a run: what the views look like, and how training went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tpssl_hf.data.image_batch import ImageBatch

TITLES = {
    "choosing_accuracy": "right answers, labels that choose what is saved",
    "crops_known_again": "images known again in another crop (mean reciprocal rank)",
    "loss": "loss",
    "loss_cosine": "1 − cosine with the teacher's features",
    "loss_relational": "KL of relations, teacher and student",
    "loss_labeled": "loss of labeled images",
    "loss_unlabeled": "loss of unlabeled images",
    "loss_feature": "loss of perturbed features",
    "loss_contrast": "loss of the contrast with the memory",
    "entropy": "entropy of unlabeled pixels",
    "confident": "share of pixels the teacher is sure of",
    "accepted": "accepted share of unlabeled images, or pixels",
    "accepted_having": "share of unlabeled images taken to have a label",
    "bank_filled": "filled share of the memory",
    "test_accuracy": "accuracy on the test split (EMA)",
    "validation_accuracy": "accuracy on held-out labels (EMA)",
    "test_mean_average_precision": "mAP on the test split (EMA)",
    "validation_mean_average_precision": "mAP on held-out labels (EMA)",
    "projection_std": "std of normalized projections",
    "positive_pairs": "pairs of cells per image",
    "health_embedding_std": "std of embeddings (1 spread, 0 collapsed)",
    "health_effective_rank": "effective rank of embeddings",
    "health_alignment": "alignment: distance² of two views",
    "health_uniformity": "uniformity (lower is more even)",
    "health_neighbor_agreement_previous": "neighbors kept since the last check",
    "health_neighbor_agreement_start": "neighbors kept since Φ_pre",
    "health_cka_start": "linear CKA with Φ_pre",
    "health_knn_accuracy": "kNN accuracy, held-out labels",
    "drift": "drift ‖Φ − Φ_pre‖ / ‖Φ_pre‖",
    "learning_rate": "learning rate",
    "ema_momentum": "EMA momentum of the target",
    "images_per_second": "images per second",
}

TITLES_BY_STAGE = {  # begin of the names -> title
    "stage_drift/": "drift ‖Φ − Φ_pre‖ / ‖Φ_pre‖ by stage",
    "stage_cka/": "linear CKA with Φ_pre by stage",
}

# Of views in their order; most color-blind people can tell them apart (Okabe and Ito, 2008).
VIEW_COLORS = ("#f0e442", "#56b4e9", "#e69f00", "#009e73")


def draw_views(
    path: Path,
    batch: ImageBatch,
    views: Mapping[str, Tensor],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write a grid of original and views, one image per row.

    Where a view came from is drawn on the original, if known; a triangle shows its upper left corner, which is on the
    right of the box where the view is mirrored. Where the image ends in a warped view is drawn on the view.

    Args:
        path: PNG file to write.
        batch: the originals.
        views: name -> (B, 3, H, W) normalized images; for a view ``view1``, its crop ``geometry1`` (B, 4) and its
            affine matrix ``affine1`` (B, 3, 3) if there are any; other entries are passed over.
        mean: what was subtracted, per channel.
        std: what was divided by, per channel.
    """
    shown = {name: images for name, images in views.items() if images.ndim == 4}
    colors = {name: VIEW_COLORS[number % len(VIEW_COLORS)] for number, name in enumerate(shown)}
    rows = len(batch)
    figure = Figure(figsize=(2.0 * (1 + len(shown)), 1.9 * rows + 0.3))
    axes = figure.subplots(rows, 1 + len(shown), squeeze=False)
    for row in range(rows):
        height, width = batch.sizes[row].tolist()
        axes[row][0].imshow(batch.pixels[row, :height, :width].cpu().numpy())
        for column, (name, images) in enumerate(shown.items(), start=1):
            image = images[row].float().cpu().permute(1, 2, 0).numpy() * np.asarray(std) + np.asarray(mean)
            axes[row][column].imshow(image.clip(0.0, 1.0))
            number = name.removeprefix("view")  # views of other names tell nothing of where they come from
            geometry, matrix = views.get(f"geometry{number}"), views.get(f"affine{number}")
            if geometry is not None:
                _draw_crop(axes[row][0], geometry[row].cpu().numpy() * [width, height, width, height], colors[name])
            if matrix is not None:
                _draw_warp(axes[row][column], matrix[row].cpu().numpy(), image.shape[:2], colors[name])
    for axis, name in zip(axes[0], ["original", *shown], strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    note = (
        "boxes: crops, filled in the view's upper left corner" if any(n.startswith("geometry") for n in views) else ""
    )
    if any(name.startswith("affine") for name in views):
        note += "\nlines on views: edge of the crop after warping"
    foot = 0.35 / figure.get_figheight() if note else 0.0  # inches kept free below the last row
    figure.tight_layout(pad=0.4, rect=(0.0, foot, 1.0, 1.0))
    figure.text(0.5, foot / 2, note, ha="center", va="center", fontsize=7)
    figure.savefig(path, dpi=110)


def _outline(axis: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    """Draw a closed line that stands out on any image; x and y count from the outer edge of the first pixel."""
    x, y = [value - 0.5 for value in (*x, x[0])], [value - 0.5 for value in (*y, y[0])]
    for width, ink in ((2.6, "black"), (1.4, color)):
        axis.plot(x, y, color=ink, linewidth=width, solid_joinstyle="miter", scalex=False, scaley=False)


def _draw_crop(axis: Axes, box: Any, color: str) -> None:
    """Draw the box x0, y0, x1, y1 in pixels, and a triangle in the corner that is the view's upper left."""
    x0, y0, x1, y1 = box.tolist()
    _outline(axis, (x0, x1, x1, x0), (y0, y0, y1, y1), color)
    side = min(abs(x1 - x0), abs(y1 - y0)) / 4
    tip = x0 + np.copysign(side, x1 - x0)
    axis.fill(
        [x0 - 0.5, tip - 0.5, x0 - 0.5], [y0 - 0.5, y0 - 0.5, y0 + side - 0.5], color=color, alpha=0.8, linewidth=0
    )


def _draw_warp(axis: Axes, matrix: Any, size: tuple[int, int], color: str) -> None:
    """Draw where the edge of the crop lies after warping, unless it was not warped."""
    if np.array_equal(matrix, np.eye(3)):
        return
    corners = matrix @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    height, width = size
    _outline(axis, ((corners[0] + 1) * width / 2).tolist(), ((corners[1] + 1) * height / 2).tolist(), color)


def headline(what: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what was trained on what, how far, and what the last check of the features found, if there was one."""
    last = next((entry["step"] for entry in reversed(entries) if entry.get("loss") is not None), None)
    checks = [entry for entry in entries if entry.get("health_collapsed") is not None]
    parts = [what, *([f"{last:,} steps"] if last is not None else [])]
    if checks:
        found = "COLLAPSED" if checks[-1]["health_collapsed"] else "healthy"
        parts.append(f"{found} at step {checks[-1]['step']:,}")
    return ", ".join(parts)


def draw_curves(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Mapping[str, float]] | None = None,
    *,
    what: str = "",
) -> None:
    """Write one small plot per measure of ``metrics.jsonl`` over the steps; measures by stage share one.

    Args:
        path: PNG file to write.
        entries: the lines of the log.
        levels: name of a measure -> what else has a value of it, drawn as a horizontal line.
        what: was trained on what, for the headline; none when not given.
    """
    logged = list(dict.fromkeys(name for entry in entries for name in entry))
    panels = {title: {"": name} for name, title in TITLES.items() if name in logged}
    for start, title in TITLES_BY_STAGE.items():
        lines = {name.removeprefix(start): name for name in logged if name.startswith(start)}
        panels |= {title: lines} if lines else {}
    columns = 3
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for label, name in lines.items():
            points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
            if points:
                dots = "." if len(points) < 50 else ""
                axis.plot(*zip(*points, strict=True), linewidth=1.2, marker=dots, label=label)
            for number, (level, value) in enumerate((levels or {}).get(name, {}).items()):
                axis.axhline(value, color=VIEW_COLORS[1 + number], linewidth=1.0, linestyle="--", label=level)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.ticklabel_format(axis="y", useOffset=False)  # the offset would be written over the title
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) > 1:
            axis.legend(fontsize=6)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    head = 0.4 / figure.get_figheight() if what else 0.0  # inches kept free for it
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 1.0 - head))
    if what:
        figure.text(0.5, 1.0 - head / 2, headline(what, entries), ha="center", va="center", fontsize=12)
    figure.savefig(path, dpi=110)
