"""A verdict in words: its sentence, its table, and how sure the order of several adapted weights is."""

import numpy as np

from tpssl_hf.verdicts.decision import BASE, NOT_ADAPTED, STATISTICS, TEACHER, Decision, Row, by_draw
from tpssl_hf.verdicts.paired_bootstrap import Difference


def sentence(decision: Decision, *, labels: int, shared: bool) -> str:
    """Say what to do and by which numbers, and whether the teacher of a distillation would be better still.

    Args:
        decision: what was found.
        labels: number of labels of each label seed.
        shared: whether all draws had the same queries, see :class:`tpssl_hf.verdicts.probe_set.ProbeSet`.
    """
    if not decision.comparisons:
        return _label_free_sentence(decision)
    return f"{_advice(decision, labels, shared)}{_teacher_sentence(decision)}"


def _teacher_sentence(decision: Decision) -> str:
    """Say that the frozen teacher is better than the best adapted weights, if it is beyond doubt."""
    best = decision.best.name
    found = decision.between(TEACHER, best)
    if found is None or found.probe.sign <= 0:
        return ""
    teacher = next(row for row in decision.rows if row.name == TEACHER)
    return (
        f" The teacher itself, frozen, gets {_percent(teacher)}, {_signed(found.probe)} against {best}: use it where "
        "its size is no matter."
    )


def _advice(decision: Decision, labels: int, shared: bool) -> str:
    """Say what to do with base and adapted weights."""
    name = decision.best.name
    gain, beyond = decision.between(name, BASE), decision.between(name, STATISTICS)
    assert gain is not None
    reached = f"with {labels} labels a linear probe on {name} gets {_percent(decision.best)} of images right"
    against_base = f"{_signed(gain.probe)} against the base"
    against_statistics = (
        f"; {_signed(beyond.probe)} against the base with nothing but re-estimated BatchNorm statistics"
        if beyond
        else ""
    )
    if decision.recommendation == "adapted":
        return f"Use the adapted weights ({name}): {reached}, {against_base}{against_statistics}."
    if decision.recommendation == "base":
        return f"Keep the base: {reached}, {against_base}{against_statistics}."
    if decision.recommendation == "statistics":
        assert beyond is not None
        less = "gives more" if beyond.probe.sign < 0 else "gives as much as far as can be seen"
        return (
            f"Re-estimate BatchNorm statistics and keep the base's weights: {reached}, {against_base}, but that "
            f"alone {less}: {name} is {_signed(beyond.probe)} against it."
            f"{_required_by(decision, shared) if beyond.probe.sign == 0 else ''}"
        )
    if decision.reason == "contradiction":
        other = next(c for c in (gain, beyond) if c is not None and c.probe.sign * c.knn.sign < 0)
        return (
            f"Unclear: linear probe and nearest neighbors contradict each other; with {labels} labels {name} is "
            f"{_signed(other.probe)} against the {other.against} by the probe and {_signed(other.knn)} by the "
            "neighbors. Look at what you will do with the features: finetune both, or take the measure that is like "
            "your use."
        )
    if decision.reason == "control":
        return f"Unclear: {reached}, {against_base}{against_statistics}.{_required_by(decision, shared)}"
    if gain.probe.mean == gain.probe.low == gain.probe.high == 0:
        return f"Unclear: with {labels} labels {name} and the base give the same predictions, so either will do."
    return f"Unclear: {reached}, {against_base}{against_statistics}.{_required_by(decision, shared)}"


def _required_by(decision: Decision, shared: bool) -> str:
    """Say how many label seeds or labeled images would settle the open difference."""
    found = decision.required
    if found is None:
        return (
            " A difference so small would not be settled by anything practical (100 label seeds, 100,000 labeled "
            "images to predict), so take whichever is at hand."
        )
    first = decision.comparisons[0].probe
    if not shared:
        return f" If it is as large as it looks, about {_round(found.questions):,} labeled images would settle it."
    if found.questions == first.questions:
        return f" If it is as large as it looks, --draws {found.draws} would settle it, with the labels there are."
    more = f" and --draws {found.draws}" if found.draws > len(first.draws) else ""
    return (
        f" If it is as large as it looks, about {_round(found.questions):,} labeled images to predict instead of "
        f"{first.questions:,}{more} would settle it (--queries, --images)."
    )


def _round(count: int) -> int:
    """Round up to two digits: no more of it is known."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _label_free_sentence(decision: Decision) -> str:
    best, base = decision.best, decision.rows[0].name
    control = next((row for row in decision.rows if row.name == STATISTICS), decision.rows[0])
    if decision.reason == "collapsed":
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


def table(decision: Decision) -> str:
    """Return the rows as a markdown table that is aligned for reading as it is; percentages and points."""
    if decision.comparisons:
        head = ["weights", "features", "linear probe %", "kNN %", "clusters %"]
        head += ["probe − base", "probe − statistics only"] if len(decision.comparisons) > 1 else ["probe − base"]
        lines = [head, *(_line(decision, row, len(head)) for row in decision.rows)]
    else:
        lines = [["weights", "features", "effective rank", "std", "uniformity", "CKA with base"]]
        for row in decision.rows:
            found = row.label_free
            shown = {"effective_rank": 1, "embedding_std": 3, "uniformity": 2, "cka_base": 2}
            numbers = [f"{found[name]:.{digits}f}" if name in found else "" for name, digits in shown.items()]
            lines.append([row.name, str(row.width), *(number.replace("-", "−") for number in numbers)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])])


def _line(decision: Decision, row: Row, length: int) -> list[str]:
    cells = [row.name, str(row.width)]
    for values in (by_draw(row.probe), by_draw(row.knn), np.array(row.clustering)):
        cells.append(f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}")
    for against in (BASE, STATISTICS):
        found = decision.between(row.name, against)
        shown = found and f"{_number(found.probe.mean)} [{_number(found.probe.low)}, {_number(found.probe.high)}]"
        cells.append(shown or "")
    return cells[:length]


def ranking(decision: Decision) -> str:
    """Say how sure the first place among several adapted weights is; empty for one."""
    adapted = [row for row in decision.rows if row.name not in NOT_ADAPTED]
    last = decision.between(adapted[0].name, adapted[1].name) if len(adapted) > 1 else None
    if last is None:
        return ""
    sure = "" if last.probe.sign > 0 else ", so their order is not settled"
    ahead = f"{_signed(last.probe)} against {last.against}, which is next"
    return f"{last.name} is first of {len(adapted)}, {ahead}{sure}."
