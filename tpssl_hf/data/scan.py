"""One look at every picture and label before training: decoding that is safe and right, and the report of what it met.

Everything is decoded by Pillow, because a damaged PNG ends the process in torchvision's decoder. Pictures that cannot
be decoded are quarantined with a reason; none is ever repaired or replaced by a neighbour.
"""

import json
import stat
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tpssl_hf.augment.shrinking import reduced_size, shrunk
from tpssl_hf.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
Image.init()  # now: threads that open their first picture together would find the list of formats half-filled
PIXEL_LIMIT = 100_000_000
LARGE_PICTURE = 16_000_000  # pixels; larger ones are decoded one at a time
MAX_BAD_SHARE = 0.05
UNLABELLED = -1
GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_large_picture = Lock()


class UnreadablePicture(Exception):
    """A picture that is quarantined; the message is the reason."""


def decode_picture(value: Any, *, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB, upright, in its full size.

    The first frame stands for an animation. Transparency is laid over white. 16-bit grey is scaled by 255 / 65535;
    of other wide grey values those within 0..255 are kept (floats within 0..1 are multiplied by 255), whole numbers
    within 0..65535 are taken as 16-bit, and anything else is stretched from its minimum to its maximum.

    Args:
        value: path, bytes of a file, ``{"bytes": ..., "path": ...}`` or a Pillow picture.
        pixel_limit: most pixels a picture may claim to have; checked before any is decoded.

    Raises:
        UnreadablePicture: if it is not exactly a picture: damaged, cut short, too large, missing.
    """
    return decode_reduced(value, None, pixel_limit=pixel_limit)[0]


def decode_reduced(
    value: Any, shorter_side: int | None, *, pixel_limit: int = PIXEL_LIMIT
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode as ``decode_picture`` does and shrink to ``reduced_size``.

    Returns:
        The (h, w, 3) uint8 pixels, and the height and width before shrinking.
    """
    with opened_picture(value, pixel_limit) as picture:
        return _decode(picture, shorter_side)


@contextmanager
def opened_picture(value: Any, pixel_limit: int) -> Iterator[Image.Image]:
    """Open a picture, still undecoded; whatever goes wrong then or inside the block is an ``UnreadablePicture``."""
    try:
        with _opened(value, pixel_limit) as picture:
            yield picture
    except (UnreadablePicture, MemoryError):
        raise
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


def _decode(picture: Image.Image, shorter_side: int | None) -> tuple[np.ndarray, tuple[int, int]]:
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
        colour = _to_rgb(picture)
        if shorter_side is not None:
            colour = shrunk(colour, reduced_size(height, width, shorter_side))
        return np.array(colour), (height, width)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in GREY_MODES:
        return Image.fromarray(_wide_grey_to_bytes(picture)).convert("RGB")
    if picture.has_transparency_data:
        covered = Image.new("RGB", picture.size, "white")
        with_alpha = picture.convert("RGBA")
        covered.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return covered
    return picture.convert("RGB")


def _wide_grey_to_bytes(picture: Image.Image) -> np.ndarray:
    """Scale (H, W) grey values of more than eight bits to uint8, as ``decode_picture`` says."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadablePicture("holds values that are not finite")
    low, high = values.min(), values.max()
    # Pillow hands out 16-bit PGM as 32-bit integers that it has already scaled to 0..65535
    is_16_bit = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")
    if is_16_bit or (picture.mode == "I" and low >= 0 and 255 < high <= 65535):
        values = values * (255 / 65535)
    elif picture.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return np.round(values).astype(np.uint8)


def check_labels(values: list[Any], wheres: list[str], class_names: tuple[str, ...] | None) -> np.ndarray:
    """Return labels (N,) int64, with -1 for None.

    Args:
        values: what the label column holds.
        wheres: where each value stands, for the error message.
        class_names: the classes, or None if their number is unknown.

    Raises:
        InputError: if a label is no whole number, or no class.
    """
    legal = "a whole number from 0" + (f" to {len(class_names) - 1}" if class_names is not None else "")
    for value, where in zip(values, wheres, strict=True):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        too_large = is_whole and class_names is not None and value >= len(class_names)
        if value is not None and (not is_whole or value < UNLABELLED or too_large):
            raise InputError(
                f"The label of {where} is {value!r}; a label must be {legal}, or -1 or None for an unlabelled picture."
            )
    return np.array([UNLABELLED if value is None else value for value in values], dtype=np.int64)


@dataclass(frozen=True)
class ScanReport:
    """What a look at every picture found.

    Attributes:
        dataset: short name of the data set.
        pictures: how many pictures can be used.
        bad: ``where`` and ``reason`` of each quarantined picture.
        heights: least, median and greatest height before shrinking.
        widths: least, median and greatest width before shrinking.
        labels: how many pictures have each label (``unlabelled`` for none); empty without a label column.
        duplicates: how many pictures have exactly the pixels of an earlier one, as they are stored.
        seconds: how long the scan took.
        masks: how many pictures have a mask; None for data without masks.
        pixel_shares: share of each class, and of ``ignored`` ones, among the pixels of all masks as they are stored.
    """

    dataset: str
    pictures: int
    bad: list[dict[str, str]]
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    labels: dict[str, int]
    duplicates: int
    seconds: float
    masks: int | None = None
    pixel_shares: dict[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        """Return the report in a few lines for people."""
        lines = [
            f"{self.dataset}: {self.pictures:,} pictures, scanned in {self.seconds:.1f} s",
            f"  height {' / '.join(map(str, self.heights))}, width {' / '.join(map(str, self.widths))} "
            "(least / median / greatest)",
        ]
        if self.labels:
            shown = [f"{name} {count:,}" for name, count in list(self.labels.items())[:10]]
            more = f", and {len(self.labels) - 10} more" if len(self.labels) > 10 else ""
            lines.append(f"  labels: {', '.join(shown)}{more}")
        if self.masks is not None:
            shares = [f"{name} {share:.1%}" for name, share in self.pixel_shares.items()]
            lines.append(f"  {self.masks:,} have a mask; of its pixels {', '.join(shares)}")
        if self.duplicates:
            lines.append(f"  {self.duplicates:,} are exact copies of another picture")
        if self.bad:
            lines.append(f"  {len(self.bad):,} cannot be read and are left out: {_first_few(self.bad)}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def least_median_greatest(values: list[int]) -> tuple[int, int, int]:
    """Return the three numbers by which the report describes a list of sizes."""
    return min(values), round(statistics.median(values)), max(values)


def count_labels(labels: np.ndarray | None, class_names: tuple[str, ...] | None) -> dict[str, int]:
    """Return how many of ``labels`` (N,) are of each class, by name where names are known; a class may have none."""
    if labels is None:
        return {}
    counts = Counter(labels.tolist())
    classes = range(len(class_names)) if class_names is not None else sorted(counts.keys() - {UNLABELLED})
    named = {class_names[label] if class_names is not None else str(label): counts[label] for label in classes}
    return named | ({"unlabelled": counts[UNLABELLED]} if UNLABELLED in counts else {})


def refuse_if_many_are_bad(bad: list[dict[str, str]], total: int, name: str) -> None:
    """Raise if more than 5 % of ``total`` pictures cannot be read: then it is not the data set it is taken for."""
    if len(bad) > MAX_BAD_SHARE * total:
        raise InputError(
            f"{len(bad):,} of {total:,} pictures of {name!r} cannot be read, more than the {MAX_BAD_SHARE:.0%} that "
            f"are left out silently: {_first_few(bad)}. Repair or remove them."
        )


def _first_few(bad: list[dict[str, str]]) -> str:
    shown = "; ".join(f"{entry['where']}: {entry['reason']}" for entry in bad[:5])
    return shown + ("; ..." if len(bad) > 5 else "")
