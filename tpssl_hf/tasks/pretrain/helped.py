"""Did a target pretraining help? What its own probes say, on the same queries before and after."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

LEVEL = 0.95
WORDS = {"knn_accuracy": "kNN accuracy", "linear_probe_accuracy": "linear probe"}
Right = Mapping[str, Sequence[int]]  # probe -> 1 for each question answered rightly, else 0


def accuracies(right: Right) -> dict[str, float]:
    """Return the accuracy of each probe."""
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def difference(before: Sequence[int], after: Sequence[int]) -> dict[str, float]:
    """Return ``mean`` of after minus before with ``low`` and ``high`` of its interval, as shares, and ``questions``.

    The answers are to the same questions, so only those that changed count; half a change is added to each of the
    four kinds (Agresti & Min, 2005), or a handful of questions would be sure of themselves.
    """
    count = len(before)
    gained = sum(b > a for a, b in zip(before, after, strict=True))
    lost = sum(a > b for a, b in zip(before, after, strict=True))
    middle = (gained - lost) / (count + 2)
    error = math.sqrt(max(0.0, (gained + lost + 1) / (count + 2) - middle**2) / (count + 2))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return {"mean": (gained - lost) / count, "low": middle - half, "high": middle + half, "questions": count}


def verdict(before: Right, statistics_only: Right, after: Right) -> dict[str, Any]:
    """Judge the saved backbone against Φ_pre.

    Returns:
        ``verdict``: worse, if any probe's interval lies below 0; better, if one lies above and none below; no
        difference; or unknown, without labels. ``probes``: the differences by probe. ``statistics_only``: the same of
        Φ_pre with re-estimated BatchNorm statistics and nothing else, which tells what made the difference.
    """
    found = {name: difference(before[name], after[name]) for name in before}
    alone = {name: difference(before[name], statistics_only[name]) for name in before}
    return {
        "verdict": _word(found),
        "against": "the weights it started from",
        "level": LEVEL,
        "probes": found,
        "statistics_only": {"verdict": _word(alone), "probes": alone},
    }


def in_points(found: Mapping[str, float]) -> str:
    """Write a difference of shares in points, with its interval."""
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} points ({low:+.1f} to {high:+.1f})".replace("-", "−")


def sentence(judged: Mapping[str, Any]) -> str:
    """Say the verdict, with the differences it rests on; without labels, that nobody knows and how to find out."""
    if judged["verdict"] == "unknown":
        return (
            "Whether adapting helped is not known: there were no labels to measure it by. `tpssl-hf verdict` finds "
            "out with a few of them."
        )
    points = "; ".join(f"{WORDS[name]} {in_points(found)}" for name, found in judged["probes"].items())
    word = {
        "worse": "WORSE than the weights it started from",
        "better": "better than the weights it started from",
        "no difference": "no different from the weights it started from, as far as these probes can tell",
    }[judged["verdict"]]
    alone = (
        " Re-estimated BatchNorm statistics alone make it worse."
        if judged["statistics_only"]["verdict"] == "worse"
        else ""
    )
    return f"The saved backbone is {word}: {points}.{alone}"


def _word(probes: Mapping[str, Mapping[str, float]]) -> str:
    if not probes:
        return "unknown"
    if any(d["high"] < 0 for d in probes.values()):
        return "worse"
    return "better" if any(d["low"] > 0 for d in probes.values()) else "no difference"
