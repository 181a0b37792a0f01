"""Crops: where they lie, what they look like at the size of the network, and where they lay in the image."""

import math

import torch
from torch import Tensor
from torch.nn import functional

CROP_TRIES = 10  # as in torchvision's RandomResizedCrop
CROP_DRAWS = 2 * CROP_TRIES + 2  # area and aspect ratio of each try, then the position


def random_resized_crop_boxes(
    numbers: Tensor, sizes: Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Choose a box of random area, shape and position in each image.

    The rule of "Going deeper with convolutions" (Szegedy et al. 2015, section 6), as in torchvision's
    ``RandomResizedCrop``: the area is uniform, the aspect ratio log-uniform; the first of ten tries that fits is
    taken, and if none fits, the largest central box of a permitted shape.

    Args:
        numbers: (B, CROP_DRAWS) uniform in [0, 1).
        sizes: (B, 2) int64, height and width of each image.
        scale: smallest and largest area as a fraction of the image's.
        ratio: smallest and largest width divided by height.

    Returns:
        (B, 4) int64, left, top, right and bottom in pixels.
    """
    numbers = numbers.double()
    height, width = sizes[:, :1].double(), sizes[:, 1:].double()
    areas = (scale[0] + (scale[1] - scale[0]) * numbers[:, :CROP_TRIES]) * height * width
    smallest, largest = math.log(ratio[0]), math.log(ratio[1])
    ratios = (smallest + (largest - smallest) * numbers[:, CROP_TRIES : 2 * CROP_TRIES]).exp()
    widths, heights = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    found = fits.any(dim=1, keepdim=True)
    first = fits.byte().argmax(dim=1, keepdim=True)

    whole_width = torch.minimum(width, (height * ratio[1]).round().clamp_min(1))
    whole_height = torch.minimum(height, (width / ratio[0]).round().clamp_min(1))
    box_width = torch.where(found, widths.gather(1, first), whole_width)
    box_height = torch.where(found, heights.gather(1, first), whole_height)
    left = torch.where(found, numbers[:, -2:-1] * (width - box_width + 1), (width - box_width) / 2).floor()
    top = torch.where(found, numbers[:, -1:] * (height - box_height + 1), (height - box_height) / 2).floor()
    return torch.cat((left, top, left + box_width, top + box_height), dim=1).long()


def central_boxes(sizes: Tensor, fraction: float = 1.0, *, squash: bool = False) -> Tensor:
    """Return the central square of each image of ``sizes`` (B, 2) as boxes (B, 4) like those above.

    Its side is ``fraction`` of the shorter side; with ``squash`` the box has the shape of the image.
    """
    sides = sizes if squash else sizes.amin(dim=1, keepdim=True).expand(-1, 2)
    sides = (sides * fraction).round().long().clamp_min(1)
    top_left = ((sizes - sides) // 2).flip(1)
    return torch.cat((top_left, top_left + sides.flip(1)), dim=1)


def normalized_boxes(boxes: Tensor, flip: Tensor, sizes: Tensor) -> Tensor:
    """Express ``boxes`` (B, 4) relative to images of ``sizes`` (B, 2).

    Returns:
        (B, 4) float32 x0, y0, x1, y1 in [0, 1]. Where ``flip`` (B,) is true x0 and x1 are swapped, so that column c
        of W cells of the view lies at x0 + (c + 0.5) * (x1 - x0) / W whether it was flipped or not.
    """
    left, top, right, bottom = (boxes.double() / sizes.flip(1).repeat(1, 2)).unbind(1)
    ends = torch.where(flip, right, left), top, torch.where(flip, left, right), bottom
    return torch.stack(ends, dim=1).float()


def _crop_one_by_one(pixels: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: str) -> Tensor:
    """Read each box and resize it on its own, which touches no pixel outside the box and computes in integers."""
    crops = torch.empty(len(pixels), 3, size, size)
    mirrored = flip.tolist()
    for row, (left, top, right, bottom) in enumerate(boxes.tolist()):
        box = pixels[row, top:bottom, left:right].permute(2, 0, 1)[None]
        crop = functional.interpolate(box, (size, size), mode=interpolation, antialias=True)[0]
        crops[row] = crop.flip(-1) if mirrored[row] else crop
    return crops


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, Pillow's choice, of distances that are not negative."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _resize_matrices(start: Tensor, end: Tensor, extent: int, size: int, interpolation: str) -> Tensor:
    """Build for each interval (B,) of an axis of ``extent`` pixels the (B, size, extent) map to ``size`` pixels."""
    start, end = start.float()[:, None, None], end.float()[:, None, None]
    scale = (end - start) / size
    centers = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixels = torch.arange(extent, device=start.device)
    distance = (pixels + 0.5 - centers).abs() / scale.clamp_min(1)
    weights = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp_min(0)
    weights = weights * ((pixels >= start) & (pixels < end))
    return weights / weights.sum(dim=2, keepdim=True)


def _crop_by_matrices(pixels: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: str) -> Tensor:
    """Resize all boxes at once with two matrix products, for which no box has to be known to the host."""
    batch, height, width, _ = pixels.shape
    left, top, right, bottom = boxes.unbind(1)
    vertical = _resize_matrices(top, bottom, height, size, interpolation)
    horizontal = _resize_matrices(left, right, width, size, interpolation)
    horizontal = torch.where(flip[:, None, None], horizontal.flip(1), horizontal)
    # Pillow resizes along the rows first and rounds in between; the rounding is what the order would be seen by.
    planes = pixels.permute(0, 3, 1, 2).reshape(batch, 3 * height, width).float()
    rows = torch.bmm(planes, horizontal.transpose(1, 2)).round_().clamp_(0, 255)
    rows = rows.view(batch, 3, height, size).transpose(1, 2).reshape(batch, height, 3 * size)
    crops = torch.bmm(vertical, rows).round_().clamp_(0, 255)
    return crops.view(batch, size, 3, size).transpose(1, 2).contiguous()


def resized_crop(pixels: Tensor, boxes: Tensor, flip: Tensor, size: int, interpolation: str) -> Tensor:
    """Cut boxes out of images, resize them to squares as Pillow does, and mirror some.

    The filter is widened where the crop is larger than the result, so that nothing aliases, and cut off at the edge
    of the box, so that neither the rest of the image nor its padding shows.

    Args:
        pixels: (B, H, W, 3) uint8.
        boxes: (B, 4) int64, left, top, right and bottom; each inside its image.
        flip: (B,) bool, which crops to mirror left to right.
        size: height and width of the result.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        (B, 3, size, size) float32, whole numbers in 0..255; one in a thousand may be 2 levels off Pillow's, the
        others at most 1, for both round between the axes and weights are rounded differently.
    """
    crop = _crop_by_matrices if pixels.is_cuda else _crop_one_by_one
    return crop(pixels, boxes, flip, size, interpolation)
