"""Weak and strong views for learning from few labels: what is predicted on the one is to be learned on the other."""

import torch
from torch import Tensor
from torch.nn import functional

from tpssl_hf.augment.color import host_can_look
from tpssl_hf.augment.geometry import CROP_DRAWS, central_boxes, random_resized_crop_boxes, resized_crop
from tpssl_hf.augment.pretrain_views import ViewSettings, gpu_chunk, normalize
from tpssl_hf.augment.randaugment import (
    CUTOUT_DRAWS,
    FIXMATCH_STRONG,
    RandAugmentPolicy,
    cutout,
    rand_augment,
)
from tpssl_hf.augment.rng import uniform
from tpssl_hf.data.image_batch import ImageBatch

STRONG_VIEWS = 1 << 17  # added to the number of a strong view, so that it shares no draw with the weak one
WEAK_DRAWS = CROP_DRAWS + 1  # the crop and the flip
CROP_SCALE, _CROP_RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of crop="rrc"
# On a CPU as many images are distorted at a time as stay in its outer cache: more than elsewhere, for only one in
# thirty takes part in each call of an operation.
_CHUNK_BYTES = 4_000_000


def _padded_crop(images: Tensor, numbers: Tensor) -> Tensor:
    """Pad (B, 3, S, S) by S/8 pixels, mirrored without the edge, and crop S x S at an offset by ``numbers`` (B, 2)."""
    size = images.shape[-1]
    pad = round(size / 8)
    offset = (numbers * (2 * pad + 1)).floor().long() - pad
    source = (torch.arange(size, device=images.device) + offset[:, :, None]).abs_()
    source = (size - 1) - (size - 1 - source).abs_()
    rows, columns = source.unbind(1)
    places = (rows[:, :, None] * size + columns[:, None]).flatten(1)[:, None]
    return images.flatten(2).gather(2, places.expand(-1, 3, -1)).view_as(images)


def _weakly_distorted(batch: ImageBatch, numbers: Tensor, settings: ViewSettings) -> Tensor:
    """Return all images at working size, mirrored and cropped: (B, 3, W, W) float32, whole numbers in 0..255."""
    size = settings.work_size or settings.image_size
    crop, flip = numbers[:, :CROP_DRAWS], numbers[:, CROP_DRAWS] < (0.5 if settings.horizontal_flip else 0.0)
    if settings.crop == "rrc":
        boxes = random_resized_crop_boxes(crop, batch.sizes, CROP_SCALE, _CROP_RATIO)
        return resized_crop(batch.pixels, boxes, flip, size, "bicubic")
    images = resized_crop(batch.pixels, central_boxes(batch.sizes), flip, size, "bicubic")
    return _padded_crop(images, crop[:, :2])


def _resized(images: Tensor, size: int) -> Tensor:
    """Resize whole (B, 3, W, W), all of the same size, which a CPU can do at once."""
    if images.shape[-1] == size:
        return images
    pixels = images.to(torch.uint8, memory_format=torch.channels_last)
    if host_can_look(pixels):
        return functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).float()
    boxes = central_boxes(torch.full((len(images), 2), images.shape[-1], device=images.device))
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    return resized_crop(pixels.permute(0, 2, 3, 1), boxes, flip, size, "bicubic")


def _render(batch: ImageBatch, settings: ViewSettings, view: int, policy: RandAugmentPolicy | None) -> Tensor:
    """Distort, resize and normalize: a cache's worth of images at a time, on a GPU all that fit."""
    draws = WEAK_DRAWS + (policy.draws if policy is not None else 0)
    numbers = uniform(settings.seed, batch.index, batch.epoch, view, draws)
    pixels, size = batch.pixels, settings.image_size
    result = torch.empty((len(batch), 3, size, size), device=pixels.device, memory_format=torch.channels_last)
    widest = max(size, settings.work_size or size)
    step = max(1, gpu_chunk(pixels) if pixels.is_cuda else _CHUNK_BYTES // (12 * widest * widest))
    # Half precision under a surrounding autocast would be coarser than the 256 levels of the image.
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        for start in range(0, len(batch), step):
            rows = slice(start, start + step)
            images = _weakly_distorted(batch[rows], numbers[rows], settings)
            if policy is not None:
                images = rand_augment(images, numbers[rows, WEAK_DRAWS:], policy)
                images = cutout(images, numbers[rows, -CUTOUT_DRAWS:], policy.cutout)
            normalize(_resized(images, size), settings, result[rows])
    return result


def weak_view(images: ImageBatch, settings: ViewSettings, view: int) -> Tensor:
    """Draw a view that hardly differs from the image: mirrored and shifted by up to an eighth, or cropped.

    The largest central square is brought to ``settings.work_size``, mirrored half of the time if mirroring is allowed,
    padded by reflection and cropped, brought to ``settings.image_size`` and normalized. With ``crop="rrc"`` a box of a
    fifth to all of the image's area takes the place of square, padding and crop.

    Args:
        images: B images and what identifies them; a view depends on nothing else of the batch.
        settings: what all views of the run share.
        view: number of the view, below STRONG_VIEWS; other numbers give independent views.

    Returns:
        (B, 3, S, S) float32 in channels_last memory format.
    """
    return _render(images, settings, view, None)


def strong_view(
    images: ImageBatch, settings: ViewSettings, view: int, policy: RandAugmentPolicy = FIXMATCH_STRONG
) -> Tensor:
    """Draw a view in which only the meaning of the image stays: a weak one, then RandAugment and Cutout.

    It shares no draw with any weak view, of whatever number; RandAugment and Cutout work at ``settings.work_size``.

    Args:
        images: B images and what identifies them; a view depends on nothing else of the batch.
        settings: what all views of the run share.
        view: number of the view, below STRONG_VIEWS; other numbers give independent views.
        policy: how strong.

    Returns:
        (B, 3, S, S) float32 in channels_last memory format.
    """
    return _render(images, settings, STRONG_VIEWS + view, policy)
