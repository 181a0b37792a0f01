"""Losses between two views of one picture (paper §III-A)."""

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


def normalised_std(projections: Tensor) -> Tensor:
    """Standard deviation over the batch of l2-normalised projections (B, D), averaged over dimensions.

    About 1/√D for spread-out projections, towards 0 when they collapse to one point (Chen & He, 2021, §4.1).
    """
    return F.normalize(projections.detach().float(), dim=1).std(dim=0, correction=0).mean()
