"""Views of pretraining: which distortions, how strong, how often, in which order."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tpssl_hf.augment.affine import AFFINE_DRAWS, AFFINE_VIEWS, AffinePolicy, draw_affine, warp
from tpssl_hf.augment.color import (
    blur_width,
    gaussian_blur,
    grayscale,
    jitter,
    jitter_steps,
    solarize,
    where_chosen,
)
from tpssl_hf.augment.geometry import (
    CROP_DRAWS,
    central_boxes,
    normalized_boxes,
    random_resized_crop_boxes,
    resized_crop,
)
from tpssl_hf.augment.rng import uniform
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import Preprocessing

# On a CPU as many images are distorted at a time as stay in its cache from one operation to the next.
_CHUNK_BYTES = 1_000_000
_GPU_CHUNK_BYTES = 512 * 2**20  # of images in float32: one large image makes the whole padded batch as large
_DRAWS = CROP_DRAWS + 1 + 13  # the crop, the flip, and what _distortions takes


@dataclass(frozen=True)
class ViewPolicy:
    """Distortions of one view, in the order in which they are applied.

    The defaults are those of BYOL (Grill et al. 2020, appendix B).
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the crop as a fraction of the image's
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width divided by its height
    interpolation: str = "bicubic"  # or "bilinear"
    flip: float = 0.5  # this and all single numbers below but the four strengths are probabilities
    jitter: float = 0.8
    brightness: float = 0.4  # factors are drawn from 1 - strength .. 1 + strength
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # in full circles, to either side
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # in pixels of the view
    solarize: float = 0.0

    def __post_init__(self) -> None:
        if self.interpolation not in ("bilinear", "bicubic"):
            raise InputError(f"interpolation is {self.interpolation!r}; use 'bilinear' or 'bicubic'.")


BYOL_VIEW_1 = ViewPolicy(blur=1.0, solarize=0.0)  # ibid., distribution T
MOCO_VIEW = ViewPolicy(  # Chen et al., 2020, arXiv 2003.04297, section 3, on torchvision's defaults
    crop_scale=(0.2, 1.0), interpolation="bilinear", saturation=0.4, blur=0.5
)
# Ours, for a teacher that must recognize what it sees: larger crops, colors at half of MoCo's strength, no blur
DISTILL_VIEW = replace(
    MOCO_VIEW,
    crop_scale=(0.4, 1.0),
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.05,
    grayscale=0.1,
    blur=0.0,
)
SIMCLR_VIEW = ViewPolicy(saturation=0.4, blur=0.5)  # Chen et al., 2020, arXiv 2002.05709, App. A, half its strength
BYOL_VIEW_2 = ViewPolicy(blur=0.1, solarize=0.2)  # ibid., distribution T'
# BYOL's two (Xie et al., 2021, arXiv 2011.10043, section 4.1), interpolated as in the official code
PIXPRO_VIEW_1 = replace(BYOL_VIEW_1, interpolation="bilinear")
PIXPRO_VIEW_2 = replace(BYOL_VIEW_2, interpolation="bilinear")


@dataclass(frozen=True)
class ViewSettings:
    """What all views of a run share.

    Attributes:
        image_size: height and width of the views in pixels.
        mean: of the red, green and blue values in 0..1 that the network expects to be subtracted.
        std: the standard deviations it expects to be divided by.
        seed: of all random draws.
        horizontal_flip: whether mirroring keeps the meaning of an image; it does not for digits.
        work_size: side in pixels at which weak and strong views are distorted before they are brought to
            ``image_size``; ``image_size`` if None.
        crop: how these two are cropped, ``"pad"``: padded by an eighth of the side, reflected, and cropped, or
            ``"rrc"``: a box of random area and shape.
        interpolation: how undistorted images are resized, ``"bicubic"`` or ``"bilinear"``.
        crop_pct: side of the central square that is shown of them, as a fraction of the shorter side.
        crop_mode: ``"center"``; or ``"squash"``, where the fraction is of either side and the shape is lost.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    seed: int
    horizontal_flip: bool = True
    work_size: int | None = None
    crop: str = "pad"
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise InputError(f"image_size is {self.image_size}; views need at least 1 pixel, 224 is usual.")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}; images are divided by it, so give three numbers above 0.")
        if self.work_size is not None and self.work_size < 1:
            raise InputError(f"work_size is {self.work_size}; give at least 1 pixel, or nothing for image_size.")
        if self.crop not in ("pad", "rrc"):
            raise InputError(f"crop is {self.crop!r}; use 'pad' or 'rrc'.")
        if not 0 < self.crop_pct <= 1:
            raise InputError(f"crop_pct is {self.crop_pct}; give a fraction above 0, or 1 for the whole image.")

    @classmethod
    def of(cls, shown: Preprocessing, seed: int, **settings: Any) -> "ViewSettings":
        """Return settings of views that show images as weights want it; ``settings`` are what else they hold."""
        return cls(seed=seed, **{**asdict(shown), **settings})

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are shown for evaluation, to be saved with a network that was evaluated so."""
        return Preprocessing(**{item.name: getattr(self, item.name) for item in fields(Preprocessing)})


# Which images to change (B,), how, and with which parameters (B, ...) besides the images.
_Distortion = tuple[Tensor, Callable[..., Tensor], tuple[Tensor, ...]]


def _distortions(numbers: Tensor, policy: ViewPolicy, size: int) -> list[_Distortion]:
    """Decide on all of ``policy`` that keeps pixels in place, given (B, 13) draws for views of ``size`` pixels."""
    chances, turns, factors, widths = numbers[:, :4], numbers[:, 4:8], numbers[:, 8:12], numbers[:, 12]
    distortions: list[_Distortion] = []
    if policy.jitter > 0:
        strengths = policy.brightness, policy.contrast, policy.saturation
        bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in strengths] + [(-policy.hue, policy.hue)]
        drawn = [low + (high - low) * factors[:, column] for column, (low, high) in enumerate(bounds)]
        steps = jitter_steps(turns.argsort(dim=1), torch.stack(drawn[:3], dim=1))
        distortions.append((chances[:, 0] < policy.jitter, jitter, (steps, drawn[3])))
    if policy.grayscale > 0:
        distortions.append((chances[:, 1] < policy.grayscale, grayscale, ()))
    if policy.blur > 0:
        sigma = policy.blur_sigma[0] + (policy.blur_sigma[1] - policy.blur_sigma[0]) * widths
        blur = partial(gaussian_blur, width=blur_width(size))
        distortions.append((chances[:, 2] < policy.blur, blur, (sigma,)))
    if policy.solarize > 0:
        distortions.append((chances[:, 3] < policy.solarize, solarize, ()))
    return distortions


def normalize(images: Tensor, settings: ViewSettings, result: Tensor) -> None:
    """Write ``images`` (B, 3, S, S) in 0..255 into ``result`` with the mean taken off and the deviation divided by."""
    for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
        offset = torch.tensor(-mean / std)  # stays on the host, from where scalars reach a GPU without a wait
        torch.add(offset, images[:, channel], alpha=1 / (255 * std), out=result[:, channel])


def gpu_chunk(pixels: Tensor) -> int:
    """Return how many of ``pixels`` (B, H, W, 3) to distort at a time on a GPU: all, unless they are large."""
    return _GPU_CHUNK_BYTES // (4 * pixels[0].numel())


def _render(
    batch: ImageBatch,
    boxes: Tensor,
    flip: Tensor,
    settings: ViewSettings,
    interpolation: str,
    distortions: list[_Distortion],
) -> Tensor:
    """Crop, distort and normalize: a cache's worth of images at a time, on a GPU all that fit."""
    size, pixels = settings.image_size, batch.pixels
    shape = len(batch), 3, size, size
    result = torch.empty(shape, device=pixels.device, memory_format=torch.channels_last)
    step = max(1, gpu_chunk(pixels) if pixels.is_cuda else _CHUNK_BYTES // (12 * size * size))
    # Half precision under a surrounding autocast would be coarser than the 256 levels of the image.
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        for start in range(0, len(batch), step):
            rows = slice(start, start + step)
            images = resized_crop(pixels[rows], boxes[rows], flip[rows], size, interpolation)
            for chosen, operation, parameters in distortions:
                images = where_chosen(chosen[rows], operation, images, *(values[rows] for values in parameters))
            normalize(images, settings, result[rows])
    return result


def make_view(batch: ImageBatch, policy: ViewPolicy, settings: ViewSettings, view: int) -> tuple[Tensor, Tensor]:
    """Draw one view of every image: crop, mirror, jitter, grayscale, blur, solarize, normalize, in this order.

    Args:
        batch: B images and what identifies them; a view depends on nothing else of the batch.
        policy: which distortions.
        settings: what all views of the run share.
        view: number of the view; other numbers give independent views.

    Returns:
        (B, 3, S, S) float32 in channels_last memory format, and (B, 4) float32, the crop as ``normalized_boxes``.
    """
    numbers = uniform(settings.seed, batch.index, batch.epoch, view, _DRAWS)
    boxes = random_resized_crop_boxes(numbers[:, :CROP_DRAWS], batch.sizes, policy.crop_scale, policy.crop_ratio)
    flip = numbers[:, CROP_DRAWS] < (policy.flip if settings.horizontal_flip else 0.0)
    distortions = _distortions(numbers[:, CROP_DRAWS + 1 :], policy, settings.image_size)
    images = _render(batch, boxes, flip, settings, policy.interpolation, distortions)
    return images, normalized_boxes(boxes, flip, batch.sizes)


def one_view(images: ImageBatch, policy: ViewPolicy, settings: ViewSettings) -> dict[str, Tensor]:
    """Return ``view1`` (B, 3, S, S) of every image and its ``geometry1`` (B, 4)."""
    view, geometry = make_view(images, policy, settings, view=1)
    return {"view1": view, "geometry1": geometry}


def two_views(
    images: ImageBatch, policies: tuple[ViewPolicy, ViewPolicy], settings: ViewSettings
) -> dict[str, Tensor]:
    """Return ``view1``, ``view2`` (B, 3, S, S) of the same images and their ``geometry1``, ``geometry2`` (B, 4)."""
    view1, geometry1 = make_view(images, policies[0], settings, view=1)
    view2, geometry2 = make_view(images, policies[1], settings, view=2)
    return {"view1": view1, "view2": view2, "geometry1": geometry1, "geometry2": geometry2}


def two_affine_views(
    batch: ImageBatch, policies: tuple[ViewPolicy, ViewPolicy], affine: AffinePolicy, settings: ViewSettings
) -> dict[str, Tensor]:
    """Return what ``two_views`` does, each view warped at the very end (paper §III-C), and how.

    The warp works on normalized images, so that what comes in from outside has the mean color. ``affine1`` and
    ``affine2`` (B, 3, 3) are the matrices; where one is the identity, the view is that of ``two_views`` to the bit.
    """
    views = two_views(batch, policies, settings)
    for number in (1, 2):
        drawn = uniform(settings.seed, batch.index, batch.epoch, AFFINE_VIEWS + number, AFFINE_DRAWS)
        matrix = draw_affine(drawn, affine)
        images = warp(views[f"view{number}"], matrix).contiguous(memory_format=torch.channels_last)
        views |= {f"view{number}": images, f"affine{number}": matrix}
    return views


def eval_view(images: ImageBatch, settings: ViewSettings) -> Tensor:
    """Return the central square of every image, resized and normalized: (B, 3, S, S) as ``make_view``'s."""
    flip = torch.zeros_like(images.index, dtype=torch.bool)
    # timm resizes to a whole number of pixels first, and then cuts
    fraction = settings.image_size / math.floor(settings.image_size / settings.crop_pct)
    boxes = central_boxes(images.sizes, fraction, squash=settings.crop_mode == "squash")
    return _render(images, boxes, flip, settings, settings.interpolation, [])
