"""Reading of uploaded images: whatever a visitor sends is either an image to compute with or one sentence.

The order is that of the cost: size of the file, header, number of pixels, and only then the pixels themselves.

``gradio.Image`` opens an upload with Pillow before the app sees it, whatever its ``type``, and that is before any of
these checks; the app has to take the path of the file untouched, with ``preprocess=False`` at its events.
"""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tpssl_hf.data.plugins import HEAD, PLUGINS, kind_of
from tpssl_hf.data.scan import decode_image

MAX_BYTES = 8 * 2**20
MAX_PIXELS = 20_000_000
MAX_RATIO = 10  # of the sides: a thin image grows without bounds when its shorter side is brought to a model's
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_EXIF = 2**16  # bytes, as much as a JPEG's segment holds; Pillow copies it once for each of the tags it claims
EXIF = ("exif", "Raw profile type exif")  # names under which Pillow keeps it
EXIF_START = b"Exif\0\0"
# What starts a file, what it may repeat for a few bytes at great cost, and how often it may. The limits are several
# times what honest files need, or contain by chance.
REPEATED = (
    (b"\xff\xd8", b"\xff\xda", 100),  # scans of a JPEG: each is a pass over all pixels
    (b"\x89PNG", b"iCCP", 1),  # color profiles, each unpacked to a megabyte
    (b"GIF8", b"!\xfe", 1000),  # comments: each copies all before it
)

MANY_BYTES = f"The file is larger than {MAX_BYTES // 2**20} MB, the most that is read here; upload a smaller one."
EMPTY = "The file is empty; save the image anew and upload that."
NO_FILE = "There is no such upload any more; upload the image again."
NO_IMAGE = "The file is not an image in a format that is read here, which are PNG, JPEG, WebP, GIF and BMP."
SVG = "The file is an SVG drawing, which has no pixels; export it as PNG and upload that."
PDF = "The file is a PDF document; save the image in it as PNG or JPEG and upload that."
TIFF = "The file is a TIFF, which browsers cannot show; save it as PNG and upload that."
OF_PLUGIN = "The file is in the format {title}, which is not read here; save it as JPEG or PNG and upload that."
MANY_PIXELS = f"The image has more than {MAX_PIXELS // 10**6} million pixels, the most that is read here; shrink it."
ELONGATED = f"One side of the image is more than {MAX_RATIO} times as long as the other; cut out a part of it."
ANIMATED = "The image is animated; upload a still one."
DAMAGED = "The image is damaged, cut short or stored in a rare way; save it anew as PNG or JPEG and upload that."

# The check here is stricter and answers the visitor; Pillow's own warning would only fill the log.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class UploadError(ValueError):
    """An upload that is not computed with; the message is one sentence for the visitor, without any path."""


def read_image(path: str | Path) -> Image.Image:
    """Read an uploaded image as RGB, upright, its transparency laid over white and 16-bit gray scaled to 8 bits.

    Args:
        path: the file; its name says nothing about its format.

    Returns:
        An image of at most ``MAX_PIXELS`` pixels, one side at most ``MAX_RATIO`` times as long as the other.

    Raises:
        UploadError: if the file is too large, empty, gone, not an image, damaged, animated, too long and thin, or
            of too many pixels; the last is found out before any pixel is decoded.
    """
    content = _content(path)
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            _check_header(image)
            image.load()
            if max(len(image.info.get(name, "")) for name in EXIF) > MAX_EXIF:
                raise UploadError(DAMAGED)
            return Image.fromarray(decode_image(image))
    except UploadError:
        raise
    except UnidentifiedImageError as error:
        raise UploadError(_what_it_is(content)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UploadError(MANY_PIXELS) from error
    except Exception as error:  # codecs raise anything at all on damaged files
        raise UploadError(DAMAGED) from error


def _content(path: str | Path) -> bytes:
    """Return the bytes of a file whose size is right and that does not repeat what is costly."""
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UploadError(NO_FILE) from error
    if len(content) > MAX_BYTES:
        raise UploadError(MANY_BYTES)
    if not content:
        raise UploadError(EMPTY)
    for start, mark, most in REPEATED:
        if content.startswith(start) and content.count(mark) > most:
            raise UploadError(DAMAGED)
    if not content.startswith(b"\xff\xd8"):
        return content
    # Pillow joins all EXIF segments of a JPEG, and reads them before anything can be checked: leave it the first one
    before, mark, after = content.partition(EXIF_START)
    return before + mark + after.replace(EXIF_START, b"unread")


def _check_header(image: Image.Image) -> None:
    """Raise if the header of an image says that it is not to be decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UploadError(MANY_PIXELS)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UploadError(ELONGATED)
    # telephones put a preview or a second exposure behind a photograph, which Pillow calls MPO and animated
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise UploadError(ANIMATED)


def _what_it_is(content: bytes) -> str:
    start = content[:1024].lower()
    if start.startswith((b"ii*\0", b"mm\0*")):
        return TIFF
    if b"%pdf-" in start:
        return PDF
    if kind := kind_of(content[:HEAD]):
        return OF_PLUGIN.format(title=PLUGINS[kind].title)
    return SVG if b"<svg" in start else NO_IMAGE
