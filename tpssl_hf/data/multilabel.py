"""Several labels an image: (N, K) int64, 1 where an image has a label, 0 where it has not, -1 where nobody says."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpssl_hf.data.label_values import few, is_unlabeled, plain
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.errors import InputError

NAMES = "labels"  # the column of a table that holds the names of all labels of an image
MARKS = re.compile(r"[;|]")  # between them
NO_LABELS = ("file", "row", "digest", "label", "number", "")  # columns of a table that never are a label
HAS, HAS_NOT = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
Given = tuple[str, ...] | tuple[int, ...]  # what is said of an image: names of its labels; or 1, 0, -1 for each label
Entries = list[tuple[str, Mapping[str, Any]]]


def refuse_several(where: str) -> InputError:
    """Return the error of whatever takes one label an image and was given several."""
    return InputError(
        f"{where} gives several labels an image, which `tpssl-hf classify` (--method supervised, linear_probe or "
        "fixmatch), `tpssl-hf predict` and `embed` take and nothing else does; give one label an image here."
    )


def label_columns(columns: Sequence[str]) -> list[int]:
    """Return which columns of a table without a column of labels are a label each, by number."""
    return [number for number, name in enumerate(columns) if name.casefold() not in NO_LABELS]


def several_entries(lines: Iterable[tuple[str, Mapping[str, Any]]], shown: Sequence[str], label: str) -> Entries:
    """Put what each line of a table says under ``label``: names, flags, or None where it says nothing.

    Args:
        lines: where each stands, and its cells by the column's name in lower case.
        shown: the columns as they are written, one of them ``labels``, or one a label.
        label: key of the entries.

    Raises:
        InputError: for a cell that is not 1, 0 or empty in a column for one label.
    """
    if NAMES in (name.casefold() for name in shown):
        return [(where, {**cells, label: names_in(cells.get(NAMES))}) for where, cells in lines]
    columns = [shown[number] for number in label_columns(shown)]
    return [(where, {**cells, label: _flags(cells, columns, where)}) for where, cells in lines]


def names_in(cell: Any) -> tuple[str, ...] | None:
    """Return the names in a cell such as ``cat;dog``; none of the labels for a lone ``;``, None for an empty cell."""
    if is_unlabeled(cell):
        return None
    return tuple(dict.fromkeys(name for part in MARKS.split(str(cell)) if (name := plain(part))))


def _flags(cells: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[int, ...] | None:
    flags = []
    for column in columns:
        cell = cells.get(column.casefold())
        text = plain(str(cell)).casefold()
        if text not in HAS | HAS_NOT and not is_unlabeled(cell):
            raise InputError(
                f"{where} says {str(cell)[:80]!r} in the column {column!r}; a table without a column `label` or "
                "`labels` has a column for each label, which says 1, 0, or nothing where it is not known: take the "
                "column out if it is no label."
            )
        flags.append(1 if text in HAS else 0 if text in HAS_NOT else UNLABELED)
    return None if set(flags) == {UNLABELED} else tuple(flags)


def given_in_json(value: Sequence[Any], names: Sequence[str], where: str) -> Given | None:
    """Return what a list in a JSON file says: names, or 1, 0 or null for each of ``names``.

    Raises:
        InputError: for anything else.
    """
    if all(isinstance(item, str) for item in value):
        return tuple(dict.fromkeys(plain(item) for item in value))
    if len(value) != len(names) or any(isinstance(item, bool) or item not in (0, 1, None) for item in value):
        raise InputError(
            f"{where} gives the labels {str(value)[:80]}; a list of labels holds names, or 1, 0 or null for each of "
            f"`class_names` ({len(names)})."
        )
    flags = tuple(UNLABELED if item is None else int(item) for item in value)
    return None if set(flags) == {UNLABELED} else flags


def matrix_of(given: Sequence[Given], names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels (N, K) of N images of which something is known, and the names of the K.

    Args:
        given: names of an image's labels, all others being absent; or flags.
        names: of all labels; where None, those that occur, sorted.
        where: what says so, for messages.

    Raises:
        InputError: for a name that is none of ``names``.
    """
    if names is None:
        names = tuple(sorted({name for said in given for name in said if isinstance(name, str)}))
    number_of = {plain(name): number for number, name in enumerate(names)}
    labels = np.zeros((len(given), len(names)), dtype=np.int64)
    for row, said in zip(labels, given, strict=True):
        if said and not isinstance(said[0], str):
            row[:] = said
            continue
        if strange := [name for name in said if name not in number_of]:
            raise InputError(f"{where} gives the label {strange[0]!r}; a label must be one of {few(names)}.")
        row[[number_of[str(name)] for name in said]] = 1
    return labels, names


def number_lists(
    values: Sequence[Any], names: tuple[str, ...] | None, column: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels (N, K) that a column of lists gives N images, and the names of the K.

    An empty list is an image with none of the labels, a missing one an image that nobody has labeled.

    Args:
        values: lists of class numbers, or of names.
        names: of all labels; where None, the names or numbers that occur.
        column: its name, for messages.

    Raises:
        InputError: for anything else in the column.
    """
    items = [item for value in values for item in value or ()]
    if names is None and items and all(isinstance(item, str) for item in items):
        said = [tuple(plain(item) for item in value or ()) for value in values]
    else:
        whole = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
        count = len(names) if names is not None else 1 + max(whole, default=-1)
        if len(whole) < len(items) or not all(0 <= item < count for item in whole):
            strange = next(item for item in items if item not in range(count) or isinstance(item, bool))
            raise InputError(
                f"Label column {column!r} holds {strange!r} in a list; a list must hold the names of an image's "
                f"labels, or their numbers from 0{f' to {count - 1}' if names else ''}."
            )
        names = names or tuple(map(str, range(count)))
        said = [tuple(plain(names[item]) for item in value or ()) for value in values]
    labels, names = matrix_of(said, names, f"label column {column!r}")
    labels[[value is None for value in values]] = UNLABELED
    return labels, names
