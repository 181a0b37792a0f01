"""The memory of pixel features by class of CLMB, what decides which of them count, and their contrast.

Alonso et al., 2021, arXiv 2104.13415, and their code. No shape depends on the labels: each class has the same number
of rows, and a mask says which of them are there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.models.queue import gather_rows


class ClassBank(nn.Module):
    """The last ``size`` features of each class of all processes, in persistent buffers; first in, first out.

    Args:
        classes: K.
        size: S, features kept of each class.
        features: D, width of a feature.
    """

    buffers_change = "after_step"

    def __init__(self, classes: int, size: int, features: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.filled: Tensor
        self.register_buffer("rows", torch.zeros(classes, size, features))
        self.register_buffer("filled", torch.zeros(classes, size, dtype=torch.bool))

    @torch.no_grad()
    def enqueue(self, rows: Tensor, present: Tensor) -> None:
        """Put ``rows`` (K, M, D) where ``present`` (K, M) before those of before, and forget what is beyond ``size``.

        Rows that are not finite are left out.
        """
        size = self.rows.shape[1]
        rows = gather_rows(rows.float().transpose(0, 1).contiguous(), with_gradient=False).transpose(0, 1)
        present = gather_rows(present.T.contiguous(), with_gradient=False).T
        finite = torch.isfinite(rows).all(dim=2)
        rows = torch.where(finite[:, :, None], rows, 0.0)
        filled, order = torch.cat((present & finite, self.filled), dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, :size, None].expand(-1, -1, rows.shape[2])
        self.rows.copy_(torch.cat((rows, self.rows), dim=1).gather(1, order))
        self.filled.copy_(filled[:, :size])


class ClassSelectors(nn.Module):
    """For each class a network of its own that scores features: Linear, BatchNorm, LeakyReLU, Linear to one number.

    BatchNorm always takes the statistics of the rows at hand, class by class, so there are no running ones.

    Args:
        classes: K.
        features: D, width of a feature and of the hidden layer.
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        bound = features**-0.5  # of torch's linear layers
        self.hidden = nn.Parameter(torch.empty(classes, features, features).uniform_(-bound, bound))
        self.gamma = nn.Parameter(torch.ones(classes, 1, features))
        self.beta = nn.Parameter(torch.zeros(classes, 1, features))
        self.output = nn.Parameter(torch.empty(classes, features, 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes, 1))

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        """Return scores (K, R), float32, of ``rows`` (K, R, D), by statistics of those that are ``present`` (K, R)."""
        with torch.autocast(rows.device.type, enabled=False):
            values = torch.bmm(rows.detach().float(), self.hidden)
            share = (present / present.sum(dim=1, keepdim=True).clamp_min(1))[:, :, None]
            centered = values - (share * values).sum(dim=1, keepdim=True)
            variance = (share * centered.square()).sum(dim=1, keepdim=True)
            values = F.leaky_relu(centered * torch.rsqrt(variance + 1e-5) * self.gamma + self.beta, 0.2)
            return torch.bmm(values, self.output)[:, :, 0] + self.bias


def sample_by_class(features: Tensor, labels: Tensor, classes: int, count: int) -> tuple[Tensor, Tensor]:
    """Take up to ``count`` random pixels of each class.

    Args:
        features: (B, D, h, w).
        labels: (B, h, w) int64; pixels of any value beyond the classes are not taken.
        classes: K.
        count: rows per class, fewer if there are fewer pixels in all.

    Returns:
        (K, R, D) rows and (K, R) bool, which of them are there; the others are pixels of other classes.
    """
    pixels, labels = features.transpose(0, 1).flatten(1).T, labels.flatten()
    numbers = torch.rand(len(labels), device=labels.device)
    member = labels == torch.arange(classes, device=labels.device)[:, None]
    found, places = torch.where(member, numbers, -1.0).topk(min(count, len(labels)), dim=1)
    return pixels[places], found >= 0


def best_rows(rows: Tensor, present: Tensor, scores: Tensor, count: int, *, lowest: bool) -> tuple[Tensor, Tensor]:
    """Keep for each class the ``count`` rows of highest score, or of the lowest.

    Args:
        rows: (K, R, D).
        present: (K, R) bool, which rows are there.
        scores: (K, R).
        count: rows to keep, all if there are fewer.
        lowest: whether low scores are the better ones.

    Returns:
        (K, M, D) rows in order and (K, M) bool, which of them are there.
    """
    ranked = torch.where(present, -scores if lowest else scores, -torch.inf)
    _, places = ranked.topk(min(count, rows.shape[1]), dim=1)
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2])), present.gather(1, places)


def normalized_weights(scores: Tensor, present: Tensor) -> Tensor:
    """Return sigmoid(scores) (K, R), 0 where not ``present``, scaled to sum 1 for each class that has any row."""
    weights = scores.sigmoid() * present
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)


def bank_contrast(
    predictions: Tensor, present: Tensor, weights: Tensor, memory: Tensor, filled: Tensor, memory_weights: Tensor
) -> Tensor:
    """1/K Σ_c Σ_ij w_i v_j (1 − cos(prediction_i, memory_j)), i and j over the rows of class c (Alonso et al., 2021).

    Both weights sum to 1, so the sum over pairs is 1 minus the product of the two weighted means of unit vectors. A
    class with one prediction or one memory, or none, adds 0. No gradient reaches ``memory``.

    Args:
        predictions: (K, R, D).
        present: (K, R) bool.
        weights: (K, R), w.
        memory: (K, S, D).
        filled: (K, S) bool.
        memory_weights: (K, S), v.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        means = (weights[:, :, None] * F.normalize(predictions.float(), dim=2)).sum(dim=1)
        goals = (memory_weights[:, :, None] * F.normalize(memory.detach().float(), dim=2)).sum(dim=1)
    used = (present.sum(dim=1) > 1) & (filled.sum(dim=1) > 1)
    return torch.where(used, 1.0 - (means * goals).sum(dim=1), 0.0).mean()
