"""A verdict for people: its sentence, its table, its image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tpssl_hf.verdict.decision import BASE, STATISTICS, Comparison, Row, Verdict, by_draw
from tpssl_hf.verdict.paired_bootstrap import Difference

PROBE_COLOR, KNN_COLOR = "#0072b2", "#e69f00"  # told apart by most color-blind people (Okabe and Ito, 2008)


def sentence(verdict: Verdict, *, labels: int, shared: bool) -> str:
    """Say in plain words what to do and by which numbers.

    Args:
        verdict: what was found.
        labels: of each draw.
        shared: whether all draws had the same questions, see :class:`tpssl_hf.verdict.inputs.Questions`.
    """
    if not verdict.comparisons:
        return _label_free_sentence(verdict)
    name = verdict.best.name
    gain, beyond = verdict.between(name, BASE), verdict.between(name, STATISTICS)
    assert gain is not None
    reached = f"with {labels} labels a linear probe on {name} gets {_percent(verdict.best)} of images right"
    against_base = f"{_signed(gain.probe)} against the base"
    against_statistics = (
        f"; {_signed(beyond.probe)} against the base with nothing but BatchNorm statistics measured anew"
        if beyond
        else ""
    )
    if verdict.recommendation == "adapted":
        return f"Use the adapted weights ({name}): {reached}, {against_base}{against_statistics}."
    if verdict.recommendation == "base":
        return f"Keep the base: {reached}, {against_base}{against_statistics}."
    if verdict.recommendation == "statistics":
        assert beyond is not None
        less = "gives more" if beyond.probe.sign < 0 else "gives as much as far as can be seen"
        return (
            f"Measure BatchNorm statistics anew and keep the base's weights: {reached}, {against_base}, but measuring "
            f"statistics anew alone {less}: {name} is {_signed(beyond.probe)} against that."
            f"{_settled_by(verdict, shared) if beyond.probe.sign == 0 else ''}"
        )
    if verdict.reason == "contradiction":
        other = next(c for c in (gain, beyond) if c is not None and c.probe.sign * c.knn.sign < 0)
        return (
            f"Unclear: linear probe and nearest neighbors contradict each other; with {labels} labels {name} is "
            f"{_signed(other.probe)} against the {other.against} by the probe and {_signed(other.knn)} by the "
            "neighbors. Look at what you will do with the features: finetune both, or take the measure that is like "
            "your use."
        )
    if verdict.reason == "control":
        return f"Unclear: {reached}, {against_base}{against_statistics}.{_settled_by(verdict, shared)}"
    if gain.probe.mean == gain.probe.low == gain.probe.high == 0:
        return f"Unclear: with {labels} labels {name} and the base give the same answers, so either will do."
    return f"Unclear: {reached}, {against_base}{against_statistics}.{_settled_by(verdict, shared)}"


def _settled_by(verdict: Verdict, shared: bool) -> str:
    """Say what would settle the open difference."""
    found = verdict.settlement
    if found is None:
        return (
            " A difference so small would not be settled by anything practical (100 draws, 100,000 labeled images "
            "to ask about), so take whichever is at hand."
        )
    first = verdict.comparisons[0].probe
    if not shared:
        return f" If it is as large as it looks, about {_round(found.questions):,} labeled images would settle it."
    if found.questions == first.questions:
        return f" If it is as large as it looks, --draws {found.draws} would settle it, with the labels there are."
    more = f" and --draws {found.draws}" if found.draws > len(first.draws) else ""
    return (
        f" If it is as large as it looks, about {_round(found.questions):,} labeled images to ask about instead of "
        f"{first.questions:,}{more} would settle it (--queries, --images)."
    )


def _round(count: int) -> int:
    """Round up to two digits: no more of it is known."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _label_free_sentence(verdict: Verdict) -> str:
    best, base = verdict.best, verdict.rows[0].name
    control = next((row for row in verdict.rows if row.name == STATISTICS), verdict.rows[0])
    if verdict.reason == "collapsed":
        after, before = (row.label_free["effective_rank"] for row in (best, control))
        return (
            f"Keep the {base}: the adapted features have collapsed (effective rank {after:.1f}, {before:.1f} before), "
            "which can be told without labels."
        )
    lean = []
    for name, better in (("effective_rank", 1), ("uniformity", -1)):
        lean.append(float(np.sign(best.label_free[name] - control.label_free[name])) * better)
    direction = (
        f"lean to {best.name}" if min(lean) > 0 else f"lean to the {control.name}" if max(lean) < 0 else "do not agree"
    )
    measures = ", ".join(
        f"{title} {control.label_free[key]:.{digits}f} before and {best.label_free[key]:.{digits}f} after"
        for title, key, digits in (("effective rank", "effective_rank", 0), ("uniformity", "uniformity", 2))
    ).replace("-", "−")
    return (
        f"Not sure: there are no labels, and the measures that need none {direction} ({measures}; a higher rank and "
        "a lower uniformity are better). They tell healthy features from collapsed ones and are a weak basis for "
        "more: label some 40 images, the same number of each class, and ask again with --labels FILE.csv."
    )


def _percent(row: Row) -> str:
    return f"{100 * float(by_draw(row.probe).mean()):.1f} %"


def _number(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def _signed(difference: Difference) -> str:
    return (
        f"{_number(difference.mean)} points ({100 * difference.level:.3g} % interval {_number(difference.low)} to "
        f"{_number(difference.high)})"
    )


def table(verdict: Verdict) -> str:
    """Return the rows as a markdown table that is aligned for reading as it is; percentages and points."""
    if verdict.comparisons:
        head = ["weights", "features", "linear probe %", "kNN %", "clusters %"]
        head += ["probe − base", "probe − statistics only"] if len(verdict.comparisons) > 1 else ["probe − base"]
        lines = [head, *(_line(verdict, row, len(head)) for row in verdict.rows)]
    else:
        lines = [["weights", "features", "effective rank", "std", "uniformity", "CKA with base"]]
        for row in verdict.rows:
            found = row.label_free
            shown = {"effective_rank": 1, "embedding_std": 3, "uniformity": 2, "cka_base": 2}
            numbers = [f"{found[name]:.{digits}f}" if name in found else "" for name, digits in shown.items()]
            lines.append([row.name, str(row.width), *(number.replace("-", "−") for number in numbers)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])])


def _line(verdict: Verdict, row: Row, length: int) -> list[str]:
    cells = [row.name, str(row.width)]
    for values in (by_draw(row.probe), by_draw(row.knn), np.array(row.clustering)):
        cells.append(f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}")
    for against in (BASE, STATISTICS):
        found = verdict.between(row.name, against)
        shown = found and f"{_number(found.probe.mean)} [{_number(found.probe.low)}, {_number(found.probe.high)}]"
        cells.append(shown or "")
    return cells[:length]


def ranking(verdict: Verdict) -> str:
    """Say how sure the first place among several adapted weights is; empty for one."""
    adapted = [row for row in verdict.rows if row.name not in (BASE, STATISTICS)]
    if len(adapted) < 2 or not verdict.comparisons:
        return ""
    last: Comparison = verdict.comparisons[-1]
    sure = "" if last.probe.sign > 0 else ", so their order is not settled"
    ahead = f"{_signed(last.probe)} against {last.against}, which is next"
    return f"{last.name} is first of {len(adapted)}, {ahead}{sure}."


def draw_verdict(path: Path, verdict: Verdict, *, labels: int, title: str) -> None:
    """Write the image: every draw of every row, and the differences with their intervals.

    Args:
        path: PNG file to write.
        verdict: one that had labels.
        labels: of each draw.
        title: what was compared on what.
    """
    rows, pairs = verdict.rows, _shown(verdict)
    height = 1.9 + 0.55 * max(len(rows), len(pairs))
    figure = Figure(figsize=(12.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    for offset, color, marker, name in _measures():
        for place, row in enumerate(rows):
            values = 100 * by_draw(getattr(row, name))
            heights = place + offset + np.linspace(-0.09, 0.09, len(values))
            left.plot(values, heights, marker, color=color, alpha=0.45, markersize=4, linestyle="none")
            left.plot([values.mean()] * 2, [place + offset - 0.16, place + offset + 0.16], color=color, linewidth=2.4)
        for place, pair in enumerate(pairs):
            found: Difference = getattr(pair, name)
            right.plot([100 * found.low, 100 * found.high], [place + offset] * 2, color=color, linewidth=2.4)
            right.plot(100 * found.mean, place + offset, marker, color=color, markersize=7, markeredgecolor="white")
    right.axvline(0, color="black", linewidth=1)
    _finish(left, [row.name for row in rows], f"right answers after {labels} labels, %", "each draw, and the mean")
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


def _shown(verdict: Verdict) -> list[Comparison]:
    """Comparisons with the controls, in the order of the rows; that of the controls themselves first."""
    against = [entry for entry in verdict.comparisons if entry.against in (BASE, STATISTICS)]
    order = [row.name for row in verdict.rows]
    return sorted(against, key=lambda entry: order.index(entry.name))


def _finish(axis: Axes, names: Sequence[str], label: str, title: str) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label, fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
