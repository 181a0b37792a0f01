"""What every export is made of: predictions that are read a few at a time, and their images."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tpssl_hf.data.sources import Source

Row = dict[str, Any]
COLUMNS = ("row", "file", "width", "height", "label", "confidence", "mask")


@dataclass(frozen=True)
class Predicted:
    """The predictions of one export.

    Attributes:
        table: parquet file of all predictions, in the folder that masks are in.
        source: the images.
        class_names: of the model.
        model_name: what the predictions are said to come from.
        least: confidence from which on a prediction belongs to it; None for no such limit.
        below: confidence below which it does; None for no such limit.
    """

    table: Path
    source: Source
    class_names: tuple[str, ...]
    model_name: str
    least: float | None = None
    below: float | None = None

    @property
    def holds_masks(self) -> bool:
        """Whether a segmenter made them."""
        return "mask" in pq.read_schema(self.table).names

    def rows(self) -> Iterator[Row]:
        """Yield the predictions in the order of the data set, with ``COLUMNS`` as far as the model has them."""
        file = pq.ParquetFile(self.table)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                above = self.least is None or row["confidence"] >= self.least
                if above and (self.below is None or row["confidence"] < self.below):
                    yield row

    def masks(self, row: Row) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each class number that a segmenter sees in an image, and where: (H, W) bool."""
        with Image.open(self.table.parent / row["mask"]) as image:
            mask = np.asarray(image)
        for number in np.unique(mask).tolist():
            yield number, mask == number


def run_lengths(flags: np.ndarray) -> list[int]:
    """Return the lengths of the runs in (N,) bool, False and True in turn; the first is of False, and may be 0."""
    changes = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    ends = np.concatenate([[0] if flags[0] else [], [0], changes, [len(flags)]]).astype(np.int64)
    lengths: list[int] = np.diff(ends).tolist()
    return lengths


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, width and height of what is True in (H, W) bool, which is something."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def write_json_list(text: IO[str], items: Iterable[Any]) -> None:
    """Write a JSON list an item a line, without holding it."""
    text.write("[")
    for number, item in enumerate(items):
        text.write(",\n" if number else "\n")
        text.write(json.dumps(item, ensure_ascii=False))
    text.write("\n]")
