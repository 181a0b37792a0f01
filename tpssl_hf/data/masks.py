"""What turns the file of a mask into class numbers, and the refusal of files that cannot be masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tpssl_hf.data.reading import PIXEL_LIMIT, one_at_a_time, opened_image
from tpssl_hf.errors import InputError

IGNORED = 255
ILLEGAL = -1
MAX_CLASSES = IGNORED
VALUE_MODES = ("1", "L", "P")
COLOR_MODES = ("RGB", "RGBA")
SHOWN = 8  # wrong values or colors in a message
LEAST_USED = 0.1  # share of the class numbers up to the highest that must occur where nothing says how many there are

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Masks:
    """How the masks of a data set are to be read.

    Attributes:
        class_names: names in the order of the class numbers, or None where only the masks tell how many there are.
        palette: RGB color in which to show each class, 0..255; empty without class names.
        lookup: class number of each of the 256 values of a mask: 255 for pixels to ignore, -1 for values that no mask
            may hold.
        colors: class numbers by color, for masks that are stored in colors; empty where none are known.
        orientation: what masks beside images turned by EXIF were drawn on, where sizes do not tell: the ``image`` as
            it is shown, or its ``stored`` pixels; None if nobody said.
    """

    class_names: tuple[str, ...] | None
    palette: tuple[Color, ...]
    lookup: tuple[int, ...]
    colors: tuple[tuple[Color, int], ...] = ()
    orientation: str | None = None


def numbered_masks(
    class_names: Sequence[str] | None, palette: Sequence[Color] | None = None, void: Sequence[Color] = ()
) -> Masks:
    """Return the reading of masks whose values are class numbers, or 255 for pixels to ignore.

    Args:
        class_names: at most 255 names; None if any number from 0 to 254 may be a class.
        palette: the colors in which these classes are known; masks in these colors can then be read too.
        void: further colors of such masks that stand for pixels to ignore.
    """
    count = MAX_CLASSES if class_names is None else len(class_names)
    return Masks(
        class_names=None if class_names is None else tuple(class_names),
        palette=tuple(palette or ()) or (() if class_names is None else color_map(count)),
        lookup=tuple(value if value < count or value == IGNORED else ILLEGAL for value in range(256)),
        colors=tuple((color, number) for number, color in enumerate(palette or ()))
        + tuple((color, IGNORED) for color in void),
    )


def binary_masks(threshold: int, class_names: tuple[str, str] = ("background", "foreground")) -> Masks:
    """Return the reading of black and white masks: values from ``threshold`` on are class 1, smaller ones class 0."""
    if not 1 <= threshold <= 255:
        raise InputError(f"`mask_threshold` is {threshold}: give a number from 1 to 255, such as 127.")
    return Masks(class_names, color_map(2), tuple(int(value >= threshold) for value in range(256)))


def color_map(count: int) -> tuple[Color, ...]:
    """Return ``count`` <= 256 different colors by the rule of Pascal VOC; the first is black.

    Bits 0, 1 and 2 of a class number are the highest bits of red, green and blue, bits 3, 4 and 5 the next ones, and
    so on.
    """

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * place + first) & 1) << (7 - place) for place in range(3))

    return tuple((channel(number, 0), channel(number, 1), channel(number, 2)) for number in range(count))


def decode_mask(value: Any, masks: Masks, where: str, *, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """Decode a mask to (H, W) uint8 class numbers in its full size, 255 for pixels to ignore.

    Args:
        value: as for :func:`tpssl_hf.data.reading.decode_image`.
        masks: how to read it.
        where: where it stands, for the error message.
        pixel_limit: most pixels a mask may claim to have.

    Raises:
        UnreadableImage: if the file is damaged.
        InputError: if it is a sound image that is no mask of these classes.
    """
    with opened_image(value, pixel_limit) as image, one_at_a_time(image.size):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        mode, kind = image.mode, image.format
        values = np.array(image.convert("RGB") if mode in COLOR_MODES else image)
    if kind == "JPEG" and set(masks.lookup) != {0, 1}:  # a threshold stands the compression
        raise InputError(
            f"Mask {where} is a JPEG file, whose compression changes class numbers: save the masks as PNG files."
        )
    if mode in COLOR_MODES and masks.colors:
        return _by_color(values, masks, where)
    if mode in COLOR_MODES and (values == values[..., :1]).all():  # gray that was saved as three channels
        return _by_value(values[..., 0], masks, where)
    if mode in COLOR_MODES:
        raise InputError(
            f"Mask {where} is in colors ({_shown_colors(_codes(values))}), and which class each stands for is not "
            "known: save class numbers as 8-bit gray PNG, or write a line `name red green blue` for each class to a "
            "file classes.txt beside the data."
        )
    if mode not in VALUE_MODES:
        raise InputError(
            f"Mask {where} holds values of another kind (Pillow's mode {mode}) than 8-bit class numbers: save the "
            "masks as 8-bit gray or palette PNG, 255 for pixels to ignore."
        )
    if mode == "1":  # white is class 1, or the full 255 for a reading that does not tell 1 from black
        values = values * np.uint8(255 if masks.lookup[0] == masks.lookup[1] else 1)
    return _by_value(values, masks, where)


def _by_value(values: np.ndarray, masks: Masks, where: str) -> np.ndarray:
    lookup = np.array(masks.lookup)
    if not (lookup != ILLEGAL)[values].all():
        wrong = [value for value in np.unique(values).tolist() if masks.lookup[value] == ILLEGAL]
        raise InputError(
            f"Mask {where} holds the value{'s' if len(wrong) > 1 else ''} {_shown(wrong)}; allowed are the classes 0 "
            f"to {len(masks.class_names or ()) - 1} and 255 for pixels to ignore: mend the masks, or list every class "
            "in a file classes.txt beside the data, one name a line."
        )
    numbers: np.ndarray = lookup.astype(np.uint8)[values]
    return numbers


def _by_color(pixels: np.ndarray, masks: Masks, where: str) -> np.ndarray:
    known = sorted((red << 16 | green << 8 | blue, number) for (red, green, blue), number in masks.colors)
    codes = np.array([code for code, _ in known], dtype=np.uint32)
    found = _codes(pixels)
    places = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
    if (unknown := codes[places] != found).any():
        raise InputError(
            f"Mask {where} holds colors that stand for no class ({_shown_colors(found[unknown])}): mend the masks, "
            "or write a line `name red green blue` for each class to a file classes.txt beside the data."
        )
    numbers: np.ndarray = np.array([number for _, number in known], dtype=np.uint8)[places]
    return numbers


def _codes(pixels: np.ndarray) -> np.ndarray:
    """Return the colors of (H, W, 3) uint8 pixels as numbers (H, W) uint32."""
    wide = pixels.astype(np.uint32)
    codes: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return codes


def _shown_colors(codes: np.ndarray) -> str:
    return _shown([(code >> 16, code >> 8 & 255, code & 255) for code in np.unique(codes).tolist()])


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) in ``size``, height and width: of each block of pixels the one at its center."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def share_of_pixels(counts: np.ndarray, class_names: tuple[str, ...] | None) -> dict[str, float]:
    """Return the fraction of each class, by name or number, and of ``ignored`` pixels.

    Args:
        counts: (256,) pixels of each class number, 255 for those ignored.
        class_names: the classes, or None: then those up to the highest that was seen.
    """
    names = class_names or tuple(str(number) for number in range(count_classes(counts)))
    shares = {name: round(float(counts[number] / counts.sum()), 6) for number, name in enumerate(names)}
    return shares | {"ignored": round(float(counts[IGNORED] / counts.sum()), 6)}


def count_classes(counts: np.ndarray) -> int:
    """Return the highest class number with any of the ``counts`` (256,), plus one."""
    return int(np.flatnonzero(counts[:IGNORED]).max(initial=-1)) + 1


def refuse_masks_without_classes(counts: np.ndarray, masks: int, name: str, *, listed: bool) -> None:
    """Refuse masks of which nothing can be learned, and values that cannot all be class numbers.

    Args:
        counts: (256,) pixels of each class number in all masks.
        masks: how many masks there are.
        name: of the data set.
        listed: whether the classes are known; if not, the highest value says how many there are.

    Raises:
        InputError: if there are no masks, all pixels are ignored, or all but the ignored ones are class 0; or if
            classes are not listed and hardly any number up to the highest occurs.
    """
    if masks == 0:
        raise InputError(f"No image of {name!r} has a mask: give the data set with its masks, or another split.")
    if count_classes(counts) == 0:
        raise InputError(f"Every pixel of the masks of {name!r} is to be ignored: give masks that show classes.")
    if count_classes(counts) == 1 and counts[IGNORED]:
        raise InputError(
            f"The masks of {name!r} hold no values but 0 and 255, of which 255 stands for pixels to ignore: for black "
            "and white masks give `mask_threshold` 127, or store class numbers from 0."
        )
    used = np.flatnonzero(counts[:IGNORED]).tolist()
    if not listed and len(used) < LEAST_USED * count_classes(counts):
        raise InputError(
            f"The masks of {name!r} hold only {len(used)} of the class numbers 0 to {used[-1]}: {_shown(used)}. Mend "
            "them; or give `mask_threshold` for black and white masks; or list every class in a file classes.txt "
            "beside the data, one name a line."
        )
