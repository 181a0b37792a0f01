"""From whatever an image file holds to 8-bit RGB: one rule for a data set, and where plain pipelines would differ.

Plain pipelines (transformers' ``load_image``) turn an image upright by its EXIF orientation and call Pillow's
``convert("RGB")``, which clips wide gray values at 255 and drops transparency. Clipped, most 16-bit images are white;
and what is transparent may have any color. So both are read otherwise here, and such images are counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops

Range = tuple[float, float]

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # gray values of more than eight bits
SIXTEEN_BITS: Range = (0.0, 65535.0)
NATURAL_TOPS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of shares, and of 8, 10, 12, 14 and 16 bits
WIDE, TRANSPARENT = "more than 8 bits", "transparency"


class NotFinite(ValueError):
    """Gray values that are infinite or not numbers."""


@dataclass(frozen=True)
class Converted:
    """An image in 8-bit RGB.

    Attributes:
        rgb: the image.
        extent: least and greatest gray value if it has more than eight bits, else None.
        differs: why plain pipelines see other pixels, or None where they do not.
    """

    rgb: Image.Image
    extent: Range | None = None
    differs: str | None = None


def common_range(extents: Iterable[Range]) -> Range | None:
    """Return the gray values that become black and white in all images of a data set; None if none are wide.

    They are decided from all images together, so that a value means the same gray in each: 0 and the greatest value
    of 8, 10, 12, 14 or 16 bits (or 1) if the data set takes up more than half of that range, which then is the same
    for other parts of the same data; otherwise the least and the greatest value there is, for the range of the type
    would leave few of the 256 levels.

    Args:
        extents: least and greatest value of each image that has more than eight bits.
    """
    ends = list(extents)
    if not ends:
        return None
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    for top in NATURAL_TOPS:
        if low >= 0 and high <= top and high - low > top / 2:
            return 0.0, top
    return low, high


def to_rgb(image: Image.Image, wide_range: Range | None) -> Converted:
    """Convert a loaded image to 8-bit RGB, transparency laid over white.

    Args:
        image: of any of Pillow's modes.
        wide_range: gray values of more than eight bits that become black and white, those beyond are clipped; by
            :func:`common_range` of this image alone if None.

    Raises:
        NotFinite: if wide gray values are not finite.
    """
    if image.mode in WIDE_MODES:
        return _wide_to_rgb(image, wide_range)
    if not image.has_transparency_data:
        return Converted(image.convert("RGB"))
    with_alpha = image.convert("RGBA")
    covered = Image.new("RGB", image.size, "white")
    covered.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return Converted(covered, differs=None if _reads_alike(covered, image) else TRANSPARENT)


def _wide_to_rgb(image: Image.Image, wide_range: Range | None) -> Converted:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise NotFinite("holds values that are not finite")
    clear = values == image.info.get("transparency")  # PNG may name one value that is transparent
    opaque = values[~clear]
    extent = (float(opaque.min()), float(opaque.max())) if opaque.size else None
    low, high = wide_range or (common_range([extent]) if extent else None) or SIXTEEN_BITS
    shares = (np.clip(values, low, high) - low) / (high - low) if high > low else np.zeros_like(values)
    gray = np.round(shares * 255).astype(np.uint8)
    gray[clear] = 255
    rgb = Image.fromarray(gray).convert("RGB")
    return Converted(rgb, extent, None if _reads_alike(rgb, image) else WIDE)


def _reads_alike(rgb: Image.Image, image: Image.Image) -> bool:
    """Return whether plain conversion gives ``rgb``, but for rounding."""
    difference = ImageChops.difference(rgb, image.convert("RGB"))
    return bool(np.asarray(difference).max() <= 1)
