"""One row of a data set decoded: its picture, and the mask beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpssl_hf.data import scan
from tpssl_hf.data.masks import decode_mask, shrink_mask
from tpssl_hf.data.scan import UnreadablePicture
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError


@dataclass(frozen=True)
class Decoded:
    """A decoded picture.

    Attributes:
        pixels: (h, w, 3) uint8 as it is stored.
        height: before shrinking.
        width: before shrinking.
        mask: (h, w) uint8 class numbers, 255 for pixels to ignore; or None for a picture without a mask.
    """

    pixels: np.ndarray
    height: int
    width: int
    mask: np.ndarray | None


def decode_row(
    source: Source, row: int, value: dict[str, Any] | None, mask_value: dict[str, Any] | None, shorter_side: int
) -> Decoded | UnreadablePicture:
    """Decode the picture of a row and its mask, or tell which of the two cannot be read.

    Args:
        source: what both were read from.
        row: number in its data set.
        value: the encoded picture.
        mask_value: the encoded mask; empty for a picture without one.
        shorter_side: to which both are shrunk, the mask by the nearest pixel.

    Raises:
        InputError: if the mask does not suit the classes or the picture.
    """
    picture = decode_or_reason(value, shorter_side)
    if isinstance(picture, UnreadablePicture):
        return picture
    pixels, (height, width) = picture
    if source.masks is None or mask_value is None or mask_value == {"bytes": None, "path": None}:
        return Decoded(pixels, height, width, None)
    where = place(source, row, mask_value)
    try:
        mask = decode_mask(mask_value, source.masks, where)
    except UnreadablePicture as reason:
        return UnreadablePicture(f"its mask {where}: {reason}")
    if mask.shape != (height, width):
        raise InputError(
            f"Mask {where} is {mask.shape[1]} x {mask.shape[0]} pixels and its picture {place(source, row, value)} "
            f"{width} x {height}; both must be of the same size: resize the mask by nearest neighbour, or pair the "
            "files rightly."
        )
    return Decoded(pixels, height, width, shrink_mask(mask, pixels.shape[:2]))


def decode_or_reason(value: Any, shorter_side: int) -> tuple[np.ndarray, tuple[int, int]] | UnreadablePicture:
    """Return what ``scan.decode_reduced`` returns, or the reason why it does not."""
    try:
        return scan.decode_reduced(value, shorter_side)
    except UnreadablePicture as reason:
        return reason


def place(source: Source, row: int, value: dict[str, Any] | None) -> str:
    """Return where a picture stands, for people: its name below the source's folder, or its row and its own name."""
    if value is None or value["path"] is None:
        return f"row {row}"
    path = Path(value["path"])
    if source.folder is not None and path.is_relative_to(source.folder):
        return str(path.relative_to(source.folder))
    return f"row {row} ({path.name})"
