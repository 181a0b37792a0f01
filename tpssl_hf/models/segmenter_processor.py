"""What images go through before a segmenter, apart from the network: transformers loads it with the Auto class."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from transformers import SegformerImageProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ImagesKwargs

from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig
from tpssl_hf.models.shrinking import reduced_size, shrunk


class TpsslSegmenterKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg, misc]
    """Settings of :class:`TpsslSegmenterImageProcessor` besides those of every image processor.

    Attributes:
        do_reduce_labels: as in ``SegformerImageProcessor``.
        shorter_side: pixels to which the shorter side of larger images is shrunk, the longer to twice as many at most;
            0 or None keeps their size.
    """

    do_reduce_labels: bool
    shorter_side: int | None


class TpsslSegmenterImageProcessor(SegformerImageProcessor):  # type: ignore[misc]
    """Shrinks large images as the cache of training images did, and enlarges none; the rest is Segformer's.

    Args:
        **settings: see :class:`TpsslSegmenterKwargs`.
    """

    valid_kwargs = TpsslSegmenterKwargs
    shorter_side = None
    do_convert_rgb = True

    def _preprocess(self, images: list[Tensor], shorter_side: int | None = None, **others: Any) -> Any:
        if shorter_side:
            exact = others["resample"] == InterpolationMode.NEAREST_EXACT  # that of masks
            images = [_shrunk(image, shorter_side, exact=exact) for image in images]
        return super()._preprocess(images, **others)


def processor_of(
    config: TpsslSegmenterConfig, shorter_side: int | None, image_size: tuple[int, int] | None
) -> TpsslSegmenterImageProcessor:
    """Return the processor of a segmenter; see :func:`tpssl_hf.models.segmenter.save_segmenter`."""
    sizes = {"do_resize": False} if image_size is None else {"size": {"height": image_size[0], "width": image_size[1]}}
    return TpsslSegmenterImageProcessor(
        image_mean=config.image_mean, image_std=config.image_std, shorter_side=shorter_side, **sizes
    )


def _shrunk(image: Tensor, shorter_side: int, *, exact: bool) -> Tensor:
    """Shrink an image (C, H, W); 8-bit colors by the very function that training used."""
    size = reduced_size(image.shape[1], image.shape[2], shorter_side)
    if size == tuple(image.shape[1:]):
        return image
    if exact:
        return functional.interpolate(image[None].float(), size, mode="nearest-exact")[0].to(image.dtype)
    if image.dtype == torch.uint8 and len(image) == 3:
        small = shrunk(Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy()), size)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(*size, 3)
        return pixels.permute(2, 0, 1).to(image.device)
    return functional.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0]


AutoImageProcessor.register(
    TpsslSegmenterConfig, image_processor_classes={"torchvision": TpsslSegmenterImageProcessor}, exist_ok=True
)
