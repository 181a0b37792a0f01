"""Which pictures are labelled: drawn with a seed, or read from a file; and that none of them is in the test set."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpssl_hf.data.image_cache import PictureStore
from tpssl_hf.data.label_files import read_label_file, rows_meant
from tpssl_hf.data.label_values import as_number, few, number_texts, plain, warn_of_similar
from tpssl_hf.data.scan import UNLABELLED, count_labels
from tpssl_hf.data.sources import Source, columns_of
from tpssl_hf.errors import InputError

LabelMode = Literal["balanced", "proportional"]


@dataclass(frozen=True)
class Labelled:
    """The labelled pictures of a run.

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

    def counts(self, pictures: int) -> str:
        """Say how many of ``pictures`` have which label, for people."""
        counted = [f"{name} {count:,}" for name, count in count_labels(self.labels, self.class_names).items()]
        return f"{few(counted)}, unlabeled {pictures - len(self.indices):,}"


def choose_labels(
    wanted: str, store: PictureStore, source: Source, *, mode: LabelMode = "balanced", seed: int = 1
) -> Labelled:
    """Settle the labelled pictures of ``store``.

    Args:
        wanted: how many in all, drawn with ``seed``; or ``all``: every picture whose label is not null; or the path of
            a ``.json`` file that :func:`write_labels` wrote or a ``.csv`` file with columns ``file`` or ``row``, and
            ``label`` (class name or number).
        store: the training pictures.
        source: what they were read from.
        mode: of drawing: the same number of each class, or in proportion to the classes.
        seed: of drawing.

    Raises:
        InputError: if the number does not suit the classes, a file does not suit the pictures, or some class has no
            label.
    """
    if Path(wanted).suffix.lower() in (".json", ".csv"):
        return _check_classes(read_labels(Path(wanted), store, source))
    if store.labels is None:
        raise InputError(
            f"{source.name!r} has no label column: name it with --label_column (`folder` for the names of sub-folders "
            "of pictures), or give --labels a .csv file with the columns file and label; its columns are "
            f"{columns_of(source.dataset.features)}."
        )
    if (store.labels == UNLABELLED).all():
        raise InputError(
            f"none of the {len(store):,} pictures of {source.name!r} has a label in its column "
            f"{source.label_column!r}; give --labels a .csv file, or another --label_column{_said(source.notes)}."
        )
    names = source.class_names or tuple(str(number) for number in range(int(store.labels.max()) + 1))
    if wanted == "all":
        indices, chosen = np.flatnonzero(store.labels != UNLABELLED), "every label of the data set"
    elif wanted.isdecimal() and int(wanted) > 0:
        indices = draw_labels(store.labels, int(wanted), len(names), mode=mode, seed=seed)
        chosen = f"{wanted} labels, {mode}, seed {seed}"
    else:
        raise InputError(f"labels {wanted!r} is not a number above 0, `all`, or a .json or .csv file.")
    return _check_classes(Labelled(indices, store.labels[indices], names, chosen), source.notes)


def draw_labels(labels: np.ndarray, count: int, classes: int, *, mode: LabelMode, seed: int) -> np.ndarray:
    """Draw ``count`` labelled pictures; a larger draw of the same seed and mode holds the smaller one if balanced.

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
    available = np.bincount(labels[labels != UNLABELLED], minlength=classes)
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
            f"class {short[0]} has {available[short[0]]} labelled pictures, and {quota[short[0]]} of each are wanted; "
            "give fewer --labels, or --label_mode proportional."
        )
    drawn = [
        np.random.default_rng([seed, number]).permutation(np.flatnonzero(labels == number))[: quota[number]]
        for number in range(classes)
    ]
    return np.sort(np.concatenate(drawn))


def hold_out(labelled: Labelled, count: int, *, seed: int) -> tuple[Labelled, Labelled]:
    """Split labelled pictures into those to train on and ``count`` to validate on, by class as evenly as possible.

    Raises:
        InputError: if a class would be left without a label to train on.
    """
    random = np.random.default_rng(seed)
    counts = np.bincount(labelled.labels, minlength=len(labelled.class_names))
    order = random.permutation(len(labelled.indices))
    rank = np.empty(len(order), dtype=np.int64)  # the how-manieth of its class each picture is, counted from the end
    for number in range(len(counts)):
        own = order[labelled.labels[order] == number]
        rank[own] = np.arange(len(own))
    held = np.sort(np.lexsort((labelled.labels, rank))[:count])
    if not 0 < count < len(order) or (np.bincount(labelled.labels[held], minlength=len(counts)) >= counts).any():
        raise InputError(
            f"validation_labels {count} of {len(order)} labels would leave a class without any to train on; "
            "give fewer, or more --labels."
        )
    kept = np.setdiff1d(np.arange(len(order)), held)
    return _part(labelled, kept), _part(labelled, held)


def hold_out_share(labelled: Labelled, *, least: int, parts: int, seed: int) -> tuple[Labelled, Labelled] | None:
    """Split off one of ``parts`` parts of each class, to validate on; None if a class has not ``least`` labels."""
    counts = np.bincount(labelled.labels, minlength=len(labelled.class_names))
    if counts.min() < least:
        return None
    random, held = np.random.default_rng(seed), []
    for number, count in enumerate(counts.tolist()):
        held.append(random.permutation(np.flatnonzero(labelled.labels == number))[: round(count / parts)])
    rows = np.sort(np.concatenate(held))
    return _part(labelled, np.setdiff1d(np.arange(len(labelled.labels)), rows)), _part(labelled, rows)


def _part(labelled: Labelled, rows: np.ndarray) -> Labelled:
    return replace(labelled, indices=labelled.indices[rows], labels=labelled.labels[rows])


def write_labels(path: Path, labelled: Labelled, store: PictureStore, source: Source) -> None:
    """Write ``labels.json``: rows of the data set and class names, which :func:`choose_labels` reads again."""
    rows = store.rows[labelled.indices].tolist()
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": labelled.chosen,
        "class_names": list(labelled.class_names),
        "labels": [{"row": row, "label": label} for row, label in zip(rows, labelled.labels.tolist(), strict=True)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_labels(path: Path, store: PictureStore, source: Source) -> Labelled:
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
                f"{where} gives the label {label!r} to a picture that {place} gives {before!r}; leave one of them."
            )
    if not given:
        raise InputError(
            f"labels file {path} labels none of the {len(store):,} pictures of {source.name!r}"
            f"{_said((*content.notes, *notes, *content.unlabeled_words(source.class_names)))}."
        )
    names = content.class_names or source.class_names
    labelled = _numbered({index: label for index, (label, _) in given.items()}, names, path)
    notes = (*content.notes, *notes, *content.unlabeled_words(labelled.class_names))
    return replace(labelled, notes=notes)


def _written(value: Any, where: str, *, as_number: bool) -> str | int:
    """Return a label as a class number, if the file numbers the classes itself and gives one, else as a text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and as_number:
        return value
    if not isinstance(value, str | int | float):
        raise InputError(f"{where} gives the label {str(value)[:80]!r}; a label is the name or the number of a class.")
    return plain(str(value))


def _numbered(given: Mapping[int, str | int], names: tuple[str, ...] | None, path: Path) -> Labelled:
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
                f"labels file {path} gives picture {index} the label {str(value)!r}; a label must be a number from 0 "
                f"to {len(names) - 1} or one of {few(names)}."
            )
        labels.append(number_of[whole])
    indices = np.array(sorted(given), dtype=np.int64)
    return Labelled(indices, np.array(labels, dtype=np.int64), names, f"labels of {path.name}")


def _said(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _check_classes(labelled: Labelled, notes: Sequence[str] = ()) -> Labelled:
    """Refuse labels that leave a class without any."""
    counts = np.bincount(labelled.labels, minlength=len(labelled.class_names))
    if len(counts) < 2:
        raise InputError(
            f"{labelled.chosen}: there is one class only ({few(labelled.class_names)}), and two are the least to tell "
            f"apart{_said((*labelled.notes, *notes))}."
        )
    if (empty := np.flatnonzero(counts == 0)).size:
        missing = few([labelled.class_names[number] for number in empty], 5)
        raise InputError(
            f"{labelled.chosen}: no picture is labelled {missing}; label at least one of each of the "
            f"{len(counts)} classes, or remove the class (numbers alone count from 0)."
        )
    warn_of_similar(labelled.class_names)
    return labelled


def refuse_test_pictures(store: PictureStore, indices: np.ndarray, test: PictureStore) -> None:
    """Refuse labelled pictures, ``indices`` of ``store``, that are also in the test set, told by their pixels' hash.

    Raises:
        InputError: naming how many and the first one's row.
    """
    own = {_hash(store, index): index for index in indices.tolist()}
    shared = sorted({own[found] for index in range(len(test)) if (found := _hash(test, index)) in own})
    if shared:
        raise InputError(
            f"{len(shared)} of the {len(own)} labelled pictures are in the test set too (row {store.rows[shared[0]]} "
            "is the first), which would flatter the score: take them out of one, or draw with another --label_seed."
        )


def _hash(store: PictureStore, index: int) -> bytes:
    pictures = store.gather(np.array([index]), epoch=0)
    return hashlib.sha256(pictures.pixels.numpy().tobytes() + bytes(str(pictures.sizes.tolist()), "ascii")).digest()
