"""One row of a data set decoded: its image, and the mask beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpssl_hf.data import reading
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.masks import decode_mask, shrink_mask
from tpssl_hf.data.reading import UPRIGHT, Reduced, UnreadableImage
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

SWAPPING = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
# What brings stored pixels of each EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: the image.
        mask: (h, w) uint8 class numbers, 255 for pixels to ignore; or None for an image without a mask.
        drawn_on: for a mask without an EXIF orientation beside an image that is turned by one: ``image`` (as it is
            shown) or ``stored pixels``, with ``, by size`` where that decided it; or ``ambiguous``.
    """

    image: Reduced
    mask: np.ndarray | None = None
    drawn_on: str | None = None


def decode_row(
    source: Source,
    row: int,
    value: dict[str, Any] | None,
    mask_value: dict[str, Any] | None,
    shorter_side: int,
    wide_range: Range | None,
) -> Decoded | UnreadableImage:
    """Decode the image of a row and its mask, or tell which of the two cannot be read.

    Args:
        source: what both were read from.
        row: number in its data set.
        value: the encoded image.
        mask_value: the encoded mask; empty for an image without one.
        shorter_side: to which both are shrunk, the mask by the nearest pixel.
        wide_range: see :func:`tpssl_hf.data.reading.decode_image`.

    Raises:
        InputError: if the mask does not suit the classes or the image.
    """
    image = decode_or_reason(value, shorter_side, wide_range)
    if isinstance(image, UnreadableImage):
        return image
    if source.masks is None or mask_value is None or mask_value == {"bytes": None, "path": None}:
        return Decoded(image)
    where = describe_location(source, row, mask_value)
    try:
        mask = decode_mask(mask_value, source.masks, where)
        drawn_on = None
        if image.orientation != UPRIGHT and _orientation_of(mask_value) == UPRIGHT:
            drawn_on = _drawn_on(mask, image, source.masks.orientation)
    except UnreadableImage as reason:
        return UnreadableImage(f"its mask {where}: {reason}")
    if drawn_on is not None and drawn_on.startswith("stored"):
        mask = np.array(Image.fromarray(mask).transpose(TURNS[image.orientation]))
    if mask.shape != (image.height, image.width):
        raise InputError(
            f"Mask {where} is {mask.shape[1]} x {mask.shape[0]} pixels and its image "
            f"{describe_location(source, row, value)} "
            f"{image.width} x {image.height}; both must be of the same size: resize the mask by nearest neighbor, or "
            "pair the files rightly."
        )
    return Decoded(image, shrink_mask(mask, image.pixels.shape[:2]), drawn_on)


def _orientation_of(value: dict[str, Any]) -> int:
    with reading.opened_image(value, reading.PIXEL_LIMIT) as image:
        return reading.orientation_of(image)


def _drawn_on(mask: np.ndarray, image: Reduced, asked: str | None) -> str:
    """Return what a mask (H, W) was drawn on, see ``Decoded.drawn_on``: by its size, else as ``asked``."""
    if image.orientation in SWAPPING and image.height != image.width:
        return "stored pixels, by size" if mask.shape == (image.width, image.height) else "image, by size"
    return AMBIGUOUS if asked is None else {"stored": "stored pixels", "image": "image"}[asked]


def decode_or_reason(value: Any, shorter_side: int, wide_range: Range | None) -> Reduced | UnreadableImage:
    """Return what ``reading.decode_reduced`` returns, or the reason why it does not."""
    try:
        return reading.decode_reduced(value, shorter_side, wide_range=wide_range)
    except UnreadableImage as reason:
        return reason


def describe_location(source: Source, row: int, value: dict[str, Any] | None) -> str:
    """Return where an image stands, for people: its name below the source's folder, or its row and its own name."""
    if value is None or value["path"] is None:
        return f"row {row}"
    path = Path(value["path"])
    if source.folder is not None and path.is_relative_to(source.folder):
        return str(path.relative_to(source.folder))
    return f"row {row} ({path.name})"
