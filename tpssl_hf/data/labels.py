"""Which pictures are labelled: drawn with a seed, or read from a file; and that none of them is in the test set."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tpssl_hf.data.scan import UNLABELLED
from tpssl_hf.data.sources import Source
from tpssl_hf.data.store import PictureStore
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
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    chosen: str


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
            "of pictures), or give --labels a .csv file with the columns file and label."
        )
    names = source.class_names or tuple(str(number) for number in range(int(store.labels.max()) + 1))
    if wanted == "all":
        indices, chosen = np.flatnonzero(store.labels != UNLABELLED), "every label of the data set"
    elif wanted.isdecimal() and int(wanted) > 0:
        indices = draw_labels(store.labels, int(wanted), len(names), mode=mode, seed=seed)
        chosen = f"{wanted} labels, {mode}, seed {seed}"
    else:
        raise InputError(f"labels {wanted!r} is not a number above 0, `all`, or a .json or .csv file.")
    return _check_classes(Labelled(indices, store.labels[indices], names, chosen))


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


def _part(labelled: Labelled, rows: np.ndarray) -> Labelled:
    return Labelled(labelled.indices[rows], labelled.labels[rows], labelled.class_names, labelled.chosen)


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
    """Read a ``.json`` or ``.csv`` file of labels."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels file {path} cannot be read ({error}); give the path of a text file.") from error
    names = source.class_names
    if path.suffix.lower() == ".json":
        try:
            content: dict[str, Any] = json.loads(text)
            entries, names = list(content["labels"]), tuple(content.get("class_names") or ()) or names
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"labels file {path} is not JSON with a list `labels` of row and label.") from error
        if content.get("fingerprint") not in (None, source.fingerprint):
            raise InputError(
                f"labels file {path} was written for other pictures ({content.get('dataset')!r}, not these of "
                f"{source.name!r}); give the data set it was made with."
            )
    else:
        entries = list(csv.DictReader(text.splitlines()))
    where_of = {row: index for index, row in enumerate(store.rows.tolist())}
    files = rows_by_file(source) if any("file" in entry for entry in entries) else {}
    given: dict[int, str] = {}
    for number, entry in enumerate(entries, start=1):
        if (entry.get("label") if isinstance(entry, Mapping) else None) in (None, ""):
            continue  # not labelled yet
        index = where_of.get(_row_of(entry, files, f"{path}, entry {number}"))
        if index is not None:  # else left out by the scan, or by limit_images
            given[index] = str(entry["label"])
    if not given:
        raise InputError(f"labels file {path} labels none of the {len(store):,} pictures of {source.name!r}.")
    return _numbered(given, names, path)


def _numbered(given: Mapping[int, str], names: tuple[str, ...] | None, path: Path) -> Labelled:
    """Turn class names or numbers into numbers."""
    if names is None:
        found = set(given.values())
        numbers = all(value.isdecimal() for value in found)
        names = tuple(str(n) for n in range(max(map(int, found)) + 1)) if numbers else tuple(sorted(found))
    number_of = {str(number): number for number in range(len(names))} | {name: n for n, name in enumerate(names)}
    for index, value in given.items():
        if value not in number_of:
            raise InputError(
                f"labels file {path} gives picture {index} the label {value!r}; a label must be a number from 0 to "
                f"{len(names) - 1} or one of {', '.join(names[:10])}."
            )
    indices = np.array(sorted(given), dtype=np.int64)
    labels = np.array([number_of[given[index]] for index in indices.tolist()], dtype=np.int64)
    return Labelled(indices, labels, names, f"labels of {path.name}")


def rows_by_file(source: Source) -> dict[str, int]:
    """Map file names, as paths below the data set's folder and alone where they are unique, to rows."""
    column = source.dataset.select_columns([source.image_column]).with_format("arrow")[:][source.image_column]
    paths = [value for chunk in column.chunks for value in chunk.field("path").to_pylist()]
    rows: dict[str, int] = {}
    seen: dict[str, int] = {}
    for row, path in enumerate(paths):
        if path is None:
            continue
        below = source.folder is not None and Path(path).is_relative_to(source.folder)
        rows[str(Path(path).relative_to(source.folder)) if below and source.folder else str(path)] = row
        name = Path(path).name
        seen[name] = -1 if name in seen else row
    return {name: row for name, row in seen.items() if row >= 0} | rows


def _row_of(entry: Any, files: Mapping[str, int], where: str) -> int:
    if isinstance(entry, Mapping) and str(entry.get("row") or "").isdecimal():
        return int(entry["row"])
    if isinstance(entry, Mapping) and entry.get("row") == 0:
        return 0
    name = str(entry.get("file") or "") if isinstance(entry, Mapping) else ""
    if name in files:
        return files[name]
    raise InputError(
        f"{where}: {name!r} is no picture of the data set; each entry needs `file` (its path below the folder) or "
        "`row` (its number in the data set), and `label`."
        if name
        else f"{where} has neither `file` nor `row`; each entry needs one of them, and `label`."
    )


def _check_classes(labelled: Labelled) -> Labelled:
    """Refuse labels that leave a class without any."""
    counts = np.bincount(labelled.labels, minlength=len(labelled.class_names))
    if len(counts) < 2:
        raise InputError(f"{labelled.chosen}: there is one class only, and two are the least to tell apart.")
    if (empty := np.flatnonzero(counts == 0)).size:
        missing = ", ".join(labelled.class_names[number] for number in empty[:5])
        raise InputError(
            f"{labelled.chosen}: no picture is labelled {missing}; label at least one of each of the "
            f"{len(counts)} classes, or remove the class."
        )
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
