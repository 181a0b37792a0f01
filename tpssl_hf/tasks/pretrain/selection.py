"""Do no harm: which network a target pretraining saves, chosen by labels of training images where there are any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from tpssl_hf.evaluation.agreement import paired_difference
from tpssl_hf.evaluation.probes import DRAWS, ProbeSplit, answerable, few_labels_right, knn_answers, probe_split
from tpssl_hf.tasks.pretrain.crops import Crops

START, BN_ONLY, LAST = "start", "bn_only", "last"
CHOOSING, KNOWN_AGAIN = "choosing_accuracy", "crops_known_again"  # in the log
CHOOSING_SHARE = 0.2  # of the images looked at: what each candidate is asked about, and as many with known labels
Right = list[int]  # 1 for each query answered rightly, else 0; the same queries for every candidate


def choosing_and_judging(labels: np.ndarray, images: int = 4000) -> tuple[ProbeSplit, ProbeSplit] | tuple[None, None]:
    """Split labeled training images into those that choose among candidates and those that judge what was chosen.

    The best of several is best by luck as well, so whoever chose may not judge: the queries are different ones.
    Candidates are many, so that they are asked about a fifth of the images, with as many whose labels are known.

    Args:
        labels: (N,) int64; −1 where there is none.
        images: how many are looked at, at most; half of them are queries.

    Returns:
        Both splits, or None twice where some class has too few images.
    """
    split = probe_split(labels, most=images, held_out=0.5)
    if split is None:
        return None, None
    random = np.random.default_rng(1)
    first, second = np.array_split(random.permutation(len(split.queries)), 2)
    most = int(CHOOSING_SHARE * images)
    some = np.sort(random.permutation(len(split.bank))[:most])
    asked, rest = np.sort(first[:most]), np.sort(second)
    return (
        ProbeSplit(split.bank[some], split.queries[asked], split.bank_labels[some], split.query_labels[asked]),
        ProbeSplit(split.bank, split.queries[rest], split.bank_labels, split.query_labels[rest]),
    )


def answers_of(features_of: Callable[[np.ndarray], np.ndarray], split: ProbeSplit) -> Right:
    """Return the right answers of a backbone: those of kNN with all labels, then of probes with few of them.

    A backbone whose features are not finite has none.
    """
    bank, queries = features_of(split.bank), features_of(split.queries)
    if not answerable(bank, queries):
        return [0] * (1 + DRAWS) * len(split.queries)
    right = knn_answers(bank, split.bank_labels, queries) == split.query_labels
    few = few_labels_right(bank, split.bank_labels, queries, split.query_labels)
    return [*right.astype(int).tolist(), *few]


@dataclass
class Selection:
    """The best candidate so far, and what all of them got right.

    Attributes:
        start: right answers of Φ_pre; None where there are no labels, so that nothing can be chosen.
        curve: (completed steps, share of right answers) of each snapshot.
        best: name of the best candidate, of all that were considered.
        best_right: its right answers.
        state: its tensors by name, on the CPU; empty for ``start``.
        crops: of Φ_pre, where there are no labels and crops tell what is sound; else None.
    """

    start: Right | None = None
    crops: Crops | None = None
    curve: list[list[float]] = field(default_factory=list)
    best: str = START
    best_right: Right = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, start: Right) -> None:
        """Take Φ_pre as the best so far."""
        self.start = self.best_right = list(start)

    def consider(self, name: str, network: nn.Module, right: Right, step: int | None = None) -> float:
        """Take a candidate if it gets more right than the best so far; returns its share of right answers."""
        share = sum(right) / len(right)
        if step is not None:
            self.curve.append([step, share])
        if sum(right) > sum(self.best_right):
            self.best_right = list(right)
            self._keep(name, network)
        return share

    def consider_crops(self, name: str, network: nn.Module, crops: Crops, step: int) -> float:
        """Take a later snapshot if it is sound; returns how well it knows images again in other crops."""
        assert self.crops is not None
        self.curve.append([step, crops.mean_rank])
        if crops.is_sound(self.crops):
            self._keep(name, network)
        return crops.mean_rank

    def _keep(self, name: str, network: nn.Module) -> None:
        self.best = name
        self.state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def chosen(self) -> tuple[str, dict[str, float] | None]:
        """Return the candidate to save, and its difference to Φ_pre.

        It is Φ_pre itself unless the interval of the difference lies above 0. Without labels it is the last one that
        is sound, see :meth:`tpssl_hf.tasks.pretrain.crops.Crops.is_sound`, and nobody knows the difference.
        """
        if self.start is None:
            return (LAST if self.crops is None else self.best), None
        if self.best == START:
            return START, None
        gain = query_difference(self.start, self.best_right)
        return (self.best if gain["low"] > 0 else START), gain

    def values(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside ``state``."""
        crops = None if self.crops is None else self.crops.values()
        own = {"start": self.start, "curve": self.curve, "best": self.best, "best_right": self.best_right}
        return {**own, "crops": crops}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from ``state`` and what :meth:`values` returned."""
        self.state = dict(tensors)
        self.start, self.curve = values["start"], values["curve"]
        self.best, self.best_right = values["best"], values["best_right"]
        self.crops = Crops.restored(values.get("crops"))


def query_difference(before: Sequence[int], after: Sequence[int]) -> dict[str, float]:
    """Return the difference of shares of right answers with its interval, by query.

    A query is asked once with all labels and once with each small bank; its answers go together, so they count as
    one: their mean changes are averaged, and the interval is that of as many independent queries as there are.
    """
    asked = 1 + DRAWS
    one, other = (np.array(right, float).reshape(asked, -1).mean(axis=0) for right in (before, after))
    return {**paired_difference(one, other), "queries": float(len(one))}
