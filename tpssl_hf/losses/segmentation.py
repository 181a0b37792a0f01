"""Losses of semi-supervised segmentation, pixel by pixel, all computed in float32.

Means are over the pixels of all processes.
"""

import math

import torch.nn.functional as F
from torch import Tensor, distributed

IGNORED = 255  # label of a pixel that does not count


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that are not ignored; 0, with a gradient of 0, if all are.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 in 0..K-1, or 255.
    """
    terms = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    return terms.sum() / _per_process(labels != IGNORED)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, counted: Tensor | None = None) -> Tensor:
    """Σ w·CE over the pixels that are not ignored, divided by the number of pixels.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64 in 0..K-1, or 255.
        weights: (B, H, W), or of a shape that broadcasts to it; no gradient reaches them.
        counted: (B, H, W) bool, the pixels to divide by the number of, at least 1; all, ignored ones too, if None.
    """
    terms = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    total = (weights.detach() * terms).sum()
    return total / (terms.numel() if counted is None else _per_process(counted))


def confident_share(confidence: Tensor, threshold: float) -> Tensor:
    """Fraction of pixels whose ``confidence`` (B, H, W) is ``threshold`` or more: one number for the whole batch."""
    return (confidence.detach() >= threshold).float().mean()


def squared_consistency(logits: Tensor, targets: Tensor, valid: Tensor, confidence: Tensor) -> Tensor:
    """Squared distance of predictions, summed over classes and averaged over all pixels (French et al., 2020, code).

    Args:
        logits: (B, K, H, W) of the student.
        targets: (B, K, H, W) probabilities; no gradient reaches them.
        valid: (B, H, W) bool; other pixels add nothing, but count in the mean.
        confidence: factor of the whole, a scalar in the original.
    """
    distances = (logits.float().softmax(dim=1) - targets.detach().float()).square().sum(dim=1)
    return (confidence.detach() * valid * distances).mean()


def pixel_entropy(logits: Tensor, valid: Tensor) -> Tensor:
    """Mean entropy of the valid pixels' predictions, in units of its maximum log K, so in [0, 1]; 0 without any.

    Args:
        logits: (B, K, H, W).
        valid: (B, H, W) bool.
    """
    logarithms = logits.float().log_softmax(dim=1)
    entropies = -(logarithms.exp() * logarithms).sum(dim=1)
    return (valid * entropies).sum() / (math.log(logits.shape[1]) * _per_process(valid))


def _per_process(counted: Tensor) -> Tensor:
    """Number of ``counted`` pixels, at least 1, as the mean over all processes, so that each pixel weighs the same."""
    count = counted.sum().float()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp_min(1)
