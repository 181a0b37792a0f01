"""RandAugment and Cutout as in FixMatch (Sohn et al. 2020, arXiv 2001.07685), each image with its own operations.

Images are (B, 3, S, S) float32, whole numbers in 0..255, before and after. Every operation gives what Pillow's gives
on 8-bit images, to the bit. All sums are of whole numbers, hence the same in any order and on any device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpssl_hf.augment.color import where_chosen
from tpssl_hf.errors import InputError

# By kind, so that a range of numbers is a kind: nothing, new values for old ones, color, sharpness, other places.
OPERATIONS = (
    *("Identity",),
    *("AutoContrast", "Brightness", "Contrast", "Equalize", "Posterize", "Solarize"),
    *("Color",),
    *("Sharpness",),
    *("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"),
)
OPERATION_DRAWS = 4  # of each operation: which, whether, how strong, to which side
CUTOUT_DRAWS = 2  # the row and the column
GRAY = 127.0  # what comes in from outside the image, and what is cut out
_FIXED_POINT = 65536  # Pillow looks up places in steps of this part of a pixel


@dataclass(frozen=True)
class RandAugmentPolicy:
    """How many distortions a strong view has and how much of it is cut out; the defaults are FixMatch's."""

    operations: int = 2  # drawn with replacement
    probability: float = 0.5  # of each drawn operation to be applied
    cutout: float = 0.5  # side of the gray square as a share of the image's

    def __post_init__(self) -> None:
        if self.operations < 0:
            raise InputError(f"operations is {self.operations}; give 0 or more, 2 is usual.")
        for name in ("probability", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")

    @property
    def draws(self) -> int:
        """How many random numbers an image takes, those of the operations before those of Cutout."""
        return self.operations * OPERATION_DRAWS + CUTOUT_DRAWS


FIXMATCH_STRONG = RandAugmentPolicy()


def _is(operation: Tensor, name: str) -> Tensor:
    return operation == OPERATIONS.index(name)


def _blend(background: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """Go ``factor`` (B,) of the way from ``background`` to ``values`` (B, ...) and cut off the fraction."""
    share = factor.float()[:, None, None, None]
    return (values - background).mul_(share).add_(background).clamp_(0, 255).floor_()


def _integer_luma(images: Tensor) -> Tensor:
    """Return the brightness (B, 1, S, S) rounded as Pillow does; all sums are below 2**24, hence exact in float32."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    total = red.mul(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return total.add_(32768).div_(65536).floor_()


# The six below change ``tables`` (B, 3, 1, 256), which hold the new value of each of the 256 levels in each channel,
# as the images (B, 3, S, S) and the strengths (B,) ask for. They compute in double precision where Pillow does.


def _auto_contrast(tables: Tensor, images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    low, high = (extreme((2, 3), keepdim=True).double() for extreme in (images.amin, images.amax))
    span = (high - low).clamp_min(1)
    scale = torch.full_like(span, 255) / span  # a number divided by a tensor is multiplied by its rounded inverse
    stretched = (tables * scale + -low * scale).floor().clamp(0, 255).float()
    return torch.where(high > low, stretched, tables)


def _brightness(tables: Tensor, _: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(torch.zeros_like(tables), tables, factor)


def _contrast(tables: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean brightness."""
    total = _integer_luma(images).sum((1, 2, 3), dtype=torch.float64)
    mean = total.div_(images.shape[-1] ** 2).add_(0.5).floor_().float()
    return _blend(mean[:, None, None, None], tables, factor)


def _equalize(tables: Tensor, images: Tensor, _: Tensor) -> Tensor:
    """Make each channel's levels equally frequent, as far as that goes without parting equal ones."""
    codes = images.flatten(2).long()
    counts = torch.zeros(*codes.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, codes, torch.ones_like(codes))
    last = counts.gather(2, codes.amax(2, keepdim=True))
    step = (codes.shape[2] - last) // 255
    below = counts.cumsum(2) - counts + step // 2
    equal = torch.where(step > 0, (below // step.clamp_min(1)).clamp_max(255), tables[:, :, 0].long())
    return equal[:, :, None].float()


def _posterize(tables: Tensor, _: Tensor, bits: Tensor) -> Tensor:
    """Keep the uppermost ``bits`` of each value."""
    step = torch.exp2(8 - bits).float()[:, None, None, None]
    return (tables / step).floor() * step


def _solarize(tables: Tensor, _: Tensor, threshold: Tensor) -> Tensor:
    """Invert every value from ``threshold`` on."""
    return torch.where(tables >= threshold[:, None, None, None], 255 - tables, tables)


_TABLES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Brightness": _brightness,
    "Contrast": _contrast,
    "Equalize": _equalize,
    "Posterize": _posterize,
    "Solarize": _solarize,
}


def _change_levels(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Apply the operations that give equal values of a channel equal values."""
    tables = torch.arange(256.0, device=images.device).repeat(len(images), 3, 1, 1)
    for name, function in _TABLES.items():
        tables = where_chosen(_is(operation, name), function, tables, images, strength)
    return tables.flatten(2).gather(2, images.flatten(2).long()).view_as(images)


def _color(images: Tensor, _: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image."""
    return _blend(_integer_luma(images), images, factor)


def _sharpness(images: Tensor, _: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed over 3 x 3 pixels, of which the middle one counts five-fold; edges stay."""
    across = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    smooth = images.clone()
    inner = smooth[..., 1:-1, 1:-1]
    inner.mul_(4).add_(total).div_(13).round_()  # thirteenths never end in a half, so how it is rounded is no matter
    return _blend(smooth, images, factor)


def _move(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Rotate about the center, shear about the corner at the top left or translate, as ``strengths`` says.

    The result at (x, y) is the image's pixel at matrix · (x, y, 1), or gray if that is outside. Only a translation
    by a whole number of pixels and a half, which takes a side of 50, 150, 250 ..., may round differently in Pillow.
    """
    size = images.shape[-1]
    angle, shear_x, shear_y, translate_x, translate_y = (
        torch.where(_is(operation, name), strength, 0) for name in OPERATIONS[-5:]
    )
    cosine, sine = torch.cos(-torch.deg2rad(angle)), torch.sin(-torch.deg2rad(angle))
    x_by_y, y_by_x, middle = sine + shear_x, shear_y - sine, size / 2
    from_x = translate_x + middle * (1 - cosine - sine) + (cosine + x_by_y) / 2  # halves: centers of pixels
    from_y = translate_y + middle * (1 - cosine + sine) + (cosine + y_by_x) / 2
    fixed = torch.stack((cosine, x_by_y, from_x, y_by_x, cosine, from_y)).mul_(_FIXED_POINT).add_(0.5).floor_()
    steps = fixed.to(torch.int64)[:, :, None, None].unbind(0)
    position = torch.arange(size, device=images.device)
    column = (steps[0] * position + (steps[1] * position[:, None] + steps[2])) >> 16
    row = (steps[3] * position + (steps[4] * position[:, None] + steps[5])) >> 16
    outside = (column < 0) | (column >= size) | (row < 0) | (row >= size)
    source = row.clamp_(0, size - 1).mul_(size).add_(column.clamp_(0, size - 1)).flatten(1)[:, None]
    moved = images.flatten(2).gather(2, source.expand(-1, 3, -1)).view_as(images)
    return moved.masked_fill_(outside[:, None], GRAY)


def strengths(operation: Tensor, level: Tensor, sign: Tensor, size: int) -> Tensor:
    """Translate levels into what each operation takes.

    Args:
        operation: (B,) int64, numbers into ``OPERATIONS``.
        level: (B,) float64, whole numbers in 0..10.
        sign: (B,) float64, -1 or 1, of angles, slopes and ways.
        size: side of the images in pixels.

    Returns:
        (B,) float64: the factor of Brightness, Color, Contrast and Sharpness, the bits of Posterize, the threshold of
        Solarize, the degrees of Rotate counter-clockwise, the slope of ShearX and ShearY, the pixels of TranslateX and
        TranslateY to the left and up, and 0 for the others.
    """
    factor, slope = 0.05 + 0.9 * level / 10, sign * 0.3 * level / 10
    taken = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor)
    taken |= dict.fromkeys(("ShearX", "ShearY"), slope) | dict.fromkeys(("TranslateX", "TranslateY"), slope * size)
    taken["Posterize"] = 4 + (4 * level / 10).floor()
    taken["Solarize"] = 256 - (256 * level / 10).floor()
    taken["Rotate"] = sign * 30 * level / 10
    columns = torch.stack([taken.get(name, torch.zeros_like(level)) for name in OPERATIONS], dim=1)
    return columns.gather(1, operation[:, None])[:, 0]


def apply_operations(images: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Apply one operation to each image; the host picks out rows if it can, otherwise all are computed.

    Args:
        images: (B, 3, S, S); may be written over.
        operation: (B,) int64, numbers into ``OPERATIONS``.
        strength: (B,) float64 in the units of ``strengths``.

    Returns:
        (B, 3, S, S).
    """
    for function, name, last in (
        (_change_levels, "AutoContrast", "Solarize"),
        (_color, "Color", "Color"),
        (_sharpness, "Sharpness", "Sharpness"),
        (_move, "Rotate", "TranslateY"),
    ):
        chosen = (operation >= OPERATIONS.index(name)) & (operation <= OPERATIONS.index(last))
        images = where_chosen(chosen, function, images, operation, strength)
    return images


def rand_augment(images: Tensor, numbers: Tensor, policy: RandAugmentPolicy) -> Tensor:
    """Apply as many operations one after the other as the policy says, with levels from 1 to 9 of 10.

    Args:
        images: (B, 3, S, S); may be written over.
        numbers: (B, N) uniform in [0, 1); the first OPERATION_DRAWS of each operation are read.
        policy: how many and how likely; its Cutout is not part of this.

    Returns:
        (B, 3, S, S).
    """
    for turn in range(policy.operations):
        which, whether, how_strong, side = numbers[:, OPERATION_DRAWS * turn :][:, :OPERATION_DRAWS].unbind(1)
        operation = torch.where(whether < policy.probability, (which * len(OPERATIONS)).floor(), 0).long()
        level, sign = 1 + (9 * how_strong).floor().double(), (side >= 0.5).double() * 2 - 1
        images = apply_operations(images, operation, strengths(operation, level, sign, images.shape[-1]))
    return images


def cutout(images: Tensor, numbers: Tensor, share: float) -> Tensor:
    """Fill a square with gray whose middle is anywhere in the image (DeVries and Taylor 2017, arXiv 1708.04552).

    Args:
        images: (B, 3, S, S).
        numbers: (B, CUTOUT_DRAWS) uniform in [0, 1): the row and the column of the middle.
        share: side of the square as a share of S; what of it lies outside of the image is cut off.

    Returns:
        (B, 3, S, S).
    """
    size = images.shape[-1]
    side = round(share * size)
    start = (numbers * size).floor()[:, :, None] - side // 2
    positions = torch.arange(size, device=images.device)
    rows, columns = ((positions >= start) & (positions < start + side)).unbind(1)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], GRAY)
