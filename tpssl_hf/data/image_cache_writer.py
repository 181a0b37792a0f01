"""The one pass over a data set that decodes every image, scans it and writes what ``ImageCache`` reads."""

import errno
import json
import mmap
import pickle
import shutil
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tpssl_hf.data import scan
from tpssl_hf.data.conversion import SIXTEEN_BITS, Range
from tpssl_hf.data.decode import Decoded, decode_row, describe_location
from tpssl_hf.data.gathered import Gathered
from tpssl_hf.data.masks import refuse_masks_without_classes, share_of_pixels
from tpssl_hf.data.reading import UnreadableImage
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import replacing_folder, sync_files

CHUNK = 32  # images that are read and decoded together
BYTES_IN_FLIGHT = 256 * 2**20  # encoded, waiting for a thread
REMAP_BYTES = 512 * 2**20
MEMORY_STATUS = Path("/proc/self/statm")
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class EncodedImages:
    """A column of images of a ``datasets.Dataset``, read a few rows at a time in bounded memory.

    ``datasets`` maps its files into memory, and pages once read count as the process's own; a random read may bring
    in megabytes around a small image. Where the files are larger than ``REMAP_BYTES``, the mapping is therefore
    renewed, in milliseconds, whenever the pages of mapped files have grown by that much (on Linux, which tells).
    """

    def __init__(self, source: Source, column: str | None = None) -> None:
        self._dataset = source.dataset.select_columns([column or source.image_column]).with_format("arrow")
        sizes = [Path(file["filename"]).stat().st_size for file in self._dataset.cache_files]
        self._is_watched = sum(sizes) > REMAP_BYTES and MEMORY_STATUS.exists()
        if self._is_watched:  # the mapping that the source itself holds is never read
            self._renew_mapping()

    def _renew_mapping(self) -> None:
        self._dataset = pickle.loads(pickle.dumps(self._dataset))
        self._mapped_before = _mapped_bytes()

    def read(self, rows: list[int]) -> list[dict[str, Any] | None]:
        """Return the encoded images of ``rows``, each with its ``bytes`` or its ``path``."""
        values: list[dict[str, Any] | None] = self._dataset[rows].column(0).to_pylist()
        if self._is_watched and _mapped_bytes() - self._mapped_before > REMAP_BYTES:
            self._renew_mapping()
        return values


def _mapped_bytes() -> int:
    """Return how much of the process's resident memory is pages of mapped files."""
    return int(MEMORY_STATUS.read_text().split()[2]) * mmap.PAGESIZE


class _PixelFile:
    """The flat file of decoded pixels, given up for good when it would outgrow the budget.

    The mask of an image that has one follows its pixels.
    """

    def __init__(self, path: Path, budget: int) -> None:
        self._path = path
        self._file = path.open("wb")
        self._budget = budget
        self.bytes = 0  # of all images, written or not
        self.images = 0
        self.is_kept = True

    def append(self, pixels: np.ndarray, mask: np.ndarray | None) -> None:
        self.bytes += pixels.nbytes + (0 if mask is None else mask.nbytes)
        self.images += 1
        if self.is_kept and self.bytes > self._budget:
            self.is_kept = False
            self._file.close()
            self._path.unlink()
        if self.is_kept:
            self._file.write(pixels.data)
            if mask is not None:
                self._file.write(mask.data)

    def close(self) -> None:
        self._file.close()


def write_image_cache(
    folder: Path,
    source: Source,
    rows: np.ndarray,
    *,
    shorter_side: int,
    wide_range: Range | None,
    cache_budget: int,
    num_workers: int,
    progress: bool,
) -> None:
    """Decode ``rows`` (N,) of ``source`` once; write index, report and, within ``cache_budget`` bytes, pixels.

    Where gray values of more than eight bits turn out not to fill 16 bits and no ``wide_range`` is given, everything
    is decoded a second time, with the range that was found. Data sets without such values cost one pass.

    Everything is written to a temporary neighbor that takes the place of ``folder`` at the end, so that ``folder``
    is complete or absent at any time. The caller holds the lock, and thus owns what an ended process left behind.

    Raises:
        InputError: if more than 5 % of the images or their masks cannot be read, a label or mask is illegal, nobody
            said what masks of turned images were drawn on, or the disk is full.
    """
    labels = _read_labels(source, rows)
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    start = time.perf_counter()
    pixel_file = _PixelFile(temporary / "pixels.bin", cache_budget)
    try:
        with replacing_folder(folder, temporary):
            used = wide_range or SIXTEEN_BITS
            found = _scan(source, rows, shorter_side, used, pixel_file, num_workers, progress)
            own = found.wide_range()
            if wide_range is None and own is not None and own != used:
                used, pixel_file = own, _PixelFile(temporary / "pixels.bin", cache_budget)
                found = _scan(source, rows, shorter_side, used, pixel_file, num_workers, progress)
            _write_store(temporary, source, rows, labels, found, used, pixel_file, time.perf_counter() - start)
    except OSError as error:
        if error.errno in DISK_FULL:
            needed = pixel_file.bytes * len(rows) // max(1, pixel_file.images)
            raise InputError(
                f"No room for the decoded images of {source.name!r} ({error.strerror}): about {needed:,} bytes are "
                f"needed and {shutil.disk_usage(folder.parent).free:,} are free. Set `cache_dir` to a folder on a "
                "larger disk, or lower `cache_budget` so that images are decoded while training."
            ) from error
        raise


def _scan(
    source: Source,
    rows: np.ndarray,
    shorter_side: int,
    wide_range: Range,
    pixel_file: _PixelFile,
    num_workers: int,
    progress: bool,
) -> Gathered:
    """Go through all images once, keep their pixels and return what was found."""
    found = Gathered()
    with (
        closing(pixel_file),
        closing(_decoded(source, rows, shorter_side, wide_range, num_workers)) as images,
    ):
        for row, where, image in tqdm(images, "scanning images", len(rows), unit="", disable=not progress):
            if isinstance(image, UnreadableImage):
                found.bad.append({"where": where, "reason": str(image)})
                continue
            pixel_file.append(image.image.pixels, image.mask)
            found.add(row, image)
    scan.refuse_if_many_are_bad(found.bad, len(rows), source.name)
    found.refuse_ambiguous_masks(source.name)
    return found


def _write_store(
    folder: Path,
    source: Source,
    rows: np.ndarray,
    labels: np.ndarray | None,
    found: Gathered,
    wide_range: Range,
    pixel_file: _PixelFile,
    seconds: float,
) -> None:
    kept = np.array(found.rows, dtype=np.int64)
    if labels is not None:
        labels = labels[np.searchsorted(rows, kept)]
        np.save(folder / "labels.npy", labels)
    if source.masks is not None:
        refuse_masks_without_classes(
            found.mask_pixels, sum(found.has_mask), source.name, listed=source.class_names is not None
        )
        np.save(folder / "has_mask.npy", np.array(found.has_mask, dtype=bool))
        np.save(folder / "mask_pixels.npy", found.mask_pixels)
    np.save(folder / "rows.npy", kept)
    np.save(folder / "sizes.npy", np.array(found.sizes, dtype=np.int64))
    np.save(folder / "full_sizes.npy", np.array(found.full_sizes, dtype=np.int64))
    heights, widths = zip(*found.full_sizes, strict=True)
    report = ScanReport(
        dataset=source.name,
        images=len(kept),
        bad=found.bad,
        heights=scan.least_median_greatest(list(heights)),
        widths=scan.least_median_greatest(list(widths)),
        labels=scan.count_labels(labels, source.class_names),
        duplicates=len(kept) - len(found.hashes),
        seconds=round(seconds, 3),
        masks=None if source.masks is None else sum(found.has_mask),
        pixel_shares={} if source.masks is None else share_of_pixels(found.mask_pixels, source.class_names),
        pixel_bytes=pixel_file.bytes,
        **found.findings(wide_range),
    )
    meta = {"pixel_bytes": pixel_file.bytes, "has_pixels": pixel_file.is_kept, "report": asdict(report)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    sync_files(folder)


def _read_labels(source: Source, rows: np.ndarray) -> np.ndarray | None:
    """Return the labels (N,) of ``rows``, or None; every one is checked before the first image is decoded."""
    if source.label_column is None:
        return None
    column = source.dataset.select_columns([source.label_column]).with_format("arrow")
    values = column[rows.tolist()].column(0).to_pylist()
    return scan.check_labels(values, [f"row {row}" for row in rows.tolist()], source.class_names)


def _decoded(
    source: Source, rows: np.ndarray, shorter_side: int, wide_range: Range, num_workers: int
) -> Generator[tuple[int, str, Decoded | UnreadableImage], None, None]:
    """Yield row, place, and decoded image or ``UnreadableImage`` in the order of ``rows``, a little ahead."""
    encoded = EncodedImages(source)
    encoded_masks = None if source.mask_column is None else EncodedImages(source, source.mask_column)
    workers = max(1, num_workers)
    pending: deque[tuple[Future[list[tuple[int, str, Decoded | UnreadableImage]]], int]] = deque()
    in_flight = 0
    with ThreadPoolExecutor(workers, "tpssl-decode") as pool:
        try:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK].tolist()
                values = encoded.read(chunk)
                masks = [None] * len(chunk) if encoded_masks is None else encoded_masks.read(chunk)
                size = sum(len(value["bytes"] or b"") for value in [*values, *masks] if value is not None)
                future = pool.submit(_decode_chunk, source, chunk, values, masks, shorter_side, wide_range)
                pending.append((future, size))
                in_flight += size
                while pending and (len(pending) > 2 * workers or in_flight > BYTES_IN_FLIGHT):
                    future, size = pending.popleft()
                    in_flight -= size
                    yield from future.result()
            for future, _ in pending:
                yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_chunk(
    source: Source, rows: list[int], values: list[Any], masks: list[Any], shorter_side: int, wide_range: Range
) -> list[tuple[int, str, Decoded | UnreadableImage]]:
    return [
        (row, describe_location(source, row, value), decode_row(source, row, value, mask, shorter_side, wide_range))
        for row, value, mask in zip(rows, values, masks, strict=True)
    ]
