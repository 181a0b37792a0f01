"""Files that say which images are labeled, and the rows of the data set that they mean."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tpssl_hf.data.folder_layout import UNREAD_SUFFIXES
from tpssl_hf.data.image_names import ImageNames, row_digests
from tpssl_hf.data.label_values import few, is_unlabeled, plain
from tpssl_hf.data.multilabel import NAMES, given_in_json, label_columns, several_entries
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

SEPARATORS = (",", ";", "\t", "|")
FILE, ROW, DIGEST, LABEL = "file", "row", "digest", "label"
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class LabelFile:
    """What a file of labels holds.

    Attributes:
        entries: each with where it stands, for messages, and what it says.
        class_names: the classes it lists, or None.
        fingerprint: of the data set it was written for, or None.
        dataset: the name of that, or None.
        notes: what is to be known about how it was read.
        several: whether an entry's label is what :mod:`tpssl_hf.data.multilabel` makes of several labels an image.
    """

    entries: list[tuple[str, Mapping[str, Any]]]
    class_names: tuple[str, ...] | None
    fingerprint: str | None
    dataset: str | None
    notes: tuple[str, ...]
    several: bool = False

    def unlabeled_words(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Say which words, beside empty cells, were taken for no label."""
        classes = {plain(name) for name in names or ()}
        texts = [plain(entry[LABEL]) for _, entry in self.entries if isinstance(entry.get(LABEL), str)]
        words = Counter(text for text in texts if text not in classes and is_unlabeled(text) and text)
        return tuple(f"{count:,} entries say {word!r}, which means unlabeled" for word, count in words.most_common(3))


def read_label_file(path: Path) -> LabelFile:
    """Read a ``.json`` or ``.csv`` file of labels.

    Raises:
        InputError: if it cannot be read, or is not what it should be.
    """
    text, notes = read_text(path)
    if path.suffix.lower() == ".json":
        return _read_json(text, path, notes)
    text, mark, shown = _csv_header(text, path)
    lines = _csv_entries(text, mark, [name.casefold() for name in shown], path)
    if LABEL in (name.casefold() for name in shown):
        return LabelFile(list(lines), None, None, None, notes)
    entries = several_entries(lines, shown, LABEL)
    names = None if NAMES in (name.casefold() for name in shown) else tuple(shown[n] for n in label_columns(shown))
    return LabelFile(entries, names, None, None, notes, several=True)


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """Read a text file in UTF-8, UTF-16 or, as spreadsheets on Windows write it, Windows-1252; say so of the last."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"labels file {path} cannot be read ({error.strerror}); give the path of a text file."
        ) from error
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"labels file {path} cannot be read: it is a spreadsheet, not text; save it as CSV (UTF-8).")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in data[:2]:  # every other byte of Latin text in UTF-16
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding), ()
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or 0 in data:
            raise InputError(f"labels file {path} cannot be read ({error}); save it as CSV in UTF-8.") from error
    note = f"{path.name} is not in UTF-8 and was read as Windows-1252: save it in UTF-8 if names look wrong"
    return data.decode("cp1252", errors="replace"), (note,)


def _read_json(text: str, path: Path, notes: tuple[str, ...]) -> LabelFile:
    try:
        content: dict[str, Any] = json.loads(text)
        entries, names = list(content["labels"]), content.get("class_names") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"labels file {path} is not JSON with a list `labels` of row and label.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and plain(name) for name in names):
        raise InputError(f"labels file {path} must list `class_names` as texts; it gives {str(names)[:80]}.")
    listed = tuple(plain(name) for name in names)
    if len(set(listed)) < len(listed):
        raise InputError(f"labels file {path} names a class twice in `class_names`; name each once.")
    numbered = [
        (f"{path}, entry {number}", entry if isinstance(entry, Mapping) else {})
        for number, entry in enumerate(entries, start=1)
    ]
    if several := any(isinstance(entry.get(LABEL), list) for _, entry in numbered):
        numbered = [(where, {**entry, LABEL: _several(entry.get(LABEL), listed, where)}) for where, entry in numbered]
    found = content.get("fingerprint"), content.get("dataset")
    return LabelFile(numbered, listed or None, *found, notes, several=several)


def _several(value: Any, names: Sequence[str], where: str) -> Any:
    """Return what an entry of a JSON file says of several labels."""
    if isinstance(value, list):
        return given_in_json(value, names, where)
    if is_unlabeled(value):
        return None
    raise InputError(f"{where} gives the label {str(value)[:80]!r} where others give lists; give each image a list.")


def _csv_header(text: str, path: Path) -> tuple[str, str, list[str]]:
    """Return a table from its header on, whatever separates its cells, and the columns as they are written."""
    text = text.lstrip("\ufeff\r\n")
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # a hint that spreadsheets write, and hide
        text = rest
    if not text.strip():
        raise InputError(f"labels file {path} is empty; it needs a header such as `file,label` and a line for each.")
    headers = [next(csv.reader(io.StringIO(text, newline=""), delimiter=mark)) for mark in SEPARATORS]
    columns = [[plain(cell).casefold() for cell in header] for header in headers]
    best = max(range(len(SEPARATORS)), key=lambda n: (_is_header(columns[n]), len(columns[n])))
    shown = [plain(cell) for cell in headers[best]]
    _refuse_header(columns[best], shown, path)
    return text, SEPARATORS[best], shown


def _csv_entries(text: str, mark: str, columns: list[str], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the lines of a table below its header as column to cell."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    try:
        next(reader)
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if any(cell.strip() for cell in cells[len(columns) :]) or any("\n" in cell for cell in cells):
                raise InputError(
                    f"{where} has {len(cells)} cells in {len(columns)} columns, or a quote that does not end; "
                    "put names with commas or quotes between double quotes."
                )
            if any(cell.strip() for cell in cells):
                yield where, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} cannot be read as a table ({error}).") from error


def _is_header(columns: Sequence[str]) -> bool:
    return _has_labels(columns) and (FILE in columns or ROW in columns)


def _has_labels(columns: Sequence[str]) -> bool:
    named = FILE in columns or ROW in columns  # else two columns of anything are a label each
    return LABEL in columns or NAMES in columns or (named and len(label_columns(columns)) > 1)


def _refuse_header(columns: Sequence[str], shown: Sequence[str], path: Path) -> None:
    found = f"the header is {few(shown)!r}"[:300]
    if not _has_labels(columns):
        raise InputError(
            f"labels file {path} has no column `label` ({found}); it needs `label`, and `file` or `row` (for several "
            "labels an image: `labels` with `;` between the names, or a column for each label)."
        )
    if not _is_header(columns):
        raise InputError(
            f"labels file {path} has neither `file` nor `row` ({found}); it needs one of them, and `label`."
        )
    several = [] if LABEL in columns else [NAMES, *(columns[number] for number in label_columns(columns))]
    if twice := [name for name in (FILE, ROW, DIGEST, LABEL, *several) if columns.count(name) > 1]:
        raise InputError(f"labels file {path} has the column `{twice[0]}` twice ({found}); leave one.")


def rows_meant(content: LabelFile, path: Path, source: Source) -> tuple[list[tuple[int, str, Any]], tuple[str, ...]]:
    """Find the rows that the labeled entries of a file mean.

    Returns:
        Row, where the entry stands and its label, for each labeled entry; and what is to be known about them.

    Raises:
        InputError: if the file was written for other images or names some that are not there.
    """
    classes = content.class_names or tuple(plain(name) for name in source.class_names or ())
    labeled = [entry for entry in content.entries if not is_unlabeled(entry[1].get(LABEL), classes)]
    changed = content.fingerprint not in (None, source.fingerprint)
    if changed and not all(_text(entry, FILE) for _, entry in labeled):
        raise InputError(
            f"labels file {path} was written for other images ({content.dataset!r}, not these of {source.name!r} as "
            "they are now), and names them by rows; give the data set as it was, or name each image by its `file`."
        )
    names = ImageNames(source) if any(_text(entry, FILE) for _, entry in labeled) else None
    found: list[tuple[int, str, Any]] = []
    strange: list[str] = []
    unread = by_row = 0
    digests: dict[int, tuple[str, str]] = {}
    for where, entry in labeled:
        name = _text(entry, FILE)
        row = names.row_of(name, where) if names and name else None
        if row is None and name:
            is_unread = PurePath(name).suffix.lower() in UNREAD_SUFFIXES
            unread += is_unread
            strange += [] if is_unread else [f"{where}: {name!r}"]
            continue
        if row is None:
            row = _row_of(entry, where, len(source.dataset))
            digest = _text(entry, DIGEST)
            digests |= {row: (where, digest)} if digest else {}
            by_row += not digest and content.fingerprint is None
        found.append((row, where, entry[LABEL]))
    if strange:
        others = f" ({len(strange) - 1:,} more of {len(labeled):,} are none either)" if len(strange) > 1 else ""
        raise InputError(
            f"{strange[0]} is no image of the data set{others}; each entry needs `file` (its path below the folder"
            f"{f', such as {names.example!r}' if names and names.example else ''}) or `row` (its number in the data "
            "set), and `label`."
        )
    _refuse_other_images(digests, source)
    return found, _notes_of(path, source, changed, unread, by_row)


def _notes_of(path: Path, source: Source, changed: bool, unread: int, by_row: int) -> tuple[str, ...]:
    notes = []
    if changed:
        notes.append(
            f"{path.name} was written for other images than those of {source.name!r} as they are now; its labels are "
            "taken by the names of their files"
        )
    if unread:
        notes.append(f"{unread:,} entries of {path.name} name files in a format that is not read; they are left out")
    if by_row:
        notes.append(
            f"{by_row:,} labels of {path.name} name rows and nothing else: they are taken as rows of {source.name!r} "
            "as it is now, and are wrong if files were added or removed since; name files where there are any"
        )
    return tuple(notes)


def _text(entry: Mapping[str, Any], column: str) -> str:
    value = entry.get(column)
    return "" if value is None else str(value).strip()


def _row_of(entry: Mapping[str, Any], where: str, rows: int) -> int:
    text = _text(entry, ROW)
    if not text:
        raise InputError(f"{where} has neither `file` nor `row`; each entry needs one of them, and `label`.")
    whole = text.removesuffix(".0")  # as a column with empty cells is often written
    if not whole.isdecimal() or int(whole) >= rows:
        raise InputError(
            f"{where}: row {text!r} is no row of the data set; its rows are the whole numbers from 0 to {rows - 1}."
        )
    return int(whole)


def _refuse_other_images(digests: Mapping[int, tuple[str, str]], source: Source) -> None:
    """Refuse rows that hold another image than when the list was written."""
    for (row, (where, digest)), now in zip(digests.items(), row_digests(source, list(digests)), strict=True):
        if digest != now:
            raise InputError(
                f"{where}: row {row} of {source.name!r} holds another image than when this list was written, so the "
                "data set has changed: give it as it was, or let `tpssl-hf pick-labels` write a new list."
            )
