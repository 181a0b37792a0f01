"""Predicted masks as parquet files, the masks in them, that ``datasets.load_dataset`` reads as images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tpssl_hf.errors import InputError

SHARD = 300_000_000  # bytes of masks in one file, more only where a single mask has more
GROUP = 100  # masks that readers take at once
MASK = "mask"
DATA = "data/predictions-"  # begins the names of the files


def mask_shards(table: Path, place: Path) -> dict[str, bytes | Path]:
    """Write the table of a segmenter's predictions with the masks in it; returns the files by their published name.

    Args:
        table: ``predictions.parquet``, in the folder that its masks are in.
        place: empty folder to write to.

    Raises:
        InputError: naming the first mask that is not there any more.
    """
    source = pq.ParquetFile(table)
    features = datasets.Features.from_arrow_schema(source.schema_arrow) | {MASK: datasets.Image()}
    schema, shards = datasets.Features(features).arrow_schema, _shards(table)
    rows = _rows(source)
    files: dict[str, bytes | Path] = {}
    for number, count in enumerate(shards):
        path = place / f"{number:05d}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, count, GROUP):
                group = [_with_mask(table.parent, next(rows)) for _ in range(min(GROUP, count - start))]
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
        files[f"{DATA}{number:05d}-of-{len(shards):05d}.parquet"] = path
    return files


def _shards(table: Path) -> list[int]:
    """Return how many masks go into each file; there is one at least."""
    counts, size = [0], 0
    for name in pq.read_table(table, columns=[MASK])[MASK].to_pylist():
        try:
            length = (table.parent / name).stat().st_size
        except OSError as error:
            raise InputError(
                f"{table.parent / name} cannot be read ({error.strerror}), so the masks are not published; delete "
                f"{table.parent} and predict again."
            ) from error
        if counts[-1] and size + length > SHARD:
            counts.append(0)
            size = 0
        counts[-1], size = counts[-1] + 1, size + length
    return counts


def _rows(source: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    for batch in source.iter_batches(batch_size=GROUP):
        yield from batch.to_pylist()


def _with_mask(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    path = folder / row[MASK]
    return row | {MASK: {"bytes": path.read_bytes(), "path": path.name}}
