"""Which images are labeled: drawn with a seed, or read from a file; and that none of them is in the test set."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_files import read_label_file, rows_meant
from tpssl_hf.data.label_values import as_number, few, number_texts, plain, warn_of_similar
from tpssl_hf.data.scan import UNLABELED, count_labels
from tpssl_hf.data.sources import Source, columns_of
from tpssl_hf.errors import InputError

LabelMode = Literal["balanced", "proportional"]


@dataclass(frozen=True)
class Labeled:
    """The labeled images of a run.

    Attributes:
        indices: (N,) int64, their numbers in the store, ascending.
        labels: (N,) int64, class numbers from 0.
        class_names: names in the order of the class numbers.
        chosen: how they were chosen, in a few words.
        notes: what is to be known about them, a sentence each.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    chosen: str
    notes: tuple[str, ...] = ()

    def counts(self, images: int) -> str:
        """Say how many of ``images`` have which label, for people."""
        counted = [f"{name} {count:,}" for name, count in count_labels(self.labels, self.class_names).items()]
        return f"{few(counted)}, unlabeled {images - len(self.indices):,}"


def choose_labels(
    wanted: str, store: ImageCache, source: Source, *, mode: LabelMode = "balanced", seed: int = 1
) -> Labeled:
    """Choose the labeled images of ``store``.

    Args:
        wanted: how many in all, drawn with ``seed``; or ``all``: every image whose label is not null; or the path of
            a ``.json`` file that :func:`write_labels` wrote or a ``.csv`` file with columns ``file`` or ``row``, and
            ``label`` (class name or number).
        store: the training images.
        source: what they were read from.
        mode: of drawing: the same number of each class, or in proportion to the classes.
        seed: of drawing.

    Raises:
        InputError: if the number does not suit the classes, a file does not suit the images, or some class has no
            label.
    """
    if Path(wanted).suffix.lower() in (".json", ".csv"):
        return _check_classes(read_labels(Path(wanted), store, source))
    if store.labels is None:
        raise InputError(
            f"{source.name!r} has no label column: name it with --label_column (`folder` for the names of sub-folders "
            "of images), or give --labels a .csv file with the columns file and label; its columns are "
            f"{columns_of(source.dataset.features)}."
        )
    if (store.labels == UNLABELED).all():
        raise InputError(
            f"none of the {len(store):,} images of {source.name!r} has a label in its column "
            f"{source.label_column!r}; give --labels a .csv file, or another --label_column{_said(source.notes)}."
        )
    names = source.class_names or tuple(str(number) for number in range(int(store.labels.max()) + 1))
    if wanted == "all":
        indices, chosen = np.flatnonzero(store.labels != UNLABELED), "every label of the data set"
    elif wanted.isdecimal() and int(wanted) > 0:
        indices = draw_labels(store.labels, int(wanted), len(names), mode=mode, seed=seed)
        chosen = f"{wanted} labels, {mode}, seed {seed}"
    else:
        raise InputError(f"labels {wanted!r} is not a number above 0, `all`, or a .json or .csv file.")
    return _check_classes(Labeled(indices, store.labels[indices], names, chosen), source.notes)


def draw_labels(labels: np.ndarray, count: int, classes: int, *, mode: LabelMode, seed: int) -> np.ndarray:
    """Draw ``count`` labeled images; a larger draw of the same seed and mode holds the smaller one if balanced.

    Each class is shuffled with ``seed``. ``balanced`` takes count / classes of each. ``proportional`` gives one label
    after the other to the class that falls short most, relative to the largest class (FixMatch, official code).

    Args:
        labels: (N,) int64, -1 for none.
        count: labels wanted.
        classes: number of classes.
        mode: see above.
        seed: of the shuffles.

    Returns:
        (count,) int64 indices, ascending.

    Raises:
        InputError: for fewer labels than classes, a number that balance cannot divide, or a class with too few.
    """
    available = np.bincount(labels[labels != UNLABELED], minlength=classes)
    if count < classes:
        raise InputError(f"{count} labels are fewer than the {classes} classes; give --labels {classes} or more.")
    if count > available.sum():
        raise InputError(f"{count} labels are more than the {available.sum():,} that the data set has.")
    if mode == "balanced":
        if count % classes:
            lower = count // classes * classes
            raise InputError(
                f"{count} labels cannot be the same number for each of {classes} classes; give --labels {lower} or "
                f"{lower + classes}, or --label_mode proportional."
            )
        quota = np.full(classes, count // classes)
    else:
        share, quota = available / available.max(), np.zeros(classes, dtype=np.int64)
        for _ in range(count):
            lacking = share - quota / max(1, quota.max())
            lacking[quota >= available] = -np.inf
            quota[np.argmax(lacking)] += 1
    if (short := np.flatnonzero(available < quota)).size:
        raise InputError(
            f"class {short[0]} has {available[short[0]]} labeled images, and {quota[short[0]]} of each are wanted; "
            "give fewer --labels, or --label_mode proportional."
        )
    drawn = [
        np.random.default_rng([seed, number]).permutation(np.flatnonzero(labels == number))[: quota[number]]
        for number in range(classes)
    ]
    return np.sort(np.concatenate(drawn))


def hold_out(labeled: Labeled, count: int, *, seed: int) -> tuple[Labeled, Labeled]:
    """Split labeled images into those to train on and ``count`` to validate on, by class as evenly as possible.

    Raises:
        InputError: if a class would be left without a label to train on.
    """
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


def hold_out_share(labeled: Labeled, *, least: int, parts: int, seed: int) -> tuple[Labeled, Labeled] | None:
    """Split off one of ``parts`` parts of each class, to validate on; None if a class has not ``least`` labels."""
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


def write_labels(path: Path, labeled: Labeled, store: ImageCache, source: Source) -> None:
    """Write ``labels.json``: rows of the data set and class names, which :func:`choose_labels` reads again."""
    rows = store.rows[labeled.indices].tolist()
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": labeled.chosen,
        "class_names": list(labeled.class_names),
        "labels": [{"row": row, "label": label} for row, label in zip(rows, labeled.labels.tolist(), strict=True)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_labels(path: Path, store: ImageCache, source: Source) -> Labeled:
    """Read a ``.json`` or ``.csv`` file of labels, see :mod:`tpssl_hf.data.label_files`."""
    content = read_label_file(path)
    found, notes = rows_meant(content, path, source)
    where_of = {row: index for index, row in enumerate(store.rows.tolist())}
    given: dict[int, tuple[str | int, str]] = {}
    for row, where, value in found:
        index = where_of.get(row)
        if index is None:  # left out by the scan, or by limit_images
            continue
        label = _written(value, where, as_number=content.class_names is not None)
        before, place = given.setdefault(index, (label, where))
        if before != label:
            raise InputError(
                f"{where} gives the label {label!r} to an image that {place} gives {before!r}; leave one of them."
            )
    if not given:
        raise InputError(
            f"labels file {path} labels none of the {len(store):,} images of {source.name!r}"
            f"{_said((*content.notes, *notes, *content.unlabeled_words(source.class_names)))}."
        )
    names = content.class_names or source.class_names
    labeled = _numbered({index: label for index, (label, _) in given.items()}, names, path)
    notes = (*content.notes, *notes, *content.unlabeled_words(labeled.class_names))
    return replace(labeled, notes=notes)


def _written(value: Any, where: str, *, as_number: bool) -> str | int:
    """Return a label as a class number, if the file numbers the classes itself and gives one, else as a text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and as_number:
        return value
    if not isinstance(value, str | int | float):
        raise InputError(f"{where} gives the label {str(value)[:80]!r}; a label is the name or the number of a class.")
    return plain(str(value))


def _numbered(given: Mapping[int, str | int], names: tuple[str, ...] | None, path: Path) -> Labeled:
    """Turn class names or numbers into numbers."""
    if names is None:
        names = number_texts({str(value) for value in given.values()}, f"labels file {path}")
    number_of: dict[str | int, int] = {number: number for number in range(len(names))}
    if not any(as_number(name) is not None for name in names):  # else a number is the name of a class
        number_of |= {str(number): number for number in range(len(names))}
    number_of |= {plain(name): number for number, name in enumerate(names)}
    labels = []
    for index, value in sorted(given.items()):
        whole = re.sub(r"^(\d+)\.0*$", r"\1", value) if isinstance(value, str) and value not in number_of else value
        if whole not in number_of:
            raise InputError(
                f"labels file {path} gives image {index} the label {str(value)!r}; a label must be a number from 0 "
                f"to {len(names) - 1} or one of {few(names)}."
            )
        labels.append(number_of[whole])
    indices = np.array(sorted(given), dtype=np.int64)
    return Labeled(indices, np.array(labels, dtype=np.int64), names, f"labels of {path.name}")


def _said(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _check_classes(labeled: Labeled, notes: Sequence[str] = ()) -> Labeled:
    """Refuse labels that leave a class without any."""
    counts = np.bincount(labeled.labels, minlength=len(labeled.class_names))
    if len(counts) < 2:
        raise InputError(
            f"{labeled.chosen}: there is one class only ({few(labeled.class_names)}), and two are the least to tell "
            f"apart{_said((*labeled.notes, *notes))}."
        )
    if (empty := np.flatnonzero(counts == 0)).size:
        missing = few([labeled.class_names[number] for number in empty], 5)
        raise InputError(
            f"{labeled.chosen}: no image is labeled {missing}; label at least one of each of the "
            f"{len(counts)} classes, or remove the class (numbers alone count from 0)."
        )
    warn_of_similar(labeled.class_names)
    return labeled


def refuse_test_images(store: ImageCache, indices: np.ndarray, test: ImageCache) -> None:
    """Refuse labeled images, ``indices`` of ``store``, that are also in the test set, told by their pixels' hash.

    Raises:
        InputError: naming how many and the first one's row.
    """
    own = {_hash(store, index): index for index in indices.tolist()}
    shared = sorted({own[found] for index in range(len(test)) if (found := _hash(test, index)) in own})
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(own)} labeled images are in the test set too (row {store.rows[shared[0]]} "
            "is the first), which would flatter the score: take them out of one, or draw with another --label_seed."
        )


def _hash(store: ImageCache, index: int) -> bytes:
    images = store.gather(np.array([index]), epoch=0)
    return hashlib.sha256(images.pixels.numpy().tobytes() + bytes(str(images.sizes.tolist()), "ascii")).digest()
