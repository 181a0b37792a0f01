"""A verdict as a figure: every label seed of every row, and the differences with their intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tpssl_hf.verdicts.decision import BASE, STATISTICS, Comparison, Decision, by_draw
from tpssl_hf.verdicts.paired_bootstrap import Difference

PROBE_COLOR, KNN_COLOR = "#0072b2", "#e69f00"  # told apart by most color-blind people (Okabe and Ito, 2008)


def draw_verdict(path: Path, decision: Decision, *, labels: int, title: str) -> None:
    """Write the image: every label seed of every row, and the differences with their intervals.

    Args:
        path: PNG file to write.
        decision: one that was made with labels.
        labels: of each label seed.
        title: what was compared on what.
    """
    rows, pairs = decision.rows, _shown(decision)
    height = 1.9 + 0.55 * max(len(rows), len(pairs))
    figure = Figure(figsize=(12.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    for offset, color, marker, name in _measures():
        for position, row in enumerate(rows):
            values = 100 * by_draw(getattr(row, name))
            heights = position + offset + np.linspace(-0.09, 0.09, len(values))
            left.plot(values, heights, marker, color=color, alpha=0.45, markersize=4, linestyle="none")
            left.plot(
                [values.mean()] * 2, [position + offset - 0.16, position + offset + 0.16], color=color, linewidth=2.4
            )
        for position, pair in enumerate(pairs):
            found: Difference = getattr(pair, name)
            right.plot([100 * found.low, 100 * found.high], [position + offset] * 2, color=color, linewidth=2.4)
            right.plot(100 * found.mean, position + offset, marker, color=color, markersize=7, markeredgecolor="white")
    right.axvline(0, color="black", linewidth=1)
    _finish(
        left, [row.name for row in rows], f"right answers after {labels} labels, %", "each label seed, and the mean"
    )
    level = f"{100 * pairs[0].probe.level:.3g} %"
    _finish(
        right,
        [f"{pair.name}\n− {pair.against}" for pair in pairs],
        "difference, points",
        f"paired differences, {level} intervals",
    )
    for _, color, marker, name in _measures():
        label = {"probe": "linear probe (decides)", "knn": "nearest neighbors"}[name]
        right.plot([], [], marker, color=color, linestyle="-", linewidth=2.4, label=label)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def _measures() -> Sequence[tuple[float, str, str, str]]:
    return (-0.2, PROBE_COLOR, "o", "probe"), (0.2, KNN_COLOR, "s", "knn")


def _shown(decision: Decision) -> list[Comparison]:
    """Comparisons with the controls, in the order of the rows; that of the controls themselves first."""
    against = [entry for entry in decision.comparisons if entry.against in (BASE, STATISTICS)]
    order = [row.name for row in decision.rows]
    return sorted(against, key=lambda entry: order.index(entry.name))


def _finish(axis: Axes, names: Sequence[str], label: str, title: str) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
