"""What a label is, wherever it is written: the name or number of a class, or a way to say that there is none."""

import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.errors import InputError

# As they stand in tables of all kinds, in any case. A class that a data set itself names like this stays a class.
NO_LABEL = frozenset({"", "-1", "-1.0", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "unlabeled", "unlabelled"})
INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
MOST_CLASSES = 100_000
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")


class LabelWarning(UserWarning):
    """Labels are used as they are written, and may not be what was meant."""


def plain(text: str) -> str:
    """Return a name in composed Unicode (NFC), without what stands invisibly around it."""
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def is_unlabeled(value: Any, names: Sequence[str] = ()) -> bool:
    """Return whether ``value``, of a table, a JSON file or a column, says that there is no label.

    Args:
        value: text, number, or None.
        names: classes that are known; one of them is a label however it is called.
    """
    if isinstance(value, str):
        return plain(value).casefold() in NO_LABEL and plain(value) not in names
    if isinstance(value, bool):
        return False
    if isinstance(value, float | Decimal) and math.isnan(value):
        return True
    return value is None or (isinstance(value, int | float | Decimal) and value == UNLABELED)


def few(names: Sequence[str], most: int = 10) -> str:
    """Return ``names`` with commas between, the first ``most`` of them and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def number_column(values: Sequence[Any], column: str) -> tuple[list[int | None], tuple[str, ...] | None]:
    """Number the classes of a label column: texts, booleans or numbers, some of them missing.

    Texts and booleans are class names, sorted. Whole numbers without a gap from 0 are class numbers; where some are
    missing, the numbers that occur are the classes.

    Args:
        values: what the column holds.
        column: its name, for messages.

    Returns:
        A class number for each value, None for an unlabeled one; and the names, None for plain class numbers.

    Raises:
        InputError: for other values, lists of labels, numbers that are not whole, and negative ones other than -1.
    """
    known = [None if is_unlabeled(value) else _class_of(value, column) for value in values]
    numbers = sorted({value for value in known if isinstance(value, int)})
    texts = sorted({value for value in known if isinstance(value, str)})
    if numbers and texts:
        raise InputError(f"Label column {column!r} mixes texts and numbers: make every label one or the other.")
    classes: list[int | str] = [*numbers, *texts]
    number_of: dict[int | str | None, int | None] = {None: None}
    number_of |= {value: number for number, value in enumerate(classes)}
    names = None if classes == list(range(len(classes))) else tuple(map(str, classes))
    return [number_of[value] for value in known], names


def _class_of(value: Any, column: str) -> str | int:
    """Return a label as a name, or as a whole number from 0."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | Decimal) and value >= 0 and value % 1 == 0:
        return int(value)
    if isinstance(value, list | tuple):
        raise InputError(
            f"Label column {column!r} holds lists ({str(value)[:80]}), so several labels an image, which `tpssl-hf "
            "classify` takes and nothing else does: name a --label_column with one label an image."
        )
    what = "which is no whole number from 0" if isinstance(value, int | float | Decimal) else type(value).__name__
    raise InputError(
        f"Label column {column!r} holds {str(value)[:80]!r} ({what}); a label must be a whole number from 0, a text, "
        "true or false, and -1 or an empty cell means no label."
    )


def number_texts(found: set[str], where: str) -> tuple[str, ...]:
    """Return the names of the classes that a table without known classes means by its labels ``found``.

    Numbers are class numbers from 0 (``1.0``, as a column with empty cells is often written, is 1); else every
    label is a name.

    Raises:
        InputError: for numbers that are not whole, or negative.
    """
    numbers = {text: number for text in found if (number := as_number(text)) is not None}
    if len(numbers) < len(found):
        return tuple(sorted(found))
    if wrong := sorted(text for text, number in numbers.items() if number % 1 or not 0 <= number <= MOST_CLASSES):
        raise InputError(
            f"{where} gives the label {wrong[0]!r}; numbers stand for classes and must be whole, from 0 to "
            f"{MOST_CLASSES:,}: write names instead if they are not counted like this."
        )
    return tuple(str(number) for number in range(int(max(numbers.values())) + 1))


def as_number(text: str) -> float | None:
    """Return the number a label is written as, or None for a name."""
    return float(text) if NUMBER.fullmatch(text) else None


def warn_of_similar(names: Sequence[str]) -> None:
    """Warn of classes whose names differ in nothing but upper and lower case or spaces, and of lists of others."""
    lists = [name for name in names if any(plain(part) in names for part in re.split(r"[;|]", name) if part != name)]
    if lists:
        warnings.warn(
            f"{few([repr(name) for name in lists], 5)} is a class of its own beside what it is made of: name the "
            "column `labels` if these are several labels an image",
            LabelWarning,
            stacklevel=2,
        )
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(name.split()).casefold(), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if alike:
        warnings.warn(
            f"the classes {few(alike, 5)} are the same but for upper and lower case or spaces, and are kept apart: "
            "write them alike if they are one class",
            LabelWarning,
            stacklevel=2,
        )
