"""Views and passes that several learners share; the numbers keep their random draws apart."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpssl_hf.augment.segment_views import IGNORED, ColorPolicy, SegmentViewSettings, segment_views
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.methods.base import Views

LABELED, UNLABELED = 31, 32


def labeled_crops(settings: SegmentViewSettings) -> Views:
    """Return the stream ``labeled``: ``images`` (B, 3, H, W) and ``masks`` (B, H, W), without color distortions."""

    def labeled(images: ImageBatch) -> dict[str, Tensor]:
        views = segment_views(images, settings, LABELED)
        return {"images": views["images"], "masks": views["masks"]}

    return {"labeled": labeled}


def unlabeled_crops(settings: SegmentViewSettings, distortions: Mapping[str, ColorPolicy]) -> Views:
    """Return the stream ``unlabeled``: ``images``, ``valid`` (U, H, W) and each distortion; masks are left out."""

    def unlabeled(images: ImageBatch) -> dict[str, Tensor]:
        views = segment_views(images, settings, UNLABELED, distortions)
        del views["masks"]
        return views

    return {"unlabeled": unlabeled}


def logits_of(segmenter: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (B, K, H, W), float32, of images (B, 3, H, W)."""
    logits: Tensor = segmenter(images).logits
    return logits.float()


def predictions(logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes (B, H, W) int64, 255 where not ``valid``, and their probabilities; without gradients.

    Args:
        logits: (B, K, H, W).
        valid: (B, H, W) bool.
    """
    confidence, labels = logits.detach().softmax(dim=1).max(dim=1)
    return torch.where(valid, labels, IGNORED), confidence


def next_one(values: Tensor) -> Tensor:
    """Return for each row the next one of the batch, and for the last the first."""
    return values.roll(-1, dims=0)
