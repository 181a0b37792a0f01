"""Draws and parts of images with several labels; labels are those of :mod:`tpssl_hf.data.multilabel`."""

from collections.abc import Sequence

import numpy as np

from tpssl_hf.data.label_values import few
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.errors import InputError


def is_known(labels: np.ndarray) -> np.ndarray:
    """Return (N,) whether anything is known of images with labels (N,) or (N, K)."""
    known: np.ndarray = (labels != UNLABELED).reshape(len(labels), -1).any(axis=1)
    return known


def fewest(labels: np.ndarray) -> np.ndarray:
    """Return (K,) of how many images each label is known, counting the rarer of its two answers."""
    counts: np.ndarray = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0))
    return counts


def rarer_answers(labels: np.ndarray) -> np.ndarray:
    """Return (N, K) whether labels give the rarer answer: that an image has a label, or has not one that most have."""
    rarer = np.where((labels == 1).sum(axis=0) <= (labels == 0).sum(axis=0), 1, 0)
    found: np.ndarray = labels == rarer
    return found


def refuse_untold(labels: np.ndarray, names: Sequence[str], chosen: str) -> None:
    """Refuse labels (N, K) that do not show of each label an image with it and one without it.

    Raises:
        InputError: naming what is missing.
    """
    if len(names) < 2:
        raise InputError(
            f"{chosen}: there is one label only ({few(names)}), and several labels an image are at least two; make it "
            "a column `label` with two classes."
        )
    for answer, what in ((1, "no image has the label"), (0, "no image is without the label")):
        if (missing := np.flatnonzero((labels == answer).sum(axis=0) == 0)).size:
            which = few([names[number] for number in missing.tolist()], 5)
            raise InputError(
                f"{chosen}: {what} {which}; each label needs an image with it and one without it: label more images, "
                "or take the label out."
            )


def draw_images(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw ``count`` images of which something is known; a larger draw of the same seed holds the smaller one.

    First an image of each label that no drawn image has yet, the rarest label first (or one without a label that most
    images have); then whichever comes, so that common labels are common.

    Args:
        labels: (N, K).
        count: images wanted.
        seed: of the shuffle.

    Returns:
        (count,) int64 indices, ascending.

    Raises:
        InputError: for more than there are.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(is_known(labels)))
    if count > len(order):
        raise InputError(f"{count} labeled images are more than the {len(order):,} that the data set has.")
    drawn: list[int] = []
    rare = rarer_answers(labels)
    for label in np.argsort(rare.sum(axis=0), kind="stable").tolist():
        found = order[rare[order, label]]
        if found.size and not rare[drawn, label].any():
            drawn.append(int(found[0]))
    drawn += order[~np.isin(order, drawn)].tolist()
    return np.sort(np.array(drawn[:count], dtype=np.int64))


def deal(labels: np.ndarray, sizes: Sequence[int], seed: int) -> np.ndarray:
    """Deal N images out to parts of these sizes, each label in proportion (iterative stratification).

    The images of the label that fewest images still have come first, each to the part that lacks it most (Sechidis,
    Tsoumakas and Vlahavas, 2011). Images with none of the labels come last. Of a label that most images have, it is
    those without it.

    Args:
        labels: (N, K).
        sizes: of the parts, N in all.
        seed: decides which of equal images goes where.

    Returns:
        (N,) int64, the part of each image.
    """
    having = rarer_answers(labels)
    room, parts = np.array(sizes), np.full(len(labels), -1, dtype=np.int64)
    wanted = having.sum(axis=0)[None] * (room / max(1, len(labels)))[:, None]
    order = np.random.default_rng(seed).permutation(len(labels))
    while (left := order[parts[order] < 0]).size:
        counts = having[left].sum(axis=0)
        rarest = np.where(counts > 0, counts, len(labels) + 1).argmin()
        images = left[having[left, rarest]] if counts.any() else left
        for image in images:
            lacking = wanted[:, rarest] if counts.any() else room.astype(float)
            open_parts = np.flatnonzero(room > 0)
            best = open_parts[np.lexsort((-room[open_parts], -lacking[open_parts]))[0]]
            parts[image] = best
            room[best] -= 1
            wanted[best] -= having[image]
    return parts
