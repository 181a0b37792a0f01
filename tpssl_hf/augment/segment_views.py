"""Views of images together with their masks: one geometry for both, and colors for the images alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tpssl_hf.augment.color import (
    blur_width,
    gaussian_blur,
    grayscale,
    host_can_look,
    jitter,
    jitter_steps,
    where_chosen,
)
from tpssl_hf.augment.rng import uniform
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError

IGNORED = 255  # of a mask: the pixel does not count
COLOR_VIEWS = 1 << 18  # added to the numbers of color draws, so that they share none with any geometry
ZOOM_VIEWS = 1 << 17  # likewise of zooms
SPACINGS = ("tenths", "uniform", "log")
_GEOMETRY_DRAWS = 4  # scale, top, left, flip
_COLOR_DRAWS = 12  # three chances, four turns, four factors, the width of the blur


@dataclass(frozen=True)
class SegmentViewSettings:
    """What all segmentation views of a run share.

    Attributes:
        crop_size: height and width of the views in pixels.
        mean: of the red, green and blue values in 0..1 that the network expects to be subtracted.
        std: the standard deviations it expects to be divided by.
        seed: of all random draws.
        horizontal_flip: whether mirroring keeps the meaning of an image.
        scale: smallest and largest factor by which an image is enlarged before it is cropped.
        scale_spacing: how factors are drawn: ``"tenths"``, the smallest and what is 0.1, 0.2, ... above it, all alike
            (French et al., 2020, arXiv 1906.01916, official code); ``"uniform"``; or ``"log"``, uniform logarithms.
    """

    crop_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    horizontal_flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    scale_spacing: str = "tenths"

    def __post_init__(self) -> None:
        if min(self.crop_size) < 1:
            raise InputError(f"crop_size is {self.crop_size}; views need at least 1 pixel either way, 321 is usual.")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}; images are divided by it, so give three numbers above 0.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale is {self.scale}; give the smaller factor first, both above 0.")
        if self.scale_spacing not in SPACINGS:
            raise InputError(f"scale_spacing is {self.scale_spacing!r}; use one of {', '.join(SPACINGS)}.")


@dataclass(frozen=True)
class ColorPolicy:
    """Distortions that keep pixels in place, in the order in which they are applied: jitter, grayscale, blur.

    The defaults are those of French et al. (2020, arXiv 1906.01916, official code).
    """

    jitter: float = 0.8  # this, grayscale and blur are probabilities
    brightness: float = 0.4  # factors are drawn from 1 - strength .. 1 + strength
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # in full circles, to either side
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in pixels of the view


@dataclass(frozen=True)
class _Geometry:
    """Where every pixel of the views comes from: ``scaled`` and ``offset`` (B, 2), ``flip`` (B,)."""

    scaled: Tensor  # height and width of each image after scaling
    offset: Tensor  # of the crop in the scaled image, row and column
    flip: Tensor


def draw_scales(numbers: Tensor, scale: tuple[float, float], spacing: str) -> Tensor:
    """Turn uniform ``numbers`` (B,) in [0, 1) into factors (B,) float64 in ``scale``, spaced as the settings say."""
    numbers, (low, high) = numbers.double(), scale
    if spacing == "tenths":
        steps = int((high - low) * 10 + 1e-6)
        return (low * 10 + (numbers * (steps + 1)).floor()) / 10
    if spacing == "log":
        return low * (numbers * math.log(high / low)).exp()
    return low + (high - low) * numbers


def _draw_geometry(images: ImageBatch, settings: SegmentViewSettings, view: int) -> _Geometry:
    """Scale each image and place the crop: anywhere inside, or at the top left of an image that is smaller."""
    numbers = uniform(settings.seed, images.index, images.epoch, view, _GEOMETRY_DRAWS)
    factors = draw_scales(numbers[:, 0], settings.scale, settings.scale_spacing)
    scaled = (images.sizes * factors[:, None]).round().clamp_min(1).long()
    # dimension by dimension: a tensor of the two sizes would have to be copied to the device
    rooms = [(scaled[:, axis] - settings.crop_size[axis]).clamp_min(0) + 1 for axis in (0, 1)]
    offset = (numbers[:, 1:3].double() * torch.stack(rooms, dim=1)).floor().long()
    return _Geometry(scaled, offset, numbers[:, 3] < (0.5 if settings.horizontal_flip else 0.0))


def _positions(geometry: _Geometry, axis: int, length: int) -> tuple[Tensor, Tensor]:
    """Return where the ``length`` rows (axis 0) or columns (1) lie in the scaled image, and which of them do."""
    steps = torch.arange(length, device=geometry.offset.device)
    positions = geometry.offset[:, axis, None] + steps
    if axis == 1:
        positions = torch.where(geometry.flip[:, None], positions.flip(1), positions)
    return positions, positions < geometry.scaled[:, axis, None]


def _nearest(images: ImageBatch, geometry: _Geometry, size: tuple[int, int]) -> Tensor:
    """Return the masks' values at the crops' pixels: (B, h, w) int64, of any value outside the image."""
    sources = []
    for axis in (0, 1):
        positions, _ = _positions(geometry, axis, size[axis])
        extent, scaled = images.sizes[:, axis, None], geometry.scaled[:, axis, None]
        # the source pixel under the center of the result's, in whole numbers so that all devices agree
        sources.append(torch.minimum((2 * positions + 1) * extent // (2 * scaled), extent - 1))
    assert images.masks is not None
    batch = torch.arange(len(images), device=images.masks.device)[:, None, None]
    return images.masks[batch, sources[0][:, :, None], sources[1][:, None, :]].long()


def _crop_one_by_one(images: ImageBatch, geometry: _Geometry, size: tuple[int, int]) -> Tensor:
    """Scale and crop each image on its own, in integers; (B, 3, h, w) with zeros outside the image."""
    crops = torch.zeros(len(images), 3, *size)
    rows = (images.sizes, geometry.scaled, geometry.offset, geometry.flip)
    for row, (extent, scaled, (top, left), mirrored) in enumerate(zip(*(r.tolist() for r in rows), strict=True)):
        image = images.pixels[row, : extent[0], : extent[1]].permute(2, 0, 1)[None]
        if scaled != extent:
            image = functional.interpolate(image, scaled, mode="bilinear", antialias=True)
        part = image[0, :, top : top + size[0], left : left + size[1]]
        crops[row, :, : part.shape[1], : part.shape[2]] = part
        if mirrored:
            crops[row] = crops[row].flip(-1)
    return crops


def _axis_weights(images: ImageBatch, geometry: _Geometry, axis: int, length: int) -> Tensor:
    """Build the (B, length, extent) map along one axis: a triangle, widened where the image shrinks."""
    positions, inside = _positions(geometry, axis, length)
    extent = images.sizes[:, axis, None, None].float()
    ratio = extent / geometry.scaled[:, axis, None, None]
    sources = torch.arange(images.pixels.shape[1 + axis], device=positions.device)
    distance = (sources + 0.5 - (positions[:, :, None] + 0.5) * ratio).abs() / ratio.clamp_min(1)
    weights = (1 - distance).clamp_min(0) * (sources < extent) * inside[:, :, None]
    return weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-6)


def _crop_by_matrices(images: ImageBatch, geometry: _Geometry, size: tuple[int, int]) -> Tensor:
    """Do the same for all images at once with two matrix products, so that the host need not know the geometry."""
    batch, height, width, _ = images.pixels.shape
    vertical, horizontal = (_axis_weights(images, geometry, axis, size[axis]) for axis in (0, 1))
    planes = images.pixels.permute(0, 3, 1, 2).reshape(batch, 3 * height, width).float()
    rows = torch.bmm(planes, horizontal.transpose(1, 2)).round_().clamp_(0, 255)
    rows = rows.view(batch, 3, height, size[1]).transpose(1, 2).reshape(batch, height, 3 * size[1])
    crops = torch.bmm(vertical, rows).round_().clamp_(0, 255)
    return crops.view(batch, size[0], 3, size[1]).transpose(1, 2).contiguous()


def distort_colors(images: Tensor, numbers: Tensor, policy: ColorPolicy) -> Tensor:
    """Return distorted ``images`` (B, 3, h, w) float32 in 0..255, which stay as they are.

    Args:
        images: what to distort.
        numbers: (B, 12) uniform in [0, 1).
        policy: how strongly and how often.
    """
    chances, turns, factors = numbers[:, :3], numbers[:, 3:7], numbers[:, 7:11]
    images = images.clone()
    if policy.jitter > 0:
        strengths = policy.brightness, policy.contrast, policy.saturation
        bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-policy.hue, policy.hue)]
        drawn = [low + (high - low) * factors[:, column] for column, (low, high) in enumerate(bounds)]
        steps = jitter_steps(turns.argsort(dim=1), torch.stack(drawn[:3], dim=1))
        images = where_chosen(chances[:, 0] < policy.jitter, jitter, images, steps, drawn[3])
    if policy.grayscale > 0:
        images = where_chosen(chances[:, 1] < policy.grayscale, grayscale, images)
    if policy.blur > 0:
        sigma = policy.blur_sigma[0] + (policy.blur_sigma[1] - policy.blur_sigma[0]) * numbers[:, 11]
        blur = partial(gaussian_blur, width=blur_width(min(images.shape[2:])))
        images = where_chosen(chances[:, 2] < policy.blur, blur, images, sigma)
    return images


def _normalized(images: Tensor, outside: Tensor, settings: SegmentViewSettings) -> Tensor:
    """Take off the mean, divide by the deviation, 0 where ``outside`` (B, h, w); changes ``images``."""
    for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        plane = images[:, channel]
        plane.sub_(255 * mean).mul_(1 / (255 * std)).masked_fill_(outside, 0.0)
    return images.contiguous(memory_format=torch.channels_last)


def segment_views(
    batch: ImageBatch, settings: SegmentViewSettings, view: int, distortions: Mapping[str, ColorPolicy] | None = None
) -> dict[str, Tensor]:
    """Scale, crop, mirror and normalize every image and its mask, and distort its colors in some ways besides.

    Images are resized bilinearly without aliasing, masks take the nearest pixel of the same geometry. Where the
    scaled image is smaller than the crop, the rest, to the right and below before mirroring, has the mean color.

    Args:
        batch: B images and what identifies them; a view depends on nothing else of the batch.
        settings: what all views of the run share.
        view: number of the view, below 2**14; other numbers give independent views.
        distortions: name -> policy of further results with the same geometry, each with color draws of its own.

    Returns:
        ``images`` (B, 3, h, w) float32 in channels_last memory format and likewise one entry per distortion, all 0
        outside the image; ``masks`` (B, h, w) int64, 255 outside the image and everywhere if ``images`` have
        none; ``valid`` (B, h, w) bool, true inside the image.
    """
    size, geometry = settings.crop_size, _draw_geometry(batch, settings, view)
    inside = [_positions(geometry, axis, size[axis])[1] for axis in (0, 1)]
    valid = inside[0][:, :, None] & inside[1][:, None, :]
    masks = torch.full_like(valid, IGNORED, dtype=torch.int64)
    if batch.masks is not None:
        masks = torch.where(valid, _nearest(batch, geometry, size), masks)
    crop = _crop_one_by_one if host_can_look(batch.pixels) else _crop_by_matrices
    # Half precision under a surrounding autocast would be coarser than the 256 levels of the image.
    with torch.no_grad(), torch.autocast(batch.pixels.device.type, enabled=False):
        images, outside = crop(batch, geometry, size), ~valid
        for channel, mean in enumerate(settings.mean):
            images[:, channel].masked_fill_(outside, 255 * mean)
        results = {}
        for number, (name, policy) in enumerate((distortions or {}).items()):
            stream = COLOR_VIEWS + 16 * view + number
            numbers = uniform(settings.seed, batch.index, batch.epoch, stream, _COLOR_DRAWS)
            results[name] = _normalized(distort_colors(images, numbers, policy), outside, settings)
        return {"images": _normalized(images, outside, settings), **results, "masks": masks, "valid": valid}


def zoom_draws(
    images: ImageBatch, settings: SegmentViewSettings, view: int, chance: float, scale: tuple[float, float]
) -> Tensor:
    """Draw how views are zoomed and mirrored once more, by :func:`tpssl_hf.augment.mixing.zoom`.

    Args:
        images: B images; the draws depend on what identifies each and on nothing else.
        settings: of these the seed, and whether mirroring is allowed.
        view: number of the view, below 2**14; other numbers give independent draws.
        chance: probability of a zoom; without it the factor is 1.
        scale: smallest and largest factor, all alike.

    Returns:
        (B, 4) float32: the factor; the place of the zoomed window, down and to the right, each in [-1, 1); and -1 for
        a mirrored view, else 1.
    """
    numbers = uniform(settings.seed, images.index, images.epoch, ZOOM_VIEWS + view, 5)
    factor = torch.where(numbers[:, 0] < chance, draw_scales(numbers[:, 1], scale, "uniform").float(), 1.0)
    mirrored = numbers[:, 4] < (0.5 if settings.horizontal_flip else 0.0)
    sign = 1.0 - 2.0 * mirrored.float()
    return torch.stack((factor, 2 * numbers[:, 2] - 1, 2 * numbers[:, 3] - 1, sign), dim=1)
