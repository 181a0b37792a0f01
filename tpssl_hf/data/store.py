"""Decoded pictures that are read by number: from one flat file, or decoded on demand where that would be too large."""

import fcntl
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import PIL
import torch

from tpssl_hf.augment.pictures import Pictures
from tpssl_hf.data.build import CHUNK, EncodedPictures, build_store
from tpssl_hf.data.decode import decode_row, place
from tpssl_hf.data.masks import IGNORED, colour_map, count_classes
from tpssl_hf.data.scan import UNLABELLED, ScanReport, UnreadablePicture
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

FORMAT_VERSION = 1
MASK_FORMAT_VERSION = 1
STORED_SHARE = 1.15  # of the training size: what random resized crops can still tell from the full size
SUBSET_SEED = 0


class PictureStore:
    """The usable pictures of a data set by number; the same pixels whether cached or decoded on demand.

    Pixels are read with ``preadv`` straight into the batch. A memory map would do as well, but the pages it has
    touched count as memory of the process, which would then grow until it is as large as the store.

    Attributes:
        rows: (N,) int64, the row of each picture in its data set.
        labels: (N,) int64 with -1 for an unlabelled picture, or None without a label column.
        class_names: names in the order of the class numbers, or None; for masks whose classes have no names, the
            numbers up to the highest that was seen.
        palette: RGB colour in which to show each class of the masks; None for data without masks.
        has_mask: (N,) bool, whether a picture has a mask.
        fingerprint: of the files, the choice of rows and the stored size; equal stores give equal batches.
        source_name: short name of the data set.
        is_cached: whether pixels come from the cache.
    """

    def __init__(self, folder: Path, source: Source, *, shorter_side: int, is_cached: bool, num_workers: int) -> None:
        self.rows: np.ndarray = np.load(folder / "rows.npy", allow_pickle=False)
        self._sizes: np.ndarray = np.load(folder / "sizes.npy", allow_pickle=False)
        self.has_mask: np.ndarray = np.zeros(len(self.rows), dtype=bool)
        self.class_names = source.class_names
        self.palette = None
        if source.masks is not None:
            self.has_mask = np.load(folder / "has_mask.npy", allow_pickle=False)
            classes = count_classes(np.load(folder / "mask_pixels.npy", allow_pickle=False))
            self.class_names = source.class_names or tuple(str(number) for number in range(classes))
            self.palette = source.masks.palette or colour_map(classes)
        bytes_of_each = self._sizes.prod(axis=1) * (3 + self.has_mask)
        self._offsets: np.ndarray = np.concatenate([[0], np.cumsum(bytes_of_each)])
        self._source = source
        self._shorter_side = shorter_side
        self.labels = None if source.label_column is None else np.load(folder / "labels.npy", allow_pickle=False)
        self.fingerprint = folder.name
        self.source_name = source.name
        self.is_cached = is_cached
        if is_cached:
            self._file = os.open(folder / "pixels.bin", os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        else:
            self._encoded = EncodedPictures(source)
            self._encoded_masks = EncodedPictures(source, source.mask_column) if source.mask_column else None
            self._pool = ThreadPoolExecutor(max(1, num_workers), "tpssl-decode")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shorter_sides(self) -> np.ndarray:
        """(N,) int64, the shorter side of each picture as it is stored."""
        sides: np.ndarray = self._sizes.min(axis=1)
        return sides

    def encoded(self, indices: np.ndarray) -> list[dict[str, Any] | None]:
        """Return the files of the pictures ``indices`` (B,) as their data set holds them: ``bytes`` and ``path``."""
        return EncodedPictures(self._source).read(self.rows[indices].tolist())

    def place_of(self, index: int, value: dict[str, Any] | None) -> str:
        """Return where the picture ``index``, encoded as ``value``, stands, for people."""
        return place(self._source, int(self.rows[index]), value)

    def gather(self, indices: np.ndarray, epoch: np.ndarray | int) -> Pictures:
        """Return the pictures ``indices`` (B,) as a batch that is marked with ``epoch``, a number or (B,)."""
        sizes = self._sizes[indices]
        height, width = sizes.max(axis=0).tolist()
        pixels = np.zeros((len(indices), height, width, 3), dtype=np.uint8)
        masks = None
        if self._source.masks is not None:
            masks = np.full((len(indices), height, width), IGNORED, dtype=np.uint8)
        if self.is_cached:
            self._read(pixels, self._offsets[indices], sizes)
            if masks is not None:
                labelled = np.flatnonzero(self.has_mask[indices])
                after_pixels = self._offsets[indices[labelled]] + sizes[labelled].prod(axis=1) * 3
                self._read([masks[position] for position in labelled], after_pixels, sizes[labelled])
        else:
            self._decode(indices, sizes, pixels, masks)
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), len(indices))
        return as_pictures(pixels, sizes, indices, epochs, masks)

    def _read(self, targets: np.ndarray | list[np.ndarray], offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Read what stands at ``offsets`` (B,) into the padded ``targets``, each (H, W) or (H, W, 3)."""
        whole, depth = (targets[0].shape[:2], targets[0].shape[2:]) if len(targets) else ((), ())
        for target, offset, (height, width) in zip(targets, offsets.tolist(), sizes.tolist(), strict=True):
            # rows of a narrower picture do not lie one behind the other in the padded batch
            part = target if (height, width) == whole else np.empty((height, width, *depth), dtype=np.uint8)
            if os.preadv(self._file, [part.data], offset) != part.nbytes:
                raise InputError(
                    f"The picture cache {self.fingerprint} of {self.source_name!r} is damaged: remove it."
                )
            if part is not target:
                target[:height, :width] = part

    def _decode(self, indices: np.ndarray, sizes: np.ndarray, pixels: np.ndarray, masks: np.ndarray | None) -> None:
        for start in range(0, len(indices), CHUNK):
            chosen = indices[start : start + CHUNK]
            rows = self.rows[chosen].tolist()
            values = self._encoded.read(rows)
            mask_values = self._encoded_masks.read(rows) if self._encoded_masks else [None] * len(rows)
            decoded = self._pool.map(
                lambda row, value, mask: decode_row(self._source, row, value, mask, self._shorter_side),
                *(rows, values, mask_values),
            )
            for position, (row, value, picture) in enumerate(zip(rows, values, decoded, strict=True), start):
                height, width = sizes[position].tolist()
                if (
                    isinstance(picture, UnreadablePicture)
                    or picture.pixels.shape[:2] != (height, width)
                    or (picture.mask is not None) != self.has_mask[indices[position]]
                ):
                    raise InputError(
                        f"{place(self._source, row, value)} of {self.source_name!r} has changed since it was scanned: "
                        "leave the files alone while training, or start again."
                    )
                pixels[position, :height, :width] = picture.pixels
                if masks is not None and picture.mask is not None:
                    masks[position, :height, :width] = picture.mask


def open_store(
    source: Source,
    *,
    image_size: int,
    shorter_side: int | None = None,
    cache_budget: int,
    num_workers: int,
    progress: bool,
    cache_dir: Path | None = None,
    limit_images: int | None = None,
    allow_unlabelled: bool = False,
) -> tuple[PictureStore, ScanReport]:
    """Decode and scan ``source`` once, or find that this was done before.

    Pictures are stored with the shorter side at most ``shorter_side`` and the longer at most twice that; masks beside
    them in the same size, each pixel with the class of the nearest one.
    Of processes that open the same store at the same time, one builds it and the others wait.

    Args:
        source: what to read; not a streaming one.
        image_size: side of the pictures in training.
        shorter_side: to which pictures are shrunk, none is enlarged; 1.15 times ``image_size`` if None.
        cache_budget: most bytes of pixels and masks to keep on disk; beyond it both are decoded when they are needed.
        num_workers: decoding threads. The result does not depend on it.
        progress: whether to show a progress bar.
        cache_dir: where stores are kept; ``tpssl_hf/pictures`` below ``HF_HOME`` if None.
        limit_images: use only so many pictures, drawn at random with a seed that never changes.
        allow_unlabelled: whether a label may be -1 or None.

    Raises:
        InputError: if more than 5 % of the pictures or their masks cannot be read, a label or mask is illegal or the
            disk is full.
    """
    if isinstance(source.dataset, datasets.IterableDataset):
        raise InputError(f"{source.name!r} is streamed and cannot be stored: turn streaming off.")
    rows = _choose_rows(len(source.dataset), limit_images, source.name)
    if shorter_side is None:
        shorter_side = round(STORED_SHARE * image_size)
    elif shorter_side < 1:
        raise InputError(f"`shorter_side` is {shorter_side}: give a number of pixels from 1.")
    root = cache_dir or Path(huggingface_hub.constants.HF_HOME) / "tpssl_hf" / "pictures"
    folder = root / _key(source, shorter_side, len(rows) if len(rows) < len(source.dataset) else None)
    with _locked(folder):
        if not _is_usable(folder, cache_budget):
            build_store(
                folder,
                source,
                rows,
                shorter_side=shorter_side,
                cache_budget=cache_budget,
                num_workers=num_workers,
                progress=progress,
            )
        meta = _read_meta(folder)
        is_cached = meta["has_pixels"] and meta["pixel_bytes"] <= cache_budget
        store = PictureStore(folder, source, shorter_side=shorter_side, is_cached=is_cached, num_workers=num_workers)
    if store.labels is not None and not allow_unlabelled and (store.labels == UNLABELLED).any():
        count = int((store.labels == UNLABELLED).sum())
        raise InputError(f"{count:,} of {len(store):,} pictures of {source.name!r} have no label, and each needs one.")
    return store, _report(meta["report"])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a store, which ends with the process even if that is killed; wait for whoever holds it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"Cannot write to {folder.parent} ({error.strerror}): set `cache_dir` to another folder."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def as_pictures(
    pixels: np.ndarray, sizes: np.ndarray, index: np.ndarray, epoch: np.ndarray, masks: np.ndarray | None = None
) -> Pictures:
    """Return the batch of padded pixels (B, H, W, 3), sizes (B, 2), index (B,), epoch (B,) and masks (B, H, W)."""
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (sizes, index, epoch)]
    classes = None if masks is None else torch.from_numpy(masks)
    return Pictures(torch.from_numpy(pixels), numbers[0], numbers[1], numbers[2], classes)


def _choose_rows(total: int, limit: int | None, name: str) -> np.ndarray:
    """Return the rows (N,) to use, in ascending order: all, or a random subset, so that sorted classes all remain."""
    if total == 0:
        raise InputError(f"{name!r} holds no pictures.")
    if limit is not None and limit < 1:
        raise InputError(f"`limit_images` is {limit}: give a number from 1, or leave it out for all pictures.")
    if limit is None or limit >= total:
        return np.arange(total)
    return np.sort(np.random.Generator(np.random.Philox(SUBSET_SEED)).permutation(total)[:limit])


def _key(source: Source, shorter_side: int, limit: int | None) -> str:
    """Return a name that is different whenever the stored numbers might be."""
    parts = [FORMAT_VERSION, PIL.__version__, source.fingerprint, source.image_column, source.label_column]
    parts += [source.class_names, shorter_side, limit]
    if source.masks is not None:
        parts += [MASK_FORMAT_VERSION, source.mask_column, asdict(source.masks)]
    parts_text = json.dumps(parts)
    return hashlib.sha256(parts_text.encode()).hexdigest()[:32]


def _is_usable(folder: Path, cache_budget: int) -> bool:
    """Return whether ``folder`` is a complete store that holds the pixels or could not within the budget."""
    if not (folder / "meta.json").exists():
        return False
    meta = _read_meta(folder)
    if meta["has_pixels"]:
        return (folder / "pixels.bin").stat().st_size == int(meta["pixel_bytes"])
    return bool(meta["pixel_bytes"] > cache_budget)


def _read_meta(folder: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def _report(stored: dict[str, Any]) -> ScanReport:
    return ScanReport(**stored | {"heights": tuple(stored["heights"]), "widths": tuple(stored["widths"])})
