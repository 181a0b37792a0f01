"""Mixtures of two images of a batch, and the masks that say which pixel comes from which.

Boxes and classes are chosen from given random numbers without looking at them, so that no device has to be waited for.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from tpssl_hf.augment.geometry import CROP_DRAWS, random_resized_crop_boxes

HALF_BOX_DRAWS = 3  # the shape, top and left
UNIMATCH_BOX_DRAWS = CROP_DRAWS + 1  # the box, and whether there is one


def mix(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Take ``second`` where ``mask`` (B, H, W) is true and ``first`` elsewhere; both (B, H, W) or (B, C, H, W)."""
    return torch.where(mask if first.ndim == 3 else mask[:, None], second, first)


def zoom(images: Tensor, labels: Tensor, weights: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zoom into images, or out of them, and mirror some; their labels and weights alike.

    What comes in from outside is 0 in images and weights and 255 in labels.

    Args:
        images: (B, 3, H, W) normalized, interpolated bilinearly.
        labels: (B, H, W) int64, of which the nearest is taken, as of the weights.
        weights: (B, H, W).
        moves: (B, 4) from :func:`tpssl_hf.augment.segment_views.zoom_draws`.
    """
    factor, down, right, sign = moves.unbind(1)
    zero, room = torch.zeros_like(factor), (1 - 1 / factor).abs()
    theta = torch.stack((sign / factor, zero, right * room, zero, 1 / factor, down * room), dim=1).view(-1, 2, 3)
    with torch.autocast(images.device.type, enabled=False):
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        zoomed = functional.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)
        # labels are sampled as their distance to 255, so that the outside gets 255
        both = torch.stack((labels.float() - 255, weights.float()), dim=1)
        nearest = functional.grid_sample(both, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return zoomed, nearest[:, 0].round().long() + 255, nearest[:, 1]


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, H, W) bool, true inside each of ``boxes`` (B, 4): left, top, right and bottom in pixels."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(length, device=boxes.device) for length in size)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def half_boxes(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """Choose boxes of half the area, up to rounding, of any shape and place (French et al., 2020, arXiv 1906.01916).

    The height is a half to all of H, its logarithm uniform; the width follows from it; the place is uniform inside.

    Args:
        numbers: (B, HALF_BOX_DRAWS) uniform in [0, 1).
        size: H and W in pixels.

    Returns:
        (B, 4) int64, left, top, right and bottom.
    """
    numbers = numbers.double()
    part = (numbers[:, 0] * math.log(0.5)).exp()
    height, width = (part * size[0]).round(), (0.5 / part * size[1]).round()
    top, left = (numbers[:, 1] * (size[0] - height + 1)).floor(), (numbers[:, 2] * (size[1] - width + 1)).floor()
    return torch.stack((left, top, left + width, top + height), dim=1).long()


def unimatch_boxes(numbers: Tensor, size: tuple[int, int]) -> Tensor:
    """Choose UniMatch's boxes: for half of the images none, else 2 to 40 % of the area (Yang et al., 2023, code).

    Deviation: the ratio of the sides, 0.3 to 1/0.3, has a uniform logarithm, and boxes that do not fit are drawn anew
    by their shape alone, where the original draws shape and place together until the box fits.

    Args:
        numbers: (B, UNIMATCH_BOX_DRAWS) uniform in [0, 1).
        size: H and W in pixels.

    Returns:
        (B, 4) int64, left, top, right and bottom; all 0 for no box.
    """
    sizes = torch.stack([torch.full_like(numbers[:, 0], length, dtype=torch.int64) for length in size], dim=1)
    boxes = random_resized_crop_boxes(numbers[:, :CROP_DRAWS], sizes, (0.02, 0.4), (0.3, 1 / 0.3))
    return boxes * (numbers[:, -1:] < 0.5)


def class_masks(
    labels: Tensor, numbers: Tensor, *, background: bool = True, more: int = 0, ignored: int = 255
) -> Tensor:
    """Choose half of the classes of each image, rounded down, and return where they are.

    ClassMix (Olsson et al., 2021, arXiv 2007.07936, §3.1): what is chosen are whole predicted segments.

    Args:
        labels: (B, H, W) int64 in 0..K-1, or ``ignored``, which is never chosen.
        numbers: (B, K) uniform in [0, 1); the classes present with the smallest numbers are chosen.
        background: whether class 0 can be chosen, and counts as present.
        more: classes chosen beyond half of them, as long as there are any.
        ignored: label of pixels that do not count.

    Returns:
        (B, H, W) bool.
    """
    batch, classes = numbers.shape
    columns = torch.where(labels == ignored, classes, labels).flatten(1)
    present = torch.zeros(batch, classes + 1, dtype=torch.bool, device=labels.device).scatter_(1, columns, True)
    present[:, classes] = False
    if not background:
        present[:, 0] = False
    last = numbers.new_full((batch, 1), torch.inf)
    order = torch.where(present, torch.cat((numbers, last), dim=1), torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    chosen = present & (rank < present.sum(dim=1, keepdim=True) // 2 + more)
    return chosen.gather(1, columns).view_as(labels)
