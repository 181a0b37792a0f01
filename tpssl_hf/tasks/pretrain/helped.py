"""Did a target pretraining help? What its own probes say, on the same queries before and after."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from tpssl_hf.evaluation.probes import DRAWS

LEVEL = 0.95
WORDS = {
    "few_label_accuracy": "probe with 4 labels a class",
    "knn_accuracy": "kNN accuracy",
    "linear_probe_accuracy": "linear probe",
}
Right = Mapping[str, Sequence[int]]  # probe -> 1 for each question answered rightly, else 0


def accuracies(right: Right) -> dict[str, float]:
    """Return the accuracy of each probe."""
    return {name: sum(answers) / len(answers) for name, answers in right.items()}


def difference(before: Sequence[int], after: Sequence[int], draws: int = 1) -> dict[str, float]:
    """Return ``mean`` of after minus before with ``low`` and ``high`` of its interval, as shares, and ``questions``.

    The answers are to the same questions, so only those that changed count; half a change is added to each of the
    four kinds (Agresti & Min, 2005), or a handful of questions would be sure of themselves.

    Args:
        before: 1 for each right answer, else 0; for each draw of labels, all questions in the same order.
        after: the same.
        draws: how often each question was asked; its answers go together, so it counts once.
    """
    one, other = (np.array(right, float).reshape(draws, -1).mean(axis=0) for right in (before, after))
    changes, count = other - one, len(one)
    middle = float(changes.sum()) / (count + 2)
    spread = (float((changes**2).sum()) + 1) / (count + 2) - middle**2
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(max(0.0, spread) / (count + 2))
    return {"mean": float(changes.mean()), "low": middle - half, "high": middle + half, "questions": count}


def verdict(before: Right, statistics_only: Right, after: Right) -> dict[str, Any]:
    """Judge the saved backbone against Φ_pre.

    Returns:
        ``verdict``: worse, if any probe's interval lies below 0; better, if one lies above and none below; no
        difference; or unknown, without labels. ``probes``: the differences by probe. ``statistics_only``: the same of
        Φ_pre with re-estimated BatchNorm statistics and nothing else, which tells what made the difference.
    """
    draws = {name: DRAWS if name == "few_label_accuracy" else 1 for name in before}
    found = {name: difference(before[name], after[name], draws[name]) for name in before}
    alone = {name: difference(before[name], statistics_only[name], draws[name]) for name in before}
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


def first_line(results: Mapping[str, Any]) -> str:
    """Say what ``model/`` holds and what it is worth: the first line of the summary and of the card.

    Args:
        results: what ``results.json`` holds.
    """
    saved = results.get("saved") or {"candidate": "last", "gain": None}  # not written before labels could choose
    candidate, gain = saved["candidate"], saved["gain"]
    if saved.get("by") == "crops" and candidate != "last":
        what = "model/ holds the start" if candidate == "start" else f"model/ holds the snapshot of {candidate}"
        return (
            "What training ended with knows images less well again in other crops than the weights it started from, "
            f"or by features of fewer directions, so it is not to be trusted: {what}, model_last/ the last one. "
            f"{sentence(results['verdict'])}"
        )
    if candidate == "start":
        return (
            "Nothing adapted is better than the weights it started from beyond doubt, by labels of training images: "
            "model/ holds the start, model_last/ what training ended with."
        )
    if gain is None:
        return sentence(results["verdict"])
    others = {"bn_only": "the start with re-estimated BatchNorm statistics", "last": "the last checkpoint"}
    return (
        f"{sentence(results['verdict'])} It is {others.get(candidate, f'the snapshot of {candidate}')}, chosen by "
        f"{gain['queries']:.0f} other images, with all labels known and with 4 a class: {in_points(gain)}."
    )


def _word(probes: Mapping[str, Mapping[str, float]]) -> str:
    if not probes:
        return "unknown"
    if any(d["high"] < 0 for d in probes.values()):
        return "worse"
    return "better" if any(d["low"] > 0 for d in probes.values()) else "no difference"
