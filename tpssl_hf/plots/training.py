"""Figures of a run: what the views look like, and how training went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.plots.headline import COLLAPSED, headline

TITLES = {  # the first of these that a run logs are in curves.png, the others in the second picture
    "choosing_accuracy": "right answers on labels that choose what is saved",
    "crops_known_again": "images known again in another crop (mean reciprocal rank)",
    "test_accuracy": "accuracy on the test split (EMA)",
    "test_mean_average_precision": "mAP on the test split (EMA)",
    "validation_accuracy": "accuracy on held-out labels (EMA)",
    "validation_mean_average_precision": "mAP on held-out labels (EMA)",
    "accepted": "accepted share of unlabeled images, or pixels",
    "loss": "loss",
    "health_embedding_std": "std of embeddings (1 spread, 0 collapsed)",
    "drift": "drift ‖Φ − Φ_pre‖ / ‖Φ_pre‖",
    "health_knn_accuracy": "kNN accuracy, held-out labels",
    "loss_labeled": "loss of labeled images",
    "loss_unlabeled": "loss of unlabeled images",
    "loss_cosine": "1 − cosine with the teacher's features",
    "loss_relational": "KL of relations, teacher and student",
    "loss_feature": "loss of perturbed features",
    "loss_contrast": "loss of the contrast with the memory",
    "entropy": "entropy of unlabeled pixels",
    "confident": "share of pixels the teacher is sure of",
    "accepted_having": "share of unlabeled images taken to have a label",
    "bank_filled": "filled share of the memory",
    "projection_std": "std of normalized projections",
    "positive_pairs": "pairs of cells per image",
    "health_effective_rank": "effective rank of embeddings",
    "health_alignment": "alignment: distance² of two views",
    "health_uniformity": "uniformity (lower is more even)",
    "health_neighbor_agreement_previous": "neighbors kept since the last check",
    "health_neighbor_agreement_start": "neighbors kept since Φ_pre",
    "health_cka_start": "linear CKA with Φ_pre",
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
ALARM = "#d55e00"
# What is to be seen against 0, so that a change in the third digit does not fill the plot -> least end of its axis.
FROM_ZERO = {"accepted": 1.0, "accepted_having": 1.0, "health_embedding_std": 1.0, "drift": 1e-9}
FIRST = 4  # plots of curves.png
HEAD = 0.5  # inches kept free for the headline


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


def draw_curves(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Mapping[str, float]] | None = None,
    *,
    what: str = "",
) -> None:
    """Draw the measures of ``metrics.jsonl`` over the steps, the four that matter first, under a headline.

    The others, if there are any, are in a second picture beside it, ``curves_more.png`` of ``curves.png``. Measures by
    stage share a plot.

    Args:
        path: PNG file to write.
        entries: the lines of the log.
        levels: name of a measure -> what else has a value of it, drawn as a horizontal line.
        what: was trained on what, for the headline; none when not given.
    """
    logged = list(dict.fromkeys(name for entry in entries for name in entry))
    whole = [entry.get("loss") for entry in entries]
    for name in ("loss_labeled", "loss_unlabeled"):  # where it is all of the loss, once is enough
        if name in logged and [entry.get(name) for entry in entries] == whole:
            logged.remove(name)
    panels = {title: {"": name} for name, title in TITLES.items() if name in logged}
    for start, title in TITLES_BY_STAGE.items():
        lines = {name.removeprefix(start): name for name in logged if name.startswith(start)}
        panels |= {title: lines} if lines else {}
    shown, more = list(panels.items()), path.with_stem(f"{path.stem}_more")
    more.unlink(missing_ok=True)  # of a run that logged more
    head = headline(what, entries) if what else ""
    _draw_panels(path, dict(shown[:FIRST]), entries, levels or {}, head=head, columns=2)
    if shown[FIRST:]:
        _draw_panels(more, dict(shown[FIRST:]), entries, levels or {}, head=head and f"{head} (more)", columns=3)


def _draw_panels(
    path: Path,
    panels: Mapping[str, Mapping[str, str]],
    entries: Sequence[Mapping[str, Any]],
    levels: Mapping[str, Mapping[str, float]],
    *,
    head: str,
    columns: int,
) -> None:
    """Write a plot for each title, of the measures by their label, below the headline."""
    rows, free = max(1, -(-len(panels) // columns)), HEAD if head else 0.0
    figure = Figure(figsize=(12.6, 12.6 / columns * 2 / 3 * rows + free))
    axes = figure.subplots(rows, columns, squeeze=False)
    last = max([1, *(entry["step"] for entry in entries)])
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for label, name in lines.items():
            points = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
            if points:
                dots = "." if len(points) < 50 else ""
                axis.plot(*zip(*points, strict=True), linewidth=1.2, marker=dots, label=label)
            for number, (level, value) in enumerate(levels.get(name, {}).items()):
                axis.axhline(value, color=VIEW_COLORS[1 + number], linewidth=1.0, linestyle="--", label=level)
            if name in FROM_ZERO:
                axis.set_ylim(0.0, max(FROM_ZERO[name], 1.05 * max((value for _, value in points), default=0.0)))
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, 1.02 * last)  # the same in all, so that steps stand below each other
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.ticklabel_format(axis="y", useOffset=False)  # the offset would be written over the title
        axis.grid(alpha=0.3)
        if len(axis.get_lines()) > 1:
            axis.legend(fontsize=8, framealpha=0.5, ncols=2)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    top = 1.0 - free / figure.get_figheight()
    figure.tight_layout(rect=(0.0, 0.0, 1.0, top))
    if head:
        ink = ALARM if COLLAPSED in head else "black"
        figure.text(0.5, (1.0 + top) / 2, head, ha="center", va="center", fontsize=13, color=ink, wrap=True)
    figure.savefig(path, dpi=110)
