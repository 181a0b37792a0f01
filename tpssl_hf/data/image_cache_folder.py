"""The folder of an image cache: its name, its lock, which rows of the data set it holds, and its record."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import lock_descriptor

from tpssl_hf.data.conversion import Range
from tpssl_hf.data.reading import PLUGINS_IN_USE
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

FORMAT_VERSION = 2
MASK_FORMAT_VERSION = 1
SUBSET_SEED = 0
PAIRS = ("heights", "widths", "wide_range", "wide_extent")  # tuples of the report, which are lists in JSON


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an image cache, which ends with the process even if killed; wait for whoever holds it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder.parent} ({error.strerror}): set `cache_dir` to another folder."
        ) from error
    try:
        lock_descriptor(lock)
        yield
    finally:
        os.close(lock)


def choose_rows(total: int, limit: int | None, name: str) -> np.ndarray:
    """Return the rows (N,) to use, in ascending order: all, or a random subset, so that sorted classes all remain."""
    if total == 0:
        raise InputError(f"{name!r} holds no images.")
    if limit is not None and limit < 1:
        raise InputError(f"`limit_images` is {limit}: give a number from 1, or leave it out for all images.")
    if limit is None or limit >= total:
        return np.arange(total)
    return np.sort(np.random.Generator(np.random.Philox(SUBSET_SEED)).permutation(total)[:limit])


def key_of(source: Source, shorter_side: int, wide_range: Range | None, limit: int | None) -> str:
    """Return a name that is different whenever the stored numbers might be."""
    parts = [FORMAT_VERSION, MASK_FORMAT_VERSION, PIL.__version__, source.times, limit]
    parts += PLUGINS_IN_USE  # or images stay unread that no longer are
    return hashlib.sha256(json.dumps([parts, _facts(source, shorter_side, wide_range)]).encode()).hexdigest()[:32]


def fingerprint_of(source: Source, shorter_side: int, wide_range: Range | None, rows: np.ndarray) -> str:
    """Return a name of what is stored, of ``rows`` (N,) that can be read: the same for a copy of the files."""
    facts = json.dumps(_facts(source, shorter_side, wide_range))
    return hashlib.sha256(facts.encode() + rows.tobytes()).hexdigest()[:32]


def _facts(source: Source, shorter_side: int, wide_range: Range | None) -> list[Any]:
    columns = source.image_column, source.label_column, source.mask_column
    masks = None if source.masks is None else asdict(source.masks)
    return [source.fingerprint, *columns, source.class_names, shorter_side, wide_range, masks]


def is_usable(folder: Path, cache_budget: int) -> bool:
    """Return whether ``folder`` is a complete cache that holds the pixels or could not within the budget."""
    if not (folder / "meta.json").exists():
        return False
    meta = read_meta(folder)
    if meta["has_pixels"]:
        return (folder / "pixels.bin").stat().st_size == int(meta["pixel_bytes"])
    return bool(meta["pixel_bytes"] > cache_budget)


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the record of a complete image cache."""
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def report_of(stored: dict[str, Any]) -> ScanReport:
    """Return the report as it was before it became JSON."""
    return ScanReport(**stored | {key: tuple(stored[key]) for key in PAIRS if stored[key] is not None})
