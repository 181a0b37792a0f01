"""Affine augmentation and its inverse, both differentiable (paper §III-C).

Coordinates are those of ``grid_sample`` with ``align_corners=False``: x to the right and y down, from -1 to 1 between
the outer edges, so that cell c of W has its center at (2c + 1) / W - 1 and a matrix holds for maps of any resolution.
Content moves from p to T p. What is sampled moves the other way: ``warp`` reads at T⁻¹ p, ``unwarp`` at T p.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tpssl_hf.errors import InputError

AFFINE_VIEWS = 1 << 16  # added to the number of a view, so that these draws differ from those of its crop and colors
AFFINE_DRAWS = 10  # a coin for each of the four components, then scale, angle, two shears, two translations


@dataclass(frozen=True)
class AffinePolicy:
    """How affine transforms are drawn.

    Components and their chance are the paper's (§III-C), which leaves the ranges open: they are ours.
    """

    probability: float = 0.5  # of each component by itself; the two shears share a coin, and so do the translations
    scale: tuple[float, float] = (0.8, 1.25)  # log-uniform
    rotation: float = 30.0  # degrees, to either side
    shear: float = 15.0  # degrees, to either side, along each axis
    translation: float = 0.2  # of half the side, to either side, along each axis

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"affine_probability is {self.probability}; give a probability, from 0 to 1.")


def draw_affine(numbers: Tensor, policy: AffinePolicy, width_over_height: float = 1.0) -> Tensor:
    """Choose translation · rotation · shear · scaling for each image.

    Args:
        numbers: (B, AFFINE_DRAWS) uniform in [0, 1).
        policy: how likely and how strong.
        width_over_height: of the images to be warped; angles are angles between pixels, whatever their shape.

    Returns:
        (B, 3, 3) float32; exactly the identity where no component was chosen.
    """
    numbers = numbers.float()
    # Component by component: a product of matrices would be rounded to ten bits where TF32 is allowed.
    scaled, turned, sheared, moved = (numbers[:, :4] < policy.probability).unbind(1)
    factors, angles, shear_x, shear_y, move_x, move_y = numbers[:, 4:].unbind(1)

    def spread(draws: Tensor, chosen: Tensor, limit: float) -> Tensor:
        return torch.where(chosen, (2 * draws - 1) * limit, 0.0)

    smallest, largest = math.log(policy.scale[0]), math.log(policy.scale[1])
    scale = torch.where(scaled, smallest + (largest - smallest) * factors, 0.0).exp()
    angle = spread(angles, turned, math.radians(policy.rotation))
    along_x, along_y = (spread(draws, sheared, math.radians(policy.shear)).tan() for draws in (shear_x, shear_y))
    right, down = (spread(draws, moved, policy.translation) for draws in (move_x, move_y))
    cosine, sine = angle.cos(), angle.sin()
    return _matrix(
        scale * (cosine - sine * along_y),
        scale * (cosine * along_x - sine) / width_over_height,
        right,
        scale * (sine + cosine * along_y) * width_over_height,
        scale * (sine * along_x + cosine),
        down,
    )


def invert(matrix: Tensor) -> Tensor:
    """Invert affine matrices (B, 3, 3) in closed form."""
    a, b, x, c, d, y = matrix[:, :2].flatten(1).unbind(1)
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return _matrix(a, b, -(a * x + b * y), c, d, -(c * x + d * y))


def warp(maps: Tensor, matrix: Tensor) -> Tensor:
    """Move the content of ``maps`` (B, C, H, W) from p to T p, T = ``matrix`` (B, 3, 3); zeros come in from outside.

    Bilinear and differentiable, in float32. Where T is exactly the identity, a map is returned to the bit.
    """
    return _sample(maps, invert(matrix), matrix)


def unwarp(maps: Tensor, matrix: Tensor) -> Tensor:
    """Undo :func:`warp`: move the content of ``maps`` (B, C, H, W) from T p to p, as far as it is still there."""
    return _sample(maps, matrix, matrix)


def key_mask(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return how much of each cell of a warped map comes from inside the original: (B, 1, height, width) in 0..1."""
    return warp(torch.ones(len(matrix), 1, height, width, device=matrix.device), matrix)


def validity(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return how much of each cell survives warping and unwarping: (B, 1, height, width) in 0..1.

    Whether T p lies inside is not enough: a cell just inside is interpolated with what came in from outside.
    """
    return unwarp(key_mask(matrix, height, width), matrix)


def _matrix(*rows: Tensor) -> Tensor:
    """Put two rows of three numbers (B,) each on top of 0, 0, 1."""
    zero, one = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
    return torch.stack((*rows, zero, zero, one), dim=1).view(-1, 3, 3)


def _sample(maps: Tensor, read_at: Tensor, matrix: Tensor) -> Tensor:
    """Read ``maps`` at ``read_at`` p for each cell p, unless ``matrix`` is the identity."""
    with torch.autocast(maps.device.type, enabled=False):  # half precision would move the points
        maps = maps.float()
        height, width = maps.shape[2:]
        x = (2 * torch.arange(width, device=maps.device) + 1) / width - 1
        y = ((2 * torch.arange(height, device=maps.device) + 1) / height - 1)[:, None]
        rows = read_at[:, :2, :, None, None].float()
        grid = rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2]
        sampled = functional.grid_sample(maps, grid.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)
        identity = torch.eye(3, device=matrix.device)
        return torch.where((matrix == identity).all(dim=(1, 2))[:, None, None, None], maps, sampled)
