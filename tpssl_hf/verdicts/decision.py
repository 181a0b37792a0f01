"""Did adapting help? Scores of several sets of weights on the same queries, and what follows from them.

The linear probe at the user's budget of labels decides. kNN must not contradict it, and adapted weights must beat the
base with re-estimated BatchNorm statistics as well, because those alone are worth several points and are no merit of
adapting. Clusters support, they do not decide.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tpssl_hf.evaluation.clustering import cluster, clustering_accuracy
from tpssl_hf.evaluation.feature_metrics import effective_rank, embedding_std, linear_cka, uniformity
from tpssl_hf.evaluation.probes import ProbeSplit, few_label_answers_of_draws, knn_answers
from tpssl_hf.monitoring.collapse import RANK_LEAST, RANK_SHARE_LEAST, SAMPLE, STD_LEAST, STD_SHARE_LEAST
from tpssl_hf.verdicts.paired_bootstrap import Difference, SampleSize, paired_difference, required_sample_size

BASE, STATISTICS = "base", "base, statistics only"
TEACHER = "teacher"  # of a distillation, frozen
NOT_ADAPTED = (BASE, STATISTICS, TEACHER)
CLUSTERED, CLUSTER_SEEDS, CLUSTER_RESTARTS = 2000, 5, 2
LEVEL = 0.95  # that all intervals against one control hold together

Recommendation = Literal["adapted", "base", "statistics", "unclear"]


@dataclass(frozen=True)
class Row:
    """Scores of one set of weights.

    Attributes:
        name: of the weights; of the controls ``base`` and ``base, statistics only``; of a teacher ``teacher``.
        width: number of features.
        probe: (S, Q) predictions of a linear probe, 1 right, 0 wrong, NaN for none; S draws, Q queries.
        knn: (S, Q) predictions of the nearest neighbors.
        clustering: accuracy of k-means by seed, in [0, 1].
        label_free: measures of the features that need no labels.
    """

    name: str
    width: int
    probe: np.ndarray
    knn: np.ndarray
    clustering: tuple[float, ...]
    label_free: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return accuracies by draw and the other facts as JSON types."""
        scores = {name: by_draw(getattr(self, name)).tolist() for name in ("probe", "knn")}
        return {"name": self.name, "width": self.width, **scores} | {
            "clustering": list(self.clustering),
            "label_free": self.label_free,
        }


@dataclass(frozen=True)
class Comparison:
    """One row minus another.

    Attributes:
        name: of the row.
        against: of the other row.
        probe: of the linear probe; it decides.
        knn: of the nearest neighbors.
        clustering: mean, low and high of the clusters' accuracy, over seeds of k-means only.
    """

    name: str
    against: str
    probe: Difference
    knn: Difference
    clustering: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        return asdict(self) | {"probe": self.probe.as_dict(), "knn": self.knn.as_dict()}


@dataclass(frozen=True)
class Decision:
    """What to do, and what decided it.

    Attributes:
        recommendation: use the adapted weights, keep the base, re-estimate its BatchNorm statistics, or unclear.
        reason: of ``unclear``: ``open`` where the interval holds 0, ``contradiction`` where kNN says the opposite,
            ``control`` where neither control is beaten for sure; ``collapsed`` where adapted features collapsed;
            ``no labels``; else empty.
        rows: the controls, then adapted weights from the best linear probe down, then a teacher.
        comparisons: of the best adapted weights with the base; then with the other control, if there is one; then of
            that control with the base; then of the others in the same way; then of the best with the next; then of a
            teacher with the controls and with the best.
        required: the sample size that would settle the open difference, if any practical one would.
    """

    recommendation: Recommendation
    reason: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    required: SampleSize | None = None

    @property
    def best(self) -> Row:
        """The adapted weights with the best linear probe; without labels the first ones."""
        return next(row for row in self.rows if row.name not in NOT_ADAPTED)

    def between(self, name: str, against: str) -> Comparison | None:
        """The comparison of two rows, if it was made."""
        found = (entry for entry in self.comparisons if (entry.name, entry.against) == (name, against))
        return next(found, None)


def by_draw(right: np.ndarray) -> np.ndarray:
    """Return the accuracy of each draw (S,), of predictions (S, Q) that are right (1) or wrong (0)."""
    accuracies: np.ndarray = np.nanmean(right, axis=1) if right.size else np.empty(0)
    return accuracies


def score(
    name: str,
    features: np.ndarray,
    labels: np.ndarray,
    trials: Sequence[ProbeSplit],
    *,
    base_features: np.ndarray | None = None,
) -> Row:
    """Score frozen features.

    Args:
        name: of the row.
        features: (N, D).
        labels: (N,) int64, -1 for none.
        trials: labels of each label seed and its queries, by row of ``features``; none where there are no labels.
        base_features: (N, D') of the base, to say how alike the two are.
    """
    some = np.sort(np.random.default_rng(0).permutation(len(features))[:SAMPLE])
    label_free = {
        "effective_rank": effective_rank(features[some]),
        "embedding_std": embedding_std(features[some]),
        "uniformity": uniformity(features[some]),
    }
    if base_features is not None:
        label_free["cka_base"] = linear_cka(features[some], base_features[some])
    if not trials:
        return Row(name, features.shape[1], np.empty((0, 0)), np.empty((0, 0)), (), label_free)
    queries = np.unique(np.concatenate([trial.queries for trial in trials]))
    probe, knn = (np.full((len(trials), len(queries)), np.nan) for _ in range(2))
    draws = [(features[trial.bank], trial.bank_labels, features[trial.queries]) for trial in trials]
    for draw, (trial, given) in enumerate(zip(trials, few_label_answers_of_draws(draws), strict=True)):
        columns = np.searchsorted(queries, trial.queries)
        probe[draw, columns] = given == trial.query_labels
        knn[draw, columns] = knn_answers(*draws[draw]) == trial.query_labels
    return Row(name, features.shape[1], probe, knn, _clustering(features, labels), label_free)


def _clustering(features: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Accuracy of k-means by seed: labeled images first, others to fill up, scored on the labeled ones."""
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[np.argsort(labels[order] < 0, kind="stable")][:CLUSTERED]
    known = labels[chosen] >= 0
    clusters = len(np.unique(labels[chosen][known]))
    found = [
        cluster(features[chosen], clusters, seed=seed, restarts=CLUSTER_RESTARTS) for seed in range(CLUSTER_SEEDS)
    ]
    return tuple(clustering_accuracy(groups[known], labels[chosen][known]) for groups in found)


def compare(one: Row, other: Row, *, overlap: float, level: float, seed: int) -> Comparison:
    """Compare ``one`` with ``other``; see :func:`tpssl_hf.verdicts.paired_bootstrap.paired_difference`."""
    probe, knn = (
        paired_difference(getattr(one, name), getattr(other, name), overlap=overlap, level=level, seed=seed)
        for name in ("probe", "knn")
    )
    gains = np.subtract(one.clustering, other.clustering)
    resampled = gains[np.random.default_rng(seed).integers(len(gains), size=(2000, len(gains)))].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Comparison(one.name, other.name, probe, knn, (float(gains.mean()), low, high))


def judge(rows: Sequence[Row], *, overlap: float, seed: int = 0) -> Decision:
    """Rank adapted weights and decide whether the best of them should be used.

    Of several adapted weights the best is compared with the base, which flatters it. So intervals are wider the more
    there are (Bonferroni): all hold together at 95 %.

    Args:
        rows: the base; the base with re-estimated BatchNorm statistics, if that is another network; then adapted
            weights, at least one; then the teacher of a distillation, which decides nothing.
        overlap: of the draws, see :func:`tpssl_hf.verdicts.paired_bootstrap.paired_difference`.
        seed: of resampling.
    """
    controls = [row for row in rows if row.name in (BASE, STATISTICS)]
    adapted = [row for row in rows if row.name not in NOT_ADAPTED]
    teachers = [row for row in rows if row.name == TEACHER]
    if not rows[0].probe.size:
        return _without_labels(controls, adapted, teachers)
    adapted.sort(key=lambda row: -float(by_draw(row.probe).mean()))
    level = 1 - (1 - LEVEL) / len(adapted)
    pairs = [(adapted[0], control) for control in controls]
    pairs += [(control, controls[0]) for control in controls[1:]]
    pairs += [(row, control) for row in adapted[1:] for control in controls]
    pairs += [(adapted[0], adapted[1])] if len(adapted) > 1 else []
    pairs += [(row, other) for row in teachers for other in (*controls, adapted[0])]
    made = tuple(compare(one, other, overlap=overlap, level=level, seed=seed) for one, other in pairs)
    with_control = len(controls) > 1
    recommendation, reason, open_one = _decide(
        made[0], made[1] if with_control else None, made[2] if with_control else None
    )
    required = required_sample_size(open_one) if open_one else None
    return Decision(recommendation, reason, (*controls, *adapted, *teachers), made, required)


def _decide(
    gain: Comparison, beyond: Comparison | None, alone: Comparison | None
) -> tuple[Recommendation, str, Difference | None]:
    """Recommend, with the reason and the difference that is still open, if one is.

    Args:
        gain: best adapted weights against the base.
        beyond: the same against the base with re-estimated BatchNorm statistics.
        alone: the base with re-estimated BatchNorm statistics against the base.
    """
    if gain.probe.sign < 0:
        return ("unclear", "contradiction", None) if gain.knn.sign > 0 else ("base", "", None)
    if gain.probe.sign == 0:
        return "unclear", "open", gain.probe
    if gain.knn.sign < 0:
        return "unclear", "contradiction", None
    if beyond is None or alone is None:
        return "adapted", "", None
    if beyond.probe.sign > 0:
        return ("unclear", "contradiction", None) if beyond.knn.sign < 0 else ("adapted", "", None)
    if alone.probe.sign > 0 and alone.knn.sign >= 0:
        return "statistics", "", beyond.probe if beyond.probe.sign == 0 else None
    return "unclear", "control", beyond.probe


def _without_labels(controls: Sequence[Row], adapted: Sequence[Row], teachers: Sequence[Row]) -> Decision:
    """Only a collapse can be told without labels; the rule is that of the health of a run."""
    sound = [row for row in adapted if not all(_collapsed(row.label_free, control.label_free) for control in controls)]
    rows = (*controls, *sound, *(row for row in adapted if row not in sound), *teachers)
    return Decision("unclear", "no labels", rows) if sound else Decision("base", "collapsed", rows)


def _collapsed(found: dict[str, float], start: dict[str, float]) -> bool:
    rank, std = start["effective_rank"], start["embedding_std"]
    return found["embedding_std"] <= max(STD_LEAST, STD_SHARE_LEAST * std) or found["effective_rank"] < max(
        RANK_SHARE_LEAST * rank, min(RANK_LEAST, rank / 2)
    )
