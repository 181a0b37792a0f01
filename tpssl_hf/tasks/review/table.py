"""A table of predictions as the page reads it: one list a column, classes as numbers."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tpssl_hf.data.label_values import plain
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.write import IMAGES_KEY, MODEL_KEY
from tpssl_hf.training.run_dir import CONFIG, RESULTS

COLUMNS = ["row", "file", "label", "confidence", "second_label"]
NEAREST = "nearest_label"  # where the run knows its labeled images


@dataclass(frozen=True)
class Predictions:
    """A finished output folder of predict.

    Attributes:
        folder: where it is.
        table: ``COLUMNS``, and ``NEAREST`` if it is there; a row for each image.
        config: the keys and fingerprints of its run.
    """

    folder: Path
    table: pa.Table
    config: dict[str, Any]


def read_predictions(location: str) -> Predictions:
    """Read the output folder of predict.

    Raises:
        InputError: for a folder that predict has not finished, and for predictions of a segmenter.
    """
    if not location:
        raise InputError("predictions is missing; give the output_dir of a finished `tpssl-hf predict`.")
    folder = Path(location).expanduser()
    path = folder / f"{Classification.name}.parquet"
    if not path.is_file() or not (folder / RESULTS).is_file():
        raise InputError(
            f"{str(folder)!r} holds no finished predictions; give the output_dir of `tpssl-hf predict`, "
            "or let it finish."
        )
    try:
        config = dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        names = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in (*COLUMNS, NEAREST) if name in names])
    except (OSError, ValueError, TypeError, yaml.YAMLError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the predictions in {str(folder)!r} cannot be read ({reason}); run predict again."
        ) from error
    if "mask" in names:
        raise InputError(
            f"{str(folder)!r} holds masks, which a review cannot correct; look at them with `tpssl-hf predict "
            "--overlays`, and correct them in another tool with `--export cvat`."
        )
    if "labels" in names:
        raise InputError(
            f"{str(folder)!r} holds several labels an image, and a review corrects one; correct `labels` in "
            f"{Classification.name}.csv, or give predictions of a classifier of one label an image."
        )
    missing = ({"model", "dataset", "split", IMAGES_KEY, MODEL_KEY} - set(config)) | (set(COLUMNS) - set(names))
    if missing:
        raise InputError(f"the predictions in {str(folder)!r} lack {', '.join(sorted(missing))}; run predict again.")
    return Predictions(folder, table, config)


def class_names(known: Iterable[str], table: pa.Table) -> list[str]:
    """Return all classes: ``known`` in their order, then others that the table names, sorted."""
    named = {name for column in ("label", "second_label") for name in table[column].unique().to_pylist()}
    first = list(dict.fromkeys(known))
    return [*first, *sorted(named - set(first))]


def prediction_columns(table: pa.Table, classes: Sequence[str]) -> dict[str, Any]:
    """Return the columns of N predictions, each a list of N; classes are numbers of ``classes``."""
    number_of = {name: number for number, name in enumerate(classes)}
    columns = {
        "rows": table["row"].to_pylist(),
        "files": table["file"].to_pylist(),
        "labels": [number_of[name] for name in table["label"].to_pylist()],
        "confidences": np.round(table["confidence"].to_numpy().astype(np.float64), 4).tolist(),
        "others": [number_of[name] for name in table["second_label"].to_pylist()],
    }
    if NEAREST in table.column_names:
        columns["nearest"] = [number_of.get(name, -1) for name in table[NEAREST].to_pylist()]
    return columns


def key_column(names: Sequence[str]) -> str:
    """Return what a file of labels can name images of a data set by: ``file``, or ``row`` where names will not do.

    They will not where two are alike, where there are none, and where a table of labels would read another one.
    """
    usable = all(
        name == plain(name) and "\n" not in name and "\r" not in name and name != str(row)
        for row, name in enumerate(names)
    )
    return "file" if usable and len({name.casefold() for name in names}) == len(names) else "row"


def link_to_images(source: Source, example: str, page_folder: Path) -> str | None:
    """Return the address of the folder of images as seen from the page, ending in /; None for images in a table.

    Args:
        source: of the images.
        example: name of one of them.
        page_folder: of the page.
    """
    if source.folder is None or not (source.folder / example).is_file():
        return None
    folder = source.folder.resolve()
    try:
        relative = Path(os.path.relpath(folder, page_folder.resolve()))
    except ValueError:  # another drive
        return f"{folder.as_uri()}/"
    return f"{quote(relative.as_posix())}/"
