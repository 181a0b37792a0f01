"""The images that all weights of a verdict predict, and the label seeds that their probes learn from."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import choose_labels, draw_labels
from tpssl_hf.data.label_values import few
from tpssl_hf.data.labeled import Labeled
from tpssl_hf.data.multilabel import refuse_several
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.data.sources import Source, class_lists
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.verdicts.config import VerdictConfig

LEAST_DRAWS = 5
SEEDS_APART = 1000  # between the label seeds of two seeds of the run


@dataclass(frozen=True)
class ProbeSet:
    """Images whose features are compared, and which of them are predicted from the labels of which others.

    Attributes:
        indices: (N,) int64, indices of the images in the image cache, ascending.
        labels: (N,) int64, -1 for none.
        class_names: names in the order of the class numbers.
        trials: one for each draw of labels, as positions in ``indices``; none without labels.
        overlap: of the draws, see :func:`tpssl_hf.verdicts.paired_bootstrap.paired_difference`.
        shared: whether all draws have the same queries; else the queries of each are the labels that it does not use.
        chosen: how images, labels and queries were chosen, in a sentence.
        notes: remarks on a file of labels, a sentence each.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    trials: tuple[ProbeSplit, ...]
    overlap: float
    shared: bool
    chosen: str
    notes: tuple[str, ...] = ()


def choose_probe_set(config: VerdictConfig, store: ImageCache, source: Source, *, seed: int) -> ProbeSet:
    """Choose images, queries and labels of each label seed; the same for all weights.

    Where there are four times as many labeled images as a draw needs, or more, half of them, ``queries`` at most,
    are the queries of all draws, and the labels are drawn from the rest. Else the queries of each draw are the labels
    that it does not use, a quarter of them or more.

    Raises:
        InputError: for labels that do not suit the classes or the images, or fewer than 5 draws.
    """
    if config.draws < LEAST_DRAWS:
        raise InputError(f"draws {config.draws} are too few to see how much a draw matters; give 5 or more.")
    known, names, budget, notes = _known_labels(config, store, source, seed)
    random, most = np.random.default_rng(0), max(config.images, 4 * (budget or 0))
    labeled = random.permutation(np.flatnonzero(known != UNLABELED))[:most]
    others = random.permutation(np.flatnonzero(known == UNLABELED))[: most - len(labeled)]
    indices = np.sort(np.concatenate([labeled, others]))
    labels = known[indices]
    if not names:
        return ProbeSet(indices, labels, names, (), 0.0, False, "no labels")
    if budget and len(labeled) >= 4 * budget:
        return _shared_queries(config, indices, labels, names, budget, seed)
    return replace(_own_queries(config, indices, labels, names, budget, seed), notes=notes)


def _known_labels(
    config: VerdictConfig, store: ImageCache, source: Source, seed: int
) -> tuple[np.ndarray, tuple[str, ...], int | None, tuple[str, ...]]:
    """Labels of all images, -1 for none; class names, none without labels; budget, None for all there are; notes."""
    known, wanted = np.full(len(store), UNLABELED, dtype=np.int64), str(config.labels)
    is_file = Path(wanted).suffix.lower() in (".json", ".csv")
    if wanted != "none" and not is_file and store.labels is None and class_lists(source.dataset.features):
        raise refuse_several(f"the data set {source.name!r}")
    if wanted == "none" or (not is_file and (store.labels is None or (store.labels == UNLABELED).all())):
        return known, (), None, ()
    labeled: Labeled = choose_labels(wanted, store, source, mode=config.label_mode, seed=1 + SEEDS_APART * seed)
    if is_file and source.class_names and len(source.class_names) != len(labeled.class_names):
        raise InputError(
            f"labels file {wanted} names {len(labeled.class_names)} classes and the data set {source.name!r} has "
            f"{len(source.class_names)}; give labels of its classes, or a data set without a label column."
        )
    if wanted.isdecimal() and store.labels is not None:
        return store.labels, labeled.class_names, int(wanted), ()
    known[labeled.indices] = labeled.labels
    return known, labeled.class_names, None, (f"labels: {labeled.counts(len(store))}", *labeled.notes)


def _shared_queries(
    config: VerdictConfig, indices: np.ndarray, labels: np.ndarray, names: tuple[str, ...], budget: int, seed: int
) -> ProbeSet:
    available, classes = int((labels != UNLABELED).sum()), len(names)
    if config.queries < classes:
        raise InputError(f"queries {config.queries} are fewer than the {classes} classes; give --queries {classes}.")
    count = min(config.queries, available // 2)
    queries = draw_labels(labels, count, classes, mode="proportional", seed=SEEDS_APART * seed)
    rest = labels.copy()
    rest[queries] = UNLABELED
    shown = np.bincount(rest[rest != UNLABELED], minlength=classes)[labels[queries]] > 0
    queries, unshown = queries[shown], [names[number] for number in np.unique(labels[queries[~shown]]).tolist()]
    trials = []
    for draw in range(1, config.draws + 1):
        try:
            bank = draw_labels(rest, budget, classes, mode=config.label_mode, seed=draw + SEEDS_APART * seed)
        except InputError as error:
            raise InputError(f"{error} Queries do not count; see --queries and --images.") from error
        trials.append(ProbeSplit(bank, queries, labels[bank], labels[queries]))
    pool = available - count
    chosen = (
        f"{config.draws} draws of {budget} labels out of {pool:,} labeled images; the same {len(queries):,} "
        "other ones are the queries of all draws"
    )
    if unshown:  # where labels are drawn in proportion; a balanced draw would be refused
        chosen += f"; not among them, as no label is left to learn from: {few(unshown)}"
    return ProbeSet(indices, labels, names, tuple(trials), budget / (pool - budget), True, chosen)


def _own_queries(
    config: VerdictConfig,
    indices: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    budget: int | None,
    seed: int,
) -> ProbeSet:
    counts = np.bincount(labels[labels != UNLABELED], minlength=len(names))
    if (single := np.flatnonzero(counts < 2)).size:
        raise InputError(
            f"class {names[single[0]]} has {counts[single[0]]} labeled images, and each class needs one to learn "
            "from and one to predict; label 2 or more of each."
        )
    total = int(counts.sum())
    size = min(budget or total, 3 * total // 4)
    trials = []
    for draw in range(1, config.draws + 1):
        # a proportional draw favors the first of equal classes: which is first changes with every draw
        number = np.random.default_rng([seed, draw]).permutation(len(names))
        shuffled = np.where(labels == UNLABELED, UNLABELED, number[labels])
        bank = draw_labels(shuffled, size, len(names), mode="proportional", seed=draw + SEEDS_APART * seed)
        queries = np.setdiff1d(np.flatnonzero(labels != UNLABELED), bank)
        trials.append(ProbeSplit(bank, queries, labels[bank], labels[queries]))
    chosen = (
        f"{config.draws} splits of {total:,} labeled images into {size:,} to learn from and only {total - size:,} "
        "to predict"
    )
    return ProbeSet(indices, labels, names, tuple(trials), (total - size) / size, False, chosen)
