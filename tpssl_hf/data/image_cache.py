"""Decoded images that are read by number: from one flat file, or decoded on demand where that would be too large."""

import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import torch

from tpssl_hf.data.conversion import Range
from tpssl_hf.data.decode import decode_row, describe_location
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache_folder import (
    choose_rows,
    fingerprint_of,
    is_usable,
    key_of,
    locked,
    read_meta,
    report_of,
)
from tpssl_hf.data.image_cache_writer import CHUNK, EncodedImages, write_image_cache
from tpssl_hf.data.masks import IGNORED, color_map, count_classes
from tpssl_hf.data.reading import UnreadableImage
from tpssl_hf.data.scan import UNLABELED, ScanReport
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

# Shorter side that is stored, in sides of a view. Crops take 8 to 100 % of the area: of a square image 10 % of them
# are enlarged, where 1.15 would leave 85 %; and whole images lose next to nothing by being shrunk in two steps. One
# default for all recipes, so that pretraining, verdict and finetuning on the same images share one store.
CACHE_SCALE = 2.5


class ImageCache:
    """The usable images of a data set by number; the same pixels whether cached or decoded on demand.

    Pixels are read with ``preadv`` straight into the batch. A memory map would do as well, but the pages it has
    touched count as memory of the process, which would then grow until it is as large as the store.

    Attributes:
        rows: (N,) int64, the row of each image in its data set.
        labels: (N,) int64 with -1 for an unlabeled image, or None without a label column.
        class_names: names in the order of the class numbers, or None; for masks whose classes have no names, the
            numbers up to the highest that was seen.
        palette: RGB color in which to show each class of the masks; None for data without masks.
        has_mask: (N,) bool, whether an image has a mask.
        fingerprint: of the files, the rows that are used and the stored size; a copy of the files shares it.
        key: the name of its folder, which is another one if a file was changed since.
        source_name: short name of the data set.
        is_cached: whether pixels come from the cache.
        full_sizes: (N, 2) int64, height and width of each image before it was shrunk.
        wide_range: gray values of more than eight bits that are black and white, to be used for other images of the
            run too; None if none of these has such values.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        *,
        shorter_side: int,
        wide_range: Range | None,
        is_cached: bool,
        num_workers: int,
    ) -> None:
        self.rows: np.ndarray = np.load(folder / "rows.npy", allow_pickle=False)
        self._sizes: np.ndarray = np.load(folder / "sizes.npy", allow_pickle=False)
        self.full_sizes: np.ndarray = np.load(folder / "full_sizes.npy", allow_pickle=False)
        self.wide_range = wide_range
        self.has_mask: np.ndarray = np.zeros(len(self.rows), dtype=bool)
        self.class_names = source.class_names
        self.palette = None
        if source.masks is not None:
            self.has_mask = np.load(folder / "has_mask.npy", allow_pickle=False)
            classes = count_classes(np.load(folder / "mask_pixels.npy", allow_pickle=False))
            self.class_names = source.class_names or tuple(str(number) for number in range(classes))
            self.palette = source.masks.palette or color_map(classes)
        bytes_of_each = self._sizes.prod(axis=1) * (3 + self.has_mask)
        self._offsets: np.ndarray = np.concatenate([[0], np.cumsum(bytes_of_each)])
        self._source = source
        self._shorter_side = shorter_side
        self.labels = None if source.label_column is None else np.load(folder / "labels.npy", allow_pickle=False)
        self.key, self.fingerprint = folder.name, fingerprint_of(source, shorter_side, wide_range, self.rows)
        self.source_name = source.name
        self.is_cached = is_cached
        if is_cached:
            self._path = folder / "pixels.bin"
            self._file = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        else:
            self._encoded = EncodedImages(source)
            self._encoded_masks = EncodedImages(source, source.mask_column) if source.mask_column else None
            self._pool = ThreadPoolExecutor(max(1, num_workers), "tpssl-decode")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int64, height and width of each image as it is stored."""
        return self._sizes

    @property
    def shorter_sides(self) -> np.ndarray:
        """(N,) int64, the shorter side of each image as it is stored."""
        sides: np.ndarray = self._sizes.min(axis=1)
        return sides

    def encoded(self, indices: np.ndarray) -> list[dict[str, Any] | None]:
        """Return the files of the images ``indices`` (B,) as their data set holds them: ``bytes`` and ``path``."""
        return EncodedImages(self._source).read(self.rows[indices].tolist())

    def place_of(self, index: int, value: dict[str, Any] | None) -> str:
        """Return where the image ``index``, encoded as ``value``, stands, for people."""
        return describe_location(self._source, int(self.rows[index]), value)

    def gather(self, indices: np.ndarray, epoch: np.ndarray | int) -> ImageBatch:
        """Return the images ``indices`` (B,) as a batch that is marked with ``epoch``, a number or (B,)."""
        sizes = self._sizes[indices]
        height, width = sizes.max(axis=0).tolist()
        pixels = np.zeros((len(indices), height, width, 3), dtype=np.uint8)
        masks = None
        if self._source.masks is not None:
            masks = np.full((len(indices), height, width), IGNORED, dtype=np.uint8)
        if self.is_cached:
            self._read(pixels, self._offsets[indices], sizes)
            if masks is not None:
                labeled = np.flatnonzero(self.has_mask[indices])
                after_pixels = self._offsets[indices[labeled]] + sizes[labeled].prod(axis=1) * 3
                self._read([masks[position] for position in labeled], after_pixels, sizes[labeled])
        else:
            self._decode(indices, sizes, pixels, masks)
        epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), len(indices))
        return as_images(pixels, sizes, indices, epochs, masks)

    def _read(self, targets: np.ndarray | list[np.ndarray], offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Read what stands at ``offsets`` (B,) into the padded ``targets``, each (H, W) or (H, W, 3)."""
        whole, depth = (targets[0].shape[:2], targets[0].shape[2:]) if len(targets) else ((), ())
        for target, offset, (height, width) in zip(targets, offsets.tolist(), sizes.tolist(), strict=True):
            # rows of a narrower image do not lie one behind the other in the padded batch
            part = target if (height, width) == whole else np.empty((height, width, *depth), dtype=np.uint8)
            if self._read_at(offset, part) != part.nbytes:
                raise InputError(f"The image cache {self.key} of {self.source_name!r} is damaged: remove it.")
            if part is not target:
                target[:height, :width] = part

    def _read_at(self, offset: int, target: np.ndarray) -> int:
        """Fill ``target`` with the bytes from ``offset`` on, in any thread, and return how many there were."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file, [target.data], offset)
        with self._path.open("rb", buffering=0) as file:  # Windows
            file.seek(offset)
            return file.readinto(target.data)

    def _decode(self, indices: np.ndarray, sizes: np.ndarray, pixels: np.ndarray, masks: np.ndarray | None) -> None:
        for start in range(0, len(indices), CHUNK):
            chosen = indices[start : start + CHUNK]
            rows = self.rows[chosen].tolist()
            values = self._encoded.read(rows)
            mask_values = self._encoded_masks.read(rows) if self._encoded_masks else [None] * len(rows)
            decoded = self._pool.map(
                lambda row, value, mask: decode_row(
                    self._source, row, value, mask, self._shorter_side, self.wide_range
                ),
                *(rows, values, mask_values),
            )
            for position, (row, value, image) in enumerate(zip(rows, values, decoded, strict=True), start):
                height, width = sizes[position].tolist()
                if (
                    isinstance(image, UnreadableImage)
                    or image.image.pixels.shape[:2] != (height, width)
                    or (image.mask is not None) != self.has_mask[indices[position]]
                ):
                    raise InputError(
                        f"{describe_location(self._source, row, value)} of {self.source_name!r} has changed "
                        "since it was scanned: "
                        "leave the files alone while training, or start again."
                    )
                pixels[position, :height, :width] = image.image.pixels
                if masks is not None and image.mask is not None:
                    masks[position, :height, :width] = image.mask


def load_image_cache(
    source: Source,
    *,
    image_size: int,
    cache_scale: float = CACHE_SCALE,
    shorter_side: int | None = None,
    wide_range: Range | None = None,
    cache_budget: int,
    num_workers: int,
    progress: bool,
    cache_dir: Path | None = None,
    limit_images: int | None = None,
    allow_unlabeled: bool = False,
) -> tuple[ImageCache, ScanReport]:
    """Decode and scan ``source`` once, or find that this was done before.

    Images are stored with the shorter side at most ``shorter_side`` and the longer at most twice that; masks beside
    them in the same size, each pixel with the class of the nearest one.
    Of processes that open the same store at the same time, one builds it and the others wait.

    Args:
        source: what to read; not a streaming one.
        image_size: side of the images in training.
        cache_scale: how many times ``image_size`` the shorter side is stored with, at most.
        shorter_side: to which images are shrunk, none is enlarged; if given, ``cache_scale`` does not count.
        wide_range: gray values of more than eight bits that become black and white, those beyond are clipped; decided
            from these images if None. Other images of a run take that of the training images.
        cache_budget: most bytes of pixels and masks to keep on disk; beyond it both are decoded when they are needed.
        num_workers: decoding threads. The result does not depend on it.
        progress: whether to show a progress bar.
        cache_dir: where stores are kept; ``tpssl_hf/images`` below ``HF_HOME`` if None.
        limit_images: use only so many images, drawn at random with a seed that never changes.
        allow_unlabeled: whether a label may be -1 or None.

    Raises:
        InputError: if more than 5 % of the images or their masks cannot be read, a label or mask is illegal, nobody
            said what masks of turned images were drawn on, or the disk is full.
    """
    if isinstance(source.dataset, datasets.IterableDataset):
        raise InputError(f"{source.name!r} is streamed and cannot be stored: turn streaming off.")
    rows = choose_rows(len(source.dataset), limit_images, source.name)
    shorter_side = stored_side(image_size, cache_scale) if shorter_side is None else _checked_side(shorter_side)
    root = cache_dir or Path(huggingface_hub.constants.HF_HOME) / "tpssl_hf" / "images"
    folder = root / key_of(source, shorter_side, wide_range, len(rows) if len(rows) < len(source.dataset) else None)
    with locked(folder):
        if not is_usable(folder, cache_budget):
            write_image_cache(
                folder,
                source,
                rows,
                shorter_side=shorter_side,
                wide_range=wide_range,
                cache_budget=cache_budget,
                num_workers=num_workers,
                progress=progress,
            )
        cache, report = _open(folder, source, shorter_side, cache_budget, num_workers)
    if not allow_unlabeled:
        _refuse_unlabeled(cache)
    return cache, report


def _open(
    folder: Path, source: Source, shorter_side: int, cache_budget: int, num_workers: int
) -> tuple[ImageCache, ScanReport]:
    """Open a cache that was written, and its report with what is true of this use of it."""
    meta = read_meta(folder)
    is_cached = meta["has_pixels"] and meta["pixel_bytes"] <= cache_budget
    known = {"cached": is_cached, "left_out": list(source.left_out), "notes": list(source.notes)}
    report = replace(report_of(meta["report"]), **known)
    cache = ImageCache(
        folder,
        source,
        shorter_side=shorter_side,
        wide_range=report.wide_range,
        is_cached=is_cached,
        num_workers=num_workers,
    )
    return cache, report


def _refuse_unlabeled(cache: ImageCache) -> None:
    count = 0 if cache.labels is None else int((cache.labels == UNLABELED).sum())
    if count:
        raise InputError(f"{count:,} of {len(cache):,} images of {cache.source_name!r} have no label; each needs one.")


def _checked_side(shorter_side: int) -> int:
    if shorter_side < 1:
        raise InputError(f"`shorter_side` is {shorter_side}: give a number of pixels from 1.")
    return shorter_side


def stored_side(image_size: int, cache_scale: float) -> int:
    """Return to how many pixels the shorter side of larger images is shrunk for views of ``image_size``.

    Raises:
        InputError: if images would be stored smaller than the views.
    """
    if not cache_scale >= 1:
        raise InputError(f"`cache_scale` is {cache_scale:g}: give a number from 1, 2.5 is usual.")
    return round(cache_scale * image_size)


def as_images(
    pixels: np.ndarray, sizes: np.ndarray, index: np.ndarray, epoch: np.ndarray, masks: np.ndarray | None = None
) -> ImageBatch:
    """Return the batch of padded pixels (B, H, W, 3), sizes (B, 2), index (B,), epoch (B,) and masks (B, H, W)."""
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (sizes, index, epoch)]
    classes = None if masks is None else torch.from_numpy(masks)
    return ImageBatch(torch.from_numpy(pixels), numbers[0], numbers[1], numbers[2], classes)
