"""The labeled images of a run, and how some of them are held out."""

from dataclasses import dataclass, replace

import numpy as np

from tpssl_hf.data.label_values import few
from tpssl_hf.data.multilabel_splits import deal, fewest
from tpssl_hf.data.scan import count_labels
from tpssl_hf.errors import InputError


@dataclass(frozen=True)
class Labeled:
    """The labeled images of a run.

    Attributes:
        indices: (N,) int64, their numbers in the store, ascending.
        labels: (N,) int64, class numbers from 0; or, for several labels an image, (N, K) int64 as in
            :mod:`tpssl_hf.data.multilabel`.
        class_names: names in the order of the class numbers, or of the K labels.
        chosen: how they were chosen, in a few words.
        notes: what is to be known about them, a sentence each.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    chosen: str
    notes: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether an image has several labels."""
        return self.labels.ndim == 2

    def counts(self, images: int) -> str:
        """Say how many of ``images`` have which label, for people."""
        if self.several:
            having = dict(zip(self.class_names, (self.labels == 1).sum(axis=0).tolist(), strict=True))
            shown = few([f"{name} {count:,}" for name, count in having.items()])
            none = int((self.labels == 0).all(axis=1).sum())
            return f"{shown}, none of them {none:,}, unlabeled {images - len(self.indices):,}"
        counted = [f"{name} {count:,}" for name, count in count_labels(self.labels, self.class_names).items()]
        return f"{few(counted)}, unlabeled {images - len(self.indices):,}"


def hold_out(labeled: Labeled, count: int, *, seed: int) -> tuple[Labeled, Labeled]:
    """Split labeled images into those to train on and ``count`` to validate on, by class as evenly as possible.

    Raises:
        InputError: if a class would be left without a label to train on.
    """
    if labeled.several:
        return _hold_out_several(labeled, count, seed)
    random = np.random.default_rng(seed)
    counts = np.bincount(labeled.labels, minlength=len(labeled.class_names))
    order = random.permutation(len(labeled.indices))
    rank = np.empty(len(order), dtype=np.int64)  # the how-manieth of its class each image is, counted from the end
    for number in range(len(counts)):
        own = order[labeled.labels[order] == number]
        rank[own] = np.arange(len(own))
    held = np.sort(np.lexsort((labeled.labels, rank))[:count])
    if not 0 < count < len(order) or (np.bincount(labeled.labels[held], minlength=len(counts)) >= counts).any():
        raise InputError(
            f"validation_labels {count} of {len(order)} labels would leave a class without any to train on; "
            "give fewer, or more --labels."
        )
    kept = np.setdiff1d(np.arange(len(order)), held)
    return part_of(labeled, kept), part_of(labeled, held)


def _hold_out_several(labeled: Labeled, count: int, seed: int) -> tuple[Labeled, Labeled]:
    rows, total = np.arange(len(labeled.labels)), len(labeled.labels)
    if 0 < count < total:
        held = deal(labeled.labels, (total - count, count), seed) == 1
        if fewest(labeled.labels[~held]).all():
            return part_of(labeled, rows[~held]), part_of(labeled, rows[held])
    raise InputError(
        f"validation_labels {count} of {total} labeled images would leave a label without an image that has it, or "
        "one that has not, to train on; give fewer, or more --labels."
    )


def hold_out_share(labeled: Labeled, *, least: int, parts: int, seed: int) -> tuple[Labeled, Labeled] | None:
    """Split off one of ``parts`` parts of each class, to validate on; None if a class has not ``least`` labels."""
    if labeled.several:
        if fewest(labeled.labels).min() < least:
            return None
        return _hold_out_several(labeled, round(len(labeled.labels) / parts), seed)
    counts = np.bincount(labeled.labels, minlength=len(labeled.class_names))
    if counts.min() < least:
        return None
    random, held = np.random.default_rng(seed), []
    for number, count in enumerate(counts.tolist()):
        held.append(random.permutation(np.flatnonzero(labeled.labels == number))[: round(count / parts)])
    rows = np.sort(np.concatenate(held))
    return part_of(labeled, np.setdiff1d(np.arange(len(labeled.labels)), rows)), part_of(labeled, rows)


def part_of(labeled: Labeled, rows: np.ndarray) -> Labeled:
    """Return the labels in ``rows`` (M,) alone."""
    return replace(labeled, indices=labeled.indices[rows], labels=labeled.labels[rows])
