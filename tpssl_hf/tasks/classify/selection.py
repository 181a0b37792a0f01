"""Do no harm: whether what was finetuned is deployed or a baseline, decided by training labels alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np

from tpssl_hf.data.multilabel_splits import deal, fewest
from tpssl_hf.evaluation.multilabel import difference_of_precision, mean_average_precision
from tpssl_hf.tasks.pretrain.helped import difference, in_points

FINETUNED, PROBE, SPREADING = "finetuned", "frozen_probe", "label_spreading"
WORDS = {PROBE: "the frozen probe", SPREADING: "label spreading"}
MOST_FOLDS, LEAST_FOLDS = 4, 2
MANY_LABELS = 25  # of each class, from which on two folds of a quarter of the steps tell enough
Right = Mapping[str, Sequence[int]]  # candidate -> 1 for each training label it found while that was held out, else 0


@dataclass(frozen=True)
class Folds:
    """Which labels are held out together, and how long each finetuning without them is.

    Attributes:
        numbers: (N,) int64, the fold of each label, from 0.
        count: how many folds.
        steps: of each.
    """

    numbers: np.ndarray
    count: int
    steps: int


def plan_folds(labels: np.ndarray, max_steps: int, seed: int) -> Folds | None:
    """Split labels (N,), or (N, K) of several an image, into folds that hold each class in proportion.

    There are four where each class has four labels, else two, which cost another run of ``max_steps`` together; from
    25 labels a class on there are two, of a quarter of the steps each.

    Returns:
        The folds; None where a class has a single label, so that nothing can be held out. Of several labels an image,
        each is counted by the rarer of its two answers.
    """
    several = labels.ndim == 2
    least = int(fewest(labels).min() if several else np.unique(labels, return_counts=True)[1].min())
    if least < LEAST_FOLDS:
        return None
    count = MOST_FOLDS if MOST_FOLDS <= least < MANY_LABELS else LEAST_FOLDS
    parts = MOST_FOLDS if least >= MANY_LABELS else count
    steps = min(max_steps, max(1, max_steps // parts))
    if several:
        sizes = np.bincount(np.arange(len(labels)) % count).tolist()
        return Folds(deal(labels, sizes, seed), count, steps)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, and dealt out one after the other
    numbers = np.zeros(len(labels), dtype=np.int64)
    numbers[order] = np.arange(len(labels)) % count
    return Folds(numbers, count, steps)


def choose(right: Right, *, usable: bool) -> str:
    """Return the candidate to deploy: what was finetuned, unless a baseline is better beyond one standard error.

    The error is that of the paired difference over the labels (the one-standard-error rule).

    Args:
        right: answers to the same labels of all candidates; empty where nothing could be held out.
        usable: whether what was finetuned answers finite numbers and more than one class; if not, the better
            baseline is deployed, the frozen probe where that is not known.
    """
    if not right:
        return FINETUNED if usable else PROBE
    baselines = [name for name in right if name != FINETUNED]
    if usable:
        baselines = [name for name in baselines if _clearly_better(right[FINETUNED], right[name])]
    return max(baselines, key=lambda name: sum(right[name]), default=FINETUNED)


def _clearly_better(before: Sequence[int], after: Sequence[int]) -> bool:
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return mean(changes) > stdev(changes) / math.sqrt(len(changes))


def compare_precision(answers: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the mAP of each candidate, and the difference of each baseline to what was finetuned.

    Args:
        answers: (N, K) scores of all candidates; empty where nothing could be held out.
        labels: (N, K).
    """
    found: dict[str, dict[str, Any]] = {}
    for name, scores in answers.items():
        found[name] = {"mean_average_precision": mean_average_precision(scores, labels)}
        if name != FINETUNED:
            found[name]["minus_finetuned"] = difference_of_precision(answers[FINETUNED], scores, labels)
    return found


def choose_by_precision(found: Mapping[str, Mapping[str, Any]], *, usable: bool) -> str:
    """Return the candidate to deploy as :func:`choose` does, of what :func:`compare_precision` found."""
    if not found or not usable:
        return FINETUNED if usable else PROBE
    gain = found[PROBE]["minus_finetuned"]
    return PROBE if gain["mean"] > gain["standard_error"] else FINETUNED


def cross_validated(right: Right) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each candidate, and the difference of each baseline to what was finetuned."""
    found: dict[str, dict[str, Any]] = {}
    for name, answers in right.items():
        found[name] = {"accuracy": mean(answers)}
        if name != FINETUNED:
            found[name]["minus_finetuned"] = difference(right[FINETUNED], answers)
    return found


def saved_sentence(saved: Mapping[str, Any], method: str, subject: str = "model/") -> str:
    """Say what was deployed and by how much it is better, of the entry ``saved`` of ``results.json``."""
    candidate, found, labels = saved["candidate"], saved["cross_validated"], saved["labels"]
    what = f"{subject} is what {method} made"
    if candidate != FINETUNED:
        what = f"{subject} is {WORDS[candidate]} of the start, not what {method} made"
    if not saved["usable"]:
        what += f", which answers a single class, or nothing finite, for all {labels} labeled images"
    if not found:
        few = "label is on one image, or all but one," if saved.get("several_labels") else "class has one label"
        return f"{what}; some {few} only, so nothing could be compared by cross-validation."
    several = "mean_average_precision" in found[FINETUNED]
    measure = "mean_average_precision" if several else "accuracy"
    accuracies = shares({name: entry[measure] for name, entry in found.items()}, method)
    gaps = "; ".join(
        f"{WORDS[name]} − {method}: {in_points(entry['minus_finetuned'])}"
        for name, entry in found.items()
        if name != FINETUNED
    )
    on = f"{labels} labeled images, mAP" if several else f"{labels} training labels"
    return f"{what}. Cross-validated on {on}: {accuracies}. {gaps}."


def shares(accuracies: Mapping[str, float], method: str) -> str:
    """Write the accuracies of candidates in a line."""
    return ", ".join(f"{WORDS.get(name, method)} {100 * value:.1f} %" for name, value in accuracies.items())
