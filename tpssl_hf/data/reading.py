"""Decoding that is safe and right: from the file of a picture to 8-bit RGB pixels, or the reason why there are none.

Everything is decoded by Pillow, because a damaged PNG ends the process in torchvision's decoder.
"""

import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tpssl_hf.data.conversion import NotFinite, Range, to_rgb
from tpssl_hf.models.shrinking import reduced_size, shrunk

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()  # now: threads that open their first picture together would find the list of formats half-filled
PIXEL_LIMIT = 100_000_000
LARGE_PICTURE = 16_000_000  # pixels; larger ones are decoded one at a time
UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is shown

_large_picture = Lock()


class UnreadablePicture(Exception):
    """A picture that is quarantined; the message is the reason."""


@dataclass(frozen=True)
class Reduced:
    """An image as it is stored, and what was met in decoding it.

    Attributes:
        pixels: (h, w, 3) uint8 RGB, upright, shrunk.
        height: upright, before shrinking.
        width: likewise.
        mode: Pillow's, of the file.
        orientation: EXIF orientation of the file, 1 to 8; 1 for none.
        has_more_frames: whether the file holds more frames or pages than the first, which was decoded.
        extent: least and greatest gray value if they have more than eight bits, else None.
        differs: why plain pipelines see other pixels, or None where they do not.
    """

    pixels: np.ndarray
    height: int
    width: int
    mode: str
    orientation: int
    has_more_frames: bool
    extent: Range | None
    differs: str | None


def decode_picture(value: Any, *, pixel_limit: int = PIXEL_LIMIT, wide_range: Range | None = None) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB, upright, in its full size.

    The first frame stands for an animation or several pages. Transparency is laid over white. Gray values of more
    than eight bits are scaled by :mod:`tpssl_hf.data.conversion`.

    Args:
        value: path, bytes of a file, ``{"bytes": ..., "path": ...}`` or a Pillow picture.
        pixel_limit: most pixels a picture may claim to have; checked before any is decoded.
        wide_range: gray values of more than eight bits that become black and white (``wide_range`` of the scan of the
            data set it belongs to); decided from this picture alone if None.

    Raises:
        UnreadablePicture: if it is not exactly a picture: damaged, cut short, too large, missing.
    """
    return decode_reduced(value, None, pixel_limit=pixel_limit, wide_range=wide_range).pixels


def decode_reduced(
    value: Any, shorter_side: int | None, *, pixel_limit: int = PIXEL_LIMIT, wide_range: Range | None = None
) -> Reduced:
    """Decode as ``decode_picture`` does and shrink to ``reduced_size``."""
    with opened_picture(value, pixel_limit) as picture:
        return _decode(picture, shorter_side, wide_range)


@contextmanager
def opened_picture(value: Any, pixel_limit: int) -> Iterator[Image.Image]:
    """Open a picture, still undecoded; whatever goes wrong then or inside the block is an ``UnreadablePicture``."""
    try:
        with _opened(value, pixel_limit) as picture:
            yield picture
    except (UnreadablePicture, MemoryError):
        raise
    except NotFinite as error:
        raise UnreadablePicture(str(error)) from error
    except UnidentifiedImageError as error:  # its own message holds a memory address
        raise UnreadablePicture(f"not a picture in a format that is read here ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise UnreadablePicture(error.strerror or str(error)) from error
    except Exception as error:  # codecs raise anything at all on damaged files
        raise UnreadablePicture(f"{type(error).__name__}: {error}") from error


def one_at_a_time(picture: Image.Image) -> AbstractContextManager[Any]:
    """Return what to hold while decoding ``picture``: a lock if it is large, so that threads do not add up."""
    return _large_picture if picture.width * picture.height > LARGE_PICTURE else nullcontext()


@contextmanager
def _opened(value: Any, pixel_limit: int) -> Iterator[Image.Image]:
    if isinstance(value, Image.Image):
        yield value.copy()
        return
    with _byte_stream(value) as stream:
        picture = Image.open(stream, formats=FORMATS)
        if picture.width * picture.height > pixel_limit:
            raise UnreadablePicture(f"{picture.width} x {picture.height} pixels, of which {pixel_limit:,} are allowed")
        if picture.format == "PNG":  # decoding alone accepts some damaged files; verifying compares the checksums
            picture.verify()
            stream.seek(0)
            picture = Image.open(stream, formats=FORMATS)
        with picture:
            yield picture


def _byte_stream(value: Any) -> IO[bytes]:
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None:
        raise UnreadablePicture("empty cell")
    if isinstance(value, bytes):
        if not value:
            raise UnreadablePicture("empty file")
        return BytesIO(value)
    status = Path(value).stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnreadablePicture("not a regular file")
    if status.st_size == 0:
        raise UnreadablePicture("empty file")
    return Path(value).open("rb")


def orientation_of(picture: Image.Image) -> int:
    """Return the EXIF orientation of a picture that is not loaded yet, from 1 (as it is shown) to 8."""
    orientation = picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if orientation in range(1, 9) else UPRIGHT


def _has_more_frames(picture: Image.Image) -> bool:
    # what follows the picture in a JPEG file is its own thumbnail or depth
    return picture.format != "MPO" and getattr(picture, "is_animated", False)


def _decode(picture: Image.Image, shorter_side: int | None, wide_range: Range | None) -> Reduced:
    mode, orientation, has_more_frames = picture.mode, orientation_of(picture), _has_more_frames(picture)
    width, height = picture.size
    if shorter_side is not None:
        reduced = reduced_size(height, width, shorter_side)
        picture.draft(None, (2 * reduced[1], 2 * reduced[0]))  # JPEG decodes to a half, quarter or eighth much faster
    with one_at_a_time(picture):
        picture.load()
        before = picture.size
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.size != before:
            width, height = height, width
        converted = to_rgb(picture, wide_range)
        colour = converted.rgb
        if shorter_side is not None:
            colour = shrunk(colour, reduced_size(height, width, shorter_side))
        facts = (mode, orientation, has_more_frames, converted.extent, converted.differs)
        return Reduced(np.array(colour), height, width, *facts)
