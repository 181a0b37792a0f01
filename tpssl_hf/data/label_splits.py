"""Which images are labeled: drawn with a seed, or read from a file; and that none of them is in the test set."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.image_names import image_paths
from tpssl_hf.data.label_files import read_label_file, rows_meant
from tpssl_hf.data.label_values import as_number, few, number_texts, plain, warn_of_similar
from tpssl_hf.data.labeled import Labeled
from tpssl_hf.data.multilabel import matrix_of, refuse_several
from tpssl_hf.data.multilabel_splits import draw_images, is_known, refuse_untold
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.data.sources import Source, columns_of, lists_of_labels, names_of_lists
from tpssl_hf.data.wanted_labels import count_of, is_file
from tpssl_hf.errors import InputError

LabelMode = Literal["balanced", "proportional"]


def choose_labels(
    wanted: str,
    store: ImageCache,
    source: Source,
    *,
    mode: LabelMode = "balanced",
    seed: int = 1,
    several: bool = False,
) -> Labeled:
    """Choose the labeled images of ``store``.

    Args:
        wanted: how many in all, drawn with ``seed``; or ``all``: every image whose label is not null; or the path of
            a ``.json`` file that :func:`write_labels` wrote or a ``.csv`` file with columns ``file`` or ``row``, and
            ``label`` (class name or number), or with several labels an image (:mod:`tpssl_hf.data.multilabel`).
        store: the training images.
        source: what they were read from.
        mode: of drawing: the same number of each class, or in proportion to the classes; of several labels an image
            see :func:`tpssl_hf.data.multilabel_splits.draw_images` instead.
        seed: of drawing.
        several: whether an image may have several labels.

    Raises:
        InputError: if the number does not suit the classes, a file does not suit the images, or some class has no
            label.
    """
    if is_file(wanted):
        return _check_classes(read_labels(Path(wanted), store, source, several=several))
    if source.label_lists is not None:
        return _check_classes(_labels_of_lists(wanted, store, source, seed), source.notes)
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
    else:
        indices = draw_labels(store.labels, count_of(wanted), len(names), mode=mode, seed=seed)
        chosen = f"{wanted} labels, {mode}, seed {seed}"
    return _check_classes(Labeled(indices, store.labels[indices], names, chosen), source.notes)


def _labels_of_lists(wanted: str, store: ImageCache, source: Source, seed: int) -> Labeled:
    """Choose labeled images of a data set whose label column holds lists."""
    labels, names = lists_of_labels(source, store.rows)
    if wanted == "all":
        indices, chosen = np.flatnonzero(is_known(labels)), "every label of the data set"
    else:
        indices, chosen = draw_images(labels, count_of(wanted), seed), f"{wanted} labeled images, seed {seed}"
    return Labeled(indices, labels[indices], names, chosen)


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


def write_labels(path: Path, labeled: Labeled, store: ImageCache, source: Source) -> None:
    """Write ``labels.json``, which :func:`choose_labels` reads again, also once other images have come to these.

    It holds rows and class names, and the names of files where each has one of its own.
    """
    rows = store.rows[labeled.indices].tolist()
    paths = image_paths(source)
    count = Counter(paths)
    named = all(paths[row] and count[paths[row]] == 1 for row in rows)
    files = [{"file": paths[row]} if named else {} for row in rows]
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": labeled.chosen,
        "class_names": list(labeled.class_names),
        "labels": [
            {"row": row, **file, "label": label}
            for row, file, label in zip(rows, files, _written_out(labeled), strict=True)
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _written_out(labeled: Labeled) -> list[Any]:
    """Return class numbers, or of several labels an image a list of 1, 0 and None each."""
    if not labeled.several:
        return list(labeled.labels.tolist())
    return [[None if flag == UNLABELED else flag for flag in flags] for flags in labeled.labels.tolist()]


def read_labels(path: Path, store: ImageCache, source: Source, *, several: bool = False) -> Labeled:
    """Read a ``.json`` or ``.csv`` file of labels, see :mod:`tpssl_hf.data.label_files`.

    Raises:
        InputError: for one that does not fit the images, and of several labels an image unless these are ``several``.
    """
    content = read_label_file(path)
    if content.several and not several:
        raise refuse_several(f"labels file {path}")
    found, notes = rows_meant(content, path, source)
    where_of = {row: index for index, row in enumerate(store.rows.tolist())}
    given: dict[int, tuple[Any, str]] = {}
    for row, where, value in found:
        index = where_of.get(row)
        if index is None:  # left out by the scan, or by limit_images
            continue
        label = value if content.several else _written(value, where, as_number=content.class_names is not None)
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
    labels = {index: label for index, (label, _) in given.items()}
    if content.several:
        names = content.class_names or names_of_lists(source)
        indices = np.array(sorted(labels), dtype=np.int64)
        found_labels, names = matrix_of([labels[index] for index in indices.tolist()], names, f"labels file {path}")
        labeled = Labeled(indices, found_labels, names, f"labels of {path.name}")
    else:
        labeled = _numbered(labels, content.class_names or source.class_names, path)
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
    if labeled.several:
        refuse_untold(labeled.labels, labeled.class_names, labeled.chosen)
        return labeled
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
