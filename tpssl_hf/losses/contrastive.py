"""Losses between two views of one image (paper §III-A)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of −cos(prediction, target) over the batch (Eq. 2), in [−1, 1]; no gradient reaches ``targets``.

    Args:
        predictions: (B, D) outputs of the online predictor.
        targets: (B, D) projections of the target network.
    """
    predictions = F.normalize(predictions.float(), dim=1)
    targets = F.normalize(targets.detach().float(), dim=1)
    return -(predictions * targets).sum(dim=1).mean()


def normalized_std(projections: Tensor) -> Tensor:
    """Standard deviation over the batch of l2-normalized projections (B, D), averaged over dimensions.

    About 1/√D for spread-out projections, towards 0 when they collapse to one point (Chen & He, 2021, §4.1).
    """
    return F.normalize(projections.detach().float(), dim=1).std(dim=0, correction=0).mean()


def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE over the batch with negatives shared by all queries (Eq. 1; He et al., 2020, Eq. 1).

    −log exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_j exp(q·n_j/τ)); gradients reach ``queries`` only.

    Args:
        queries: (B, D), normalized here.
        keys: (B, D), the positive of each query, normalized here.
        negatives: (K, D), unit rows.
        temperature: τ > 0.
    """
    queries = F.normalize(queries.float(), dim=1)
    keys = F.normalize(keys.detach().float(), dim=1)
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries * keys).sum(dim=1, keepdim=True)
        negative = queries @ negatives.detach().float().T
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def nt_xent(projections: Tensor, others: Tensor, own: slice, temperature: float) -> Tensor:
    """Mean NT-Xent of this process's anchors (Eq. 1; Chen et al., 2020, Eq. 1): all other views are negatives.

    The positive stays in the denominator, only the anchor itself is left out.

    Args:
        projections: (N, D), first views of all processes, normalized here.
        others: (N, D), second views of the same images in the same order, normalized here.
        own: rows of this process; its 2·len anchors are averaged.
        temperature: τ > 0.
    """
    count = len(projections)
    views = F.normalize(torch.cat([projections, others]).float(), dim=1)
    rows = torch.arange(count, device=views.device)[own]
    anchors = torch.cat([rows, rows + count])
    with torch.autocast(views.device.type, enabled=False):
        logits = views[anchors] @ views.T / temperature
    logits = logits.scatter(1, anchors[:, None], float("-inf"))
    return F.cross_entropy(logits, (anchors + count) % (2 * count))


def nearby_cells(geometry: Tensor, other: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Tell which cells of two views show nearby places of their image (Xie et al., 2021, Eq. 1).

    Distances between centers are in units of the larger of the two views' cell diagonals. Both axes are relative to
    the image, as in the original, so on an oblong one a step along the longer side counts less.

    Args:
        geometry: (B, 4) x0, y0, x1, y1 of the first view in its image, in [0, 1]; x0 > x1 if it is mirrored.
        other: (B, 4), likewise of the second view.
        size: height and width of both maps in cells.
        threshold: largest distance, exclusive.

    Returns:
        (B, N, N) bool for the N = height · width cells of the first view (rows) and of the second (columns).
    """
    centers, diagonals = zip(*(_cells(boxes.float(), *size) for boxes in (geometry, other)), strict=True)
    offsets = centers[0][:, :, None] - centers[1][:, None]
    distances: Tensor = offsets.norm(dim=3) / torch.maximum(*diagonals)[:, None, None]
    return distances < threshold


def _cells(geometry: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return centers (B, height · width, 2) and diagonal (B,) of the cells into which ``geometry`` (B, 4) is cut."""
    start, extent = geometry[:, :2], geometry[:, 2:] - geometry[:, :2]
    x = start[:, :1] + (torch.arange(width, device=geometry.device) + 0.5) / width * extent[:, :1]
    y = start[:, 1:] + (torch.arange(height, device=geometry.device) + 0.5) / height * extent[:, 1:]
    centers = torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=3)
    return centers.flatten(1, 2), torch.hypot(extent[:, 0] / width, extent[:, 1] / height)


def pixpro_consistency(
    predictions: Tensor, targets: Tensor, weights: Tensor, empty_pairs: Literal["count", "skip"]
) -> Tensor:
    """−cos between cells of two views, weighted mean per image, then mean of the images (Xie et al., 2021, Eq. 5).

    No gradient reaches ``targets``.

    Args:
        predictions: (B, D, h, w) of one view, normalized here.
        targets: (B, D, h, w) of the other, normalized here.
        weights: (B, h·w, h·w) of each pair of a cell of ``predictions`` and one of ``targets``, 0 where they do not
            belong together.
        empty_pairs: whether an image without any pair, whose loss is 0, is a member of the mean over images
            (``"count"``, as in the original) or not (``"skip"``).
    """
    with torch.autocast(predictions.device.type, enabled=False):
        predictions = F.normalize(predictions.float(), dim=1).flatten(2)
        targets = F.normalize(targets.detach().float(), dim=1).flatten(2)
        similarities = predictions.transpose(1, 2) @ targets
        totals = weights.float().sum(dim=(1, 2))
        losses = -(similarities * weights).sum(dim=(1, 2)) / (totals + 1e-6)
        images = (totals > 0).sum().clamp_min(1) if empty_pairs == "skip" else len(losses)
        return losses.sum() / images
