"""Features of several backbones in one plane (paper, §IV-E.3 and Fig. 5)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE

from tpssl_hf.errors import InputError

MOST_NAMED = 20  # classes that a legend can name and colors can tell apart


def joint_tsne(features: Sequence[np.ndarray], *, perplexity: float, seed: int) -> list[np.ndarray]:
    """Stack features (N, D) of several backbones by rows, run one t-SNE on all of them, and take them apart again.

    Args:
        features: of the same images, one matrix for each backbone.
        perplexity: about how many neighbors count.
        seed: of the optimization, which starts from the principal components.

    Returns:
        (N, 2) float32 for each backbone.

    Raises:
        InputError: for backbones of different width, or a perplexity that is not below the number of rows.
    """
    widths = [matrix.shape[1] for matrix in features]
    if len(set(widths)) > 1:
        raise InputError(
            f"the features have {', '.join(map(str, widths))} dimensions; one t-SNE needs the same for all, "
            "so compare backbones of one architecture."
        )
    stacked = np.concatenate(features)
    if not 0 < perplexity < len(stacked):
        raise InputError(f"perplexity {perplexity:g}: give a number above 0 and below the {len(stacked)} features.")
    embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(stacked)
    return np.split(embedded.astype(np.float32), len(features))


def draw_tsne(
    path: Path,
    embedded: Sequence[np.ndarray],
    titles: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Write one panel for each backbone, all at the same scale; the color of a dot is its class.

    A joint t-SNE puts the images of each backbone in a region of their own; each panel shows that region.

    Args:
        path: PNG file to write.
        embedded: (N, 2) for each backbone.
        titles: of the panels.
        labels: (N,) int64 class numbers, -1 for none, which is gray.
        class_names: in the order of the class numbers; above twenty, colors repeat and the legend is left out.
    """
    figure = Figure(figsize=(4.4 * len(embedded) + 1.3, 4.9))
    axes = figure.subplots(1, len(embedded), squeeze=False)[0]
    half = 0.53 * max(float(np.ptp(points, axis=0).max()) for points in embedded)
    palette = colormaps["tab10" if len(class_names) <= 10 else "tab20"]
    colors = [palette(label % palette.N) if label >= 0 else "#bbbbbb" for label in labels.tolist()]
    for axis, points, title in zip(axes, embedded, titles, strict=True):
        axis.scatter(points[:, 0], points[:, 1], c=colors, s=13, linewidths=0)
        axis.set_title(title, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        axis.set_xlim(middle[0] - half, middle[0] + half)
        axis.set_ylim(middle[1] - half, middle[1] + half)
        axis.set_aspect("equal", adjustable="box")
    right = 1.0
    if 0 < len(class_names) <= MOST_NAMED:
        handles = [
            Line2D([], [], marker="o", linestyle="", markersize=5, color=palette(n), label=name)
            for n, name in enumerate(class_names)
        ]
        right = 1.0 - 1.3 / figure.get_figwidth()
        figure.legend(handles=handles, loc="center right", fontsize=9, frameon=False)
    figure.tight_layout(rect=(0.0, 0.0, right, 1.0))
    figure.savefig(path, dpi=120)
