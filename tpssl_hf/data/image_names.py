"""The images of a data set by the names of their files, and by what is in them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tpssl_hf.data.label_values import plain
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError


def row_digests(source: Source, rows: Sequence[int]) -> list[str]:
    """Return for each row a short digest of its image's file, by which a list of rows knows its images again."""
    column = source.dataset.select_columns([source.image_column]).with_format("arrow")
    found = []
    for row in rows:
        value = column[[row]].column(0).to_pylist()[0] or {"bytes": b"", "path": None}
        data = value["bytes"]
        if data is None:
            data = Path(value["path"]).read_bytes() if Path(value["path"]).is_file() else b""
        found.append(
            f"p{hashlib.sha256(data).hexdigest()[:12]}"
        )  # a letter first: spreadsheets would read 1e5 as 100000
    return found


def image_paths(source: Source) -> list[str | None]:
    """Return for each row the path of its file, below the data set's folder where it is there; None without a file."""
    column = source.dataset.select_columns([source.image_column]).with_format("arrow")[:][source.image_column]
    paths = [value for chunk in column.chunks for value in chunk.field("path").to_pylist()]
    if source.folder is None:
        return paths
    inside = f"{source.folder}{os.sep}"
    return [None if path is None else path.removeprefix(inside) for path in paths]


def rows_by_file(source: Source) -> dict[str, int]:
    """Map file names, as paths below the data set's folder and alone where they are unique, to rows."""
    rows: dict[str, int] = {}
    seen: dict[str, int] = {}
    for row, path in enumerate(image_paths(source)):
        if path is not None:
            rows[path] = -1 if path in rows else row
            name = Path(path).name
            seen[name] = -1 if name in seen else row
    return {name: row for name, row in (seen | rows).items() if row >= 0}


class ImageNames:
    """Rows by the names of their files, however a table writes them.

    A name is a path below the data set's folder, or the end of one that no other image has. Slashes may be
    backslashes, the folder itself may stand before it; composed and decomposed Unicode are the same, and so are upper
    and lower case where that leaves one image only.

    Attributes:
        example: one of the names.
    """

    _FORMS: tuple[Callable[[str], str], ...] = (str, plain, lambda name: plain(name).casefold())

    def __init__(self, source: Source) -> None:
        self._folder = source.folder
        paths = {row: path for row, path in enumerate(image_paths(source)) if path is not None}
        self.example = next(iter(paths.values()), "")
        self._tables: list[tuple[Callable[[str], str], dict[str, int]]] = []
        for form in self._FORMS:
            whole: dict[str, int] = {}
            ends: dict[str, int] = {}
            for row, path in paths.items():
                name = form(path)
                whole[name] = -1 if name in whole else row
                while "/" in name:
                    name = name.partition("/")[2]
                    ends[name] = -1 if name in ends else row
            self._tables.append((form, ends | whole))

    def row_of(self, name: str, where: str) -> int | None:
        """Return the row of the image ``name``, None if there is none.

        Raises:
            InputError: if several images are called so.
        """
        for form, table in self._tables:
            for candidate in self._readings(name):
                row = table.get(form(candidate))
                if row == -1:
                    raise InputError(
                        f"{where}: {name!r} is the name of several images of the data set; give the path below the "
                        f"folder, such as {self.example!r}."
                    )
                if row is not None:
                    return row
        return None

    def _readings(self, name: str) -> Iterator[str]:
        yield name
        name = name.replace("\\", "/").removeprefix("./")
        yield name
        if self._folder is None:
            return
        if name.startswith("/") and Path(os.path.realpath(name)).is_relative_to(self._folder):
            yield str(Path(os.path.realpath(name)).relative_to(self._folder))
        own = f"{self._folder.name}/"
        if name.startswith(own):
            yield name.removeprefix(own)
        if f"/{own}" in name and (name.startswith("/") or name[1:2] == ":"):  # a path on another machine
            yield name.rpartition(f"/{own}")[2]
