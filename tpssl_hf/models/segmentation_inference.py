"""Class maps of whole images, at the size of the images."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpssl_hf.errors import InputError
from tpssl_hf.models.evaluation_mode import evaluation_mode, every_core

Size = int | tuple[int, int]


@torch.no_grad()
def predict_masks(
    model: nn.Module,
    images: Tensor,
    *,
    mode: Literal["whole", "resize", "slide"] = "whole",
    size: Size | None = None,
    window: Size | None = None,
    overlap: float = 0.5,
) -> Tensor:
    """Return the most probable class of every pixel of normalized images (B, 3, H, W), as (B, H, W).

    The model predicts in evaluation mode, and all its layers are left in the mode they were in.

    Args:
        model: images (B, 3, H, W) of any size to an output with ``logits`` (B, K, H, W), as a segmenter.
        images: on the model's device.
        mode: ``whole`` images in one pass; ``resize`` them to ``size`` and their logits back; ``slide`` a window over
            them and average the probabilities where windows overlap.
        size: height and width, or one number for both, of mode ``resize``.
        window: likewise, of mode ``slide``; where an image is smaller, the window shrinks to it.
        overlap: least part of a window that the next one covers again, in [0, 1).

    Returns:
        Classes as uint8, or int64 if there are more than 256.

    Raises:
        InputError: for an unknown mode, or a size, window or overlap that is missing or out of its range.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"images have shape {tuple(images.shape)}; give one or more as (B, 3, H, W).")
    with evaluation_mode(model), every_core():
        if mode == "whole":
            scores = _logits(model, images)
        elif mode == "resize":
            inputs = F.interpolate(
                images, size=_pair(size, "size"), mode="bilinear", align_corners=False, antialias=True
            )
            scores = F.interpolate(_logits(model, inputs), size=images.shape[2:], mode="bilinear", align_corners=False)
        elif mode == "slide":
            scores = slide(lambda part: _logits(model, part), images, _pair(window, "window"), overlap)
        else:
            raise InputError(f"mode {mode!r} is not whole, resize or slide; choose one of them.")
    return scores.argmax(dim=1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int64)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images).logits
    return logits.float()


def slide(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, window: Sequence[int], overlap: float = 0.5
) -> Tensor:
    """Return probabilities (B, K, H, W) of images (B, 3, H, W): means over windows.

    Args:
        logits_of: images no larger than the window to logits of the same size.
        images: of any size.
        window: height and width; where an image is smaller, the window shrinks to it.
        overlap: least part of a window that the next one covers again, in [0, 1).

    Raises:
        InputError: for an overlap that is out of its range.
    """
    if not 0 <= overlap < 1:
        raise InputError(f"overlap {overlap} is not in [0, 1); 0.5 covers every inner pixel with four windows.")
    height, width = (min(pair) for pair in zip(window, images.shape[2:], strict=True))
    total: Tensor | None = None
    for top in _starts(images.shape[2], height, overlap):
        for left in _starts(images.shape[3], width, overlap):
            part = slice(top, top + height), slice(left, left + width)
            probabilities = logits_of(images[:, :, *part]).softmax(dim=1)
            if total is None:
                total = probabilities.new_zeros(*probabilities.shape[:2], *images.shape[2:])
            total[:, :, *part] += probabilities
    assert total is not None
    return total / total.sum(dim=1, keepdim=True)


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one side: in equal steps, and the last one flush with the end."""
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, length - window, step), length - window]


def _pair(size: Size | None, name: str) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    if min(height, width) < 1:
        raise InputError(f"{name} {size} is not a positive number or pair of them; say how many pixels.")
    return height, width
