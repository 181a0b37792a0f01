"""Figures over several models or runs: steps of target pretraining, convergence, drift by stage (Fig. 3, 4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tpssl_hf.analysis.finished_runs import Curve

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito, 2008


def draw_steps(
    path: Path,
    series: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    title: str,
    untouched: Mapping[str, float] | None = None,
) -> None:
    """Write accuracy over steps of target pretraining, one line per series with its standard deviation.

    Args:
        path: PNG file to write.
        series: name -> step -> accuracies in [0, 1].
        title: of the figure.
        untouched: name -> accuracy of Φ_pre with the BatchNorm statistics it came with, drawn as a cross at step 0.
    """
    figure = Figure(figsize=(6.4, 4.2))
    axis = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        values = [100 * mean(each) for each in points.values()]
        spread = [100 * stdev(each) if len(each) > 1 else 0.0 for each in points.values()]
        axis.errorbar(list(points), values, yerr=spread, color=color, marker="o", markersize=4, capsize=3, label=name)
        if untouched and name in untouched:
            axis.plot([0], [100 * untouched[name]], marker="x", color=color, linestyle="")
    if untouched:
        axis.plot([], [], marker="x", color="#555555", linestyle="", label="Φ_pre as it came")
    _finish(axis, title, "steps of target pretraining")
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw_convergence(path: Path, curves: Sequence[Curve]) -> None:
    """Write test accuracy over epochs, a panel for each data set and number of labels.

    Label seeds of one run share a color, thin, with their mean thick where their epochs agree. Runs that start
    from the ``model`` folder of another run are dashed, as in the paper.

    Args:
        path: PNG file to write.
        curves: at least one.
    """
    groups = list(dict.fromkeys(curve.group for curve in curves))
    figure = Figure(figsize=(5.2 * len(groups), 4.2))
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for axis, group in zip(axes, groups, strict=True):
        own = [curve for curve in curves if curve.group == group]
        for number, folder in enumerate(dict.fromkeys(curve.run for curve in own)):
            draws = [curve for curve in own if curve.run == folder]
            color, style = COLORS[number % len(COLORS)], "--" if draws[0].adapted else "-"
            together = len(draws) > 1 and all(draw.epochs == draws[0].epochs for draw in draws)
            for position, draw in enumerate(draws):
                label = draw.title if not together and position == 0 else None
                thin = {"linewidth": 0.8, "alpha": 0.45} if together else {"linewidth": 1.6}
                axis.plot(draw.epochs, _percent(draw.accuracies), style, color=color, label=label, **thin)
            if together:
                middle = np.mean([draw.accuracies for draw in draws], axis=0)
                label = f"{draws[0].title}, mean of {len(draws)}"
                axis.plot(draws[0].epochs, _percent(middle), style, color=color, label=label, linewidth=2.0)
        dashed = any(curve.adapted for curve in own)
        _finish(axis, group, "epoch" + " (dashed: starts from the weights of another run)" * dashed)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy on the test split (EMA), %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw_stages(
    path: Path, distances: Mapping[str, Mapping[str, float]], alike: Mapping[str, Mapping[str, float]]
) -> None:
    """Write bars for each stage: how far its weights have moved, and how alike its features still are.

    Args:
        path: PNG file to write.
        distances: model -> stage -> ‖Φ − Φ_pre‖ / ‖Φ_pre‖.
        alike: model -> stage -> linear CKA in [0, 1].
    """
    figure = Figure(figsize=(11.0, 3.8))
    panels = figure.subplots(1, 2)
    titles = ("moved weights: ‖Φ − Φ_pre‖ / ‖Φ_pre‖", "alike features: linear CKA with Φ_pre")
    for axis, values, title in zip(panels, (distances, alike), titles, strict=True):
        stages = list(dict.fromkeys(stage for by_stage in values.values() for stage in by_stage))
        width = 0.8 / len(values)
        for number, (name, by_stage) in enumerate(values.items()):
            positions = np.arange(len(stages)) - 0.4 + width * (number + 0.5)
            heights = [by_stage.get(stage, 0.0) for stage in stages]
            axis.bar(positions, heights, width * 0.95, label=name, color=COLORS[number % len(COLORS)])
        axis.set_xticks(range(len(stages)), stages, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, axis="y")
        axis.set_axisbelow(True)
    panels[1].set_ylim(0.0, 1.0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0.0, 0.07, 1.0, 1.0))
    figure.savefig(path, dpi=120)


def _percent(values: Sequence[float] | np.ndarray) -> np.ndarray:
    percent: np.ndarray = 100.0 * np.asarray(values)
    return percent


def _finish(axis: Axes, title: str, x_label: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel("accuracy, %", fontsize=9)
    axis.grid(alpha=0.3)
