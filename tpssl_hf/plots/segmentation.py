"""The image of what a segmenter finds: image, truth, prediction, and where the two differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tpssl_hf.data.masks import IGNORED, Color

WRONG = (255, 120, 0)
UNDECIDED = (255, 255, 255)  # ignored pixels of the truth
LEGEND_COLUMNS = 6


def draw_predictions(
    path: Path,
    rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    palette: Sequence[Color],
) -> None:
    """Write one row per image, and below them the colors of the classes that occur.

    Args:
        path: PNG file to write.
        rows: pixels (H, W, 3) uint8, true classes (H, W), 255 where ignored, and predicted classes (H, W).
        class_names: names in the order of the class numbers.
        palette: RGB color of each class, 0..255.
    """
    table = np.full((IGNORED + 1, 3), UNDECIDED, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    seen = sorted({int(number) for _, truth, found in rows for number in np.union1d(truth, found)} - {IGNORED})
    patches = [_patch(class_names[number], palette[number]) for number in seen]
    patches.append(_patch("wrong", WRONG))
    if any((truth == IGNORED).any() for _, truth, _ in rows):
        patches.append(_patch("does not count", UNDECIDED))
    height, width = np.mean([pixels.shape[:2] for pixels, _, _ in rows], axis=0)
    legend = 0.3 + 0.22 * -(-len(patches) // LEGEND_COLUMNS)
    figure = Figure(figsize=(10.0, 0.4 + len(rows) * (2.4 * height / width + 0.08) + legend))
    axes = figure.subplots(len(rows), 4, squeeze=False)
    for line, (pixels, truth, found) in zip(axes, rows, strict=True):
        for axis, shown in zip(
            line, (pixels, table[truth], table[found], differences(pixels, truth, found)), strict=True
        ):
            axis.imshow(shown, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], ("image", "truth", "prediction", "where they differ"), strict=True):
        axis.set_title(title, fontsize=10)
    foot = legend / figure.get_figheight()
    figure.tight_layout(pad=0.4, rect=(0.0, foot, 1.0, 1.0))
    figure.legend(handles=patches, loc="lower center", ncols=LEGEND_COLUMNS, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def differences(pixels: np.ndarray, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the image (H, W, 3) uint8 in pale gray, with the wrong pixels that count in orange."""
    gray = pixels.mean(axis=2, keepdims=True) * 0.5 + 127
    wrong = (truth != found) & (truth != IGNORED)
    shown: np.ndarray = np.where(wrong[..., None], WRONG, gray).astype(np.uint8)
    return shown


def _patch(name: str, color: Color) -> Patch:
    red, green, blue = (value / 255 for value in color)
    return Patch(facecolor=(red, green, blue), edgecolor="black", linewidth=0.5, label=name)
