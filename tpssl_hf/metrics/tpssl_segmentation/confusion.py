"""Confusion of classes, counted where the predictions are."""

import torch
from torch import Tensor

from tpssl_hf.errors import InputError


class ConfusionMatrix:
    """Counts of pixels by true class (rows) and predicted class (columns), over any number of images.

    Args:
        classes: K.
        device: where to count.
        ignored: true label of pixels that do not count.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu", ignored: int = 255) -> None:
        self.classes, self.ignored = classes, ignored
        self.counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Count a batch, without waiting for the device.

        Args:
            predictions: (B, H, W) of any integer type, 0..K-1; any value where the target is ignored.
            targets: (B, H, W) likewise, or the ignored label.

        Returns:
            (B, K, K) int64, the counts of each image of this batch alone.

        Raises:
            InputError: if the shapes differ.
        """
        if predictions.shape != targets.shape or predictions.ndim != 3:
            raise InputError(
                f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} must have the same shape "
                "(B, H, W); bring the prediction to the size of the mask."
            )
        cells = self.classes**2
        wanted, found = targets.flatten(1).long(), predictions.flatten(1).long()
        place = torch.where(wanted == self.ignored, cells, wanted * self.classes + found)
        counts = self.counts.new_zeros(len(place), cells + 1).scatter_add_(1, place, torch.ones_like(place))
        counts = counts[:, :cells].view(-1, self.classes, self.classes)
        self.counts += counts.sum(dim=0)
        return counts
