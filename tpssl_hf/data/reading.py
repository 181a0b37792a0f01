"""Decoding that is safe and right: from the file of an image to 8-bit RGB pixels, or the reason why there are none.

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
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from tpssl_hf.data.conversion import NotFinite, Range, to_rgb
from tpssl_hf.data.plugins import HEAD, PLUGINS, jxl_size, kind_of, load_plugins
from tpssl_hf.models.shrinking import reduced_size, shrunk

PLUGINS_IN_USE = load_plugins()
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", *PLUGINS_IN_USE)
FORMATS += ("AVIF",) if features.check("avif") else ()
Image.init()  # now: threads that open their first image together would find the list of formats half-filled
PIXEL_LIMIT = 100_000_000
LARGE_IMAGE = 16_000_000  # pixels; larger ones are decoded one at a time
UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is shown

_large_image = Lock()


class UnreadableImage(Exception):
    """An image that is quarantined; the message is the reason."""


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


def decode_image(value: Any, *, pixel_limit: int = PIXEL_LIMIT, wide_range: Range | None = None) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8 RGB, upright, in its full size.

    The first frame stands for an animation or several pages. Transparency is laid over white. Gray values of more
    than eight bits are scaled by :mod:`tpssl_hf.data.conversion`.

    Args:
        value: path, bytes of a file, ``{"bytes": ..., "path": ...}`` or a Pillow image.
        pixel_limit: most pixels an image may claim to have; checked before any is decoded.
        wide_range: gray values of more than eight bits that become black and white (``wide_range`` of the scan of the
            data set it belongs to); decided from this image alone if None.

    Raises:
        UnreadableImage: if it is not exactly an image: damaged, cut short, too large, missing.
    """
    return decode_reduced(value, None, pixel_limit=pixel_limit, wide_range=wide_range).pixels


def decode_reduced(
    value: Any, shorter_side: int | None, *, pixel_limit: int = PIXEL_LIMIT, wide_range: Range | None = None
) -> Reduced:
    """Decode as ``decode_image`` does and shrink to ``reduced_size``."""
    with opened_image(value, pixel_limit) as image:
        return _decode(image, shorter_side, wide_range)


@contextmanager
def opened_image(value: Any, pixel_limit: int) -> Iterator[Image.Image]:
    """Open an image, still undecoded; whatever goes wrong then or inside the block is an ``UnreadableImage``."""
    try:
        with _opened(value, pixel_limit) as image:
            yield image
    except (UnreadableImage, MemoryError):
        raise
    except NotFinite as error:
        raise UnreadableImage(str(error)) from error
    except UnidentifiedImageError as error:  # its own message holds a memory address
        raise UnreadableImage(f"not an image in a format that is read here ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error
    except Exception as error:  # codecs raise anything at all on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def one_at_a_time(size: tuple[int, int]) -> AbstractContextManager[Any]:
    """Return what to hold while decoding an image: a lock if it is large, so that threads do not add up."""
    return _large_image if size[0] * size[1] > LARGE_IMAGE else nullcontext()


@contextmanager
def _opened(value: Any, pixel_limit: int) -> Iterator[Image.Image]:
    if isinstance(value, Image.Image):
        yield value.copy()
        return
    with _byte_stream(value) as stream:
        kind = kind_of(stream.read(HEAD))
        if kind and kind not in FORMATS:
            plugin = PLUGINS[kind]
            raise UnreadableImage(f"{plugin.title}, which Pillow reads by a plug-in: pip install {plugin.package}")
        stream.seek(0)
        try:
            image = _opened_jxl(stream.read(), pixel_limit) if kind == "JXL" else Image.open(stream, formats=FORMATS)
        except (UnidentifiedImageError, RuntimeError) as error:  # which plug-ins raise at damaged files
            if kind is None:
                raise
            title = PLUGINS[kind].title
            raise UnreadableImage(f"a damaged {title} file, or a kind of {title} that is not read") from error
        _check_size(image.size, pixel_limit)
        if image.format == "PNG":  # decoding alone accepts some damaged files; verifying compares the checksums
            image.verify()
            stream.seek(0)
            image = Image.open(stream, formats=FORMATS)
        with image:
            yield image


def _opened_jxl(content: bytes, pixel_limit: int) -> Image.Image:
    """Open a JPEG XL file, whose pixels its plug-in decodes at once and turns upright, whatever EXIF says."""
    size = jxl_size(content)
    _check_size(size, pixel_limit)
    with one_at_a_time(size):
        image = Image.open(BytesIO(content), formats=["JXL"])
    if not getattr(image, "jpeg", False):  # what was a JPEG file is decoded as one, and still to be turned
        image.info.pop("exif", None)
    return image


def _check_size(size: tuple[int, int], pixel_limit: int) -> None:
    width, height = size
    if width * height > pixel_limit:
        raise UnreadableImage(f"{width} x {height} pixels, of which {pixel_limit:,} are allowed")


def _byte_stream(value: Any) -> IO[bytes]:
    if isinstance(value, dict):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if value is None:
        raise UnreadableImage("empty cell")
    if isinstance(value, bytes):
        if not value:
            raise UnreadableImage("empty file")
        return BytesIO(value)
    status = Path(value).stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnreadableImage("not a regular file")
    if status.st_size == 0:
        raise UnreadableImage("empty file")
    return Path(value).open("rb")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that is not loaded yet, from 1 (as it is shown) to 8."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return orientation if orientation in range(1, 9) else UPRIGHT


def _has_more_frames(image: Image.Image) -> bool:
    # what follows the image in a JPEG file is its own thumbnail or depth
    return image.format != "MPO" and getattr(image, "is_animated", False)


def _decode(image: Image.Image, shorter_side: int | None, wide_range: Range | None) -> Reduced:
    mode, orientation, has_more_frames = image.mode, orientation_of(image), _has_more_frames(image)
    width, height = image.size
    if shorter_side is not None and image.format in ("JPEG", "MPO"):  # HEIC would give a thumbnail: other pixels
        reduced = reduced_size(height, width, shorter_side)
        image.draft(None, (2 * reduced[1], 2 * reduced[0]))  # decodes to a half, quarter or eighth much faster
    with one_at_a_time(image.size):
        image.load()
        before = image.size
        ImageOps.exif_transpose(image, in_place=True)
        if image.size != before:
            width, height = height, width
        converted = to_rgb(image, wide_range)
        color = converted.rgb
        if shorter_side is not None:
            color = shrunk(color, reduced_size(height, width, shorter_side))
        facts = (mode, orientation, has_more_frames, converted.extent, converted.differs)
        return Reduced(np.array(color), height, width, *facts)
