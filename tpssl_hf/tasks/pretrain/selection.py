"""Do no harm: which network a target pretraining saves, chosen by labels of training images where there are any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from tpssl_hf.evaluation.probes import ProbeSplit, few_label_answers, knn_answers

START, BN_ONLY, LAST = "start", "bn_only", "last"
BANK_SEEDS = 3  # small banks that a backbone is scored with, beside the whole one
CHOOSING_BANK, CHOOSING_QUERIES = 1600, 400
PER_CLASS = 4  # labels of each class in a small bank
Right = list[int]  # 1 for each query answered rightly, else 0; the same queries for every candidate


def choosing_and_judging(split: ProbeSplit) -> tuple[ProbeSplit, ProbeSplit]:
    """Split the queries: those that choose among candidates, and those that judge what was chosen.

    The best of several is best by luck as well, so whoever chose may not judge. Candidates are many, so that they are
    asked about at most 400 images, with at most 1,600 whose labels are known.
    """
    random = np.random.default_rng(1)
    first, second = np.array_split(random.permutation(len(split.queries)), 2)
    some = np.sort(random.permutation(len(split.bank))[:CHOOSING_BANK])
    asked = np.sort(first[:CHOOSING_QUERIES])
    rest = np.sort(second)
    return (
        ProbeSplit(split.bank[some], split.queries[asked], split.bank_labels[some], split.query_labels[asked]),
        ProbeSplit(split.bank, split.queries[rest], split.bank_labels, split.query_labels[rest]),
    )


def answers_of(features_of: Callable[[np.ndarray], np.ndarray], split: ProbeSplit) -> Right:
    """Return the right answers of a backbone: those of kNN with all labels, then of probes with few of them."""
    bank, queries = features_of(split.bank), features_of(split.queries)
    found = [knn_answers(bank, split.bank_labels, queries)]
    for seed in range(BANK_SEEDS):
        few = few_of_each_class(split.bank_labels, seed)
        found.append(few_label_answers(bank[few], split.bank_labels[few], queries))
    return [int(right) for answers in found for right in answers == split.query_labels]


def few_of_each_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the places of up to four labels of each class, drawn with ``seed``."""
    random = np.random.default_rng(seed)
    places = [random.permutation(np.flatnonzero(labels == number))[:PER_CLASS] for number in np.unique(labels)]
    return np.sort(np.concatenate(places))


@dataclass
class Selection:
    """The best candidate so far, and what all of them got right.

    Attributes:
        start: right answers of Φ_pre; None where there are no labels, so that nothing can be chosen.
        curve: (completed steps, share of right answers) of each snapshot.
        best: name of the best candidate, of all that were considered.
        best_right: its right answers.
        state: its tensors by name, on the CPU; empty for ``start``.
    """

    start: Right | None = None
    curve: list[list[float]] = field(default_factory=list)
    best: str = START
    best_right: Right = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, start: Right) -> None:
        """Take Φ_pre as the best so far."""
        self.start = self.best_right = list(start)

    def consider(self, name: str, network: nn.Module, right: Right, step: int | None = None) -> None:
        """Take a candidate if it gets more right than the best so far."""
        if step is not None:
            self.curve.append([step, sum(right) / len(right)])
        if sum(right) > sum(self.best_right):
            self.best, self.best_right = name, list(right)
            self.state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def chosen(self) -> tuple[str, dict[str, float] | None]:
        """Return the candidate to save, and its difference to Φ_pre.

        It is Φ_pre itself unless the interval of the difference lies above 0. Without labels it is the last one.
        """
        if self.start is None:
            return LAST, None
        if self.best == START:
            return START, None
        gain = query_difference(self.start, self.best_right)
        return (self.best if gain["low"] > 0 else START), gain

    def values(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside ``state``."""
        return {"start": self.start, "curve": self.curve, "best": self.best, "best_right": self.best_right}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from ``state`` and what :meth:`values` returned."""
        self.state = dict(tensors)
        self.start, self.curve = values["start"], values["curve"]
        self.best, self.best_right = values["best"], values["best_right"]


def query_difference(before: Sequence[int], after: Sequence[int]) -> dict[str, float]:
    """Return the difference of shares of right answers with its interval, by query.

    A query is asked once with all labels and once with each small bank; its answers go together, so they count as
    one: their mean changes are averaged, and the interval is that of as many independent queries as there are.
    """
    asked = 1 + BANK_SEEDS
    changes = (np.array(after, float) - np.array(before, float)).reshape(asked, -1).mean(axis=0)
    error = float(changes.std(ddof=1)) / len(changes) ** 0.5
    mean = float(changes.mean())
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error, "queries": float(len(changes))}
