"""Losses of semi-supervised learners, all computed in float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_ramp(progress: float, end: float) -> float:
    """Factor that rises linearly from 0 at progress 0 to 1 at progress ``end`` and stays there; 1 throughout for 0."""
    return 1.0 if progress >= end else max(0.0, progress / end)


def sharpen(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / temperature), (B, K) float32; temperatures below 1 lower the entropy."""
    return (logits.float() / temperature).softmax(dim=1)


def masked_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ_b w_b·CE(logits_b, label_b) / B: the mean over the whole batch, not over its accepted part.

    Sohn et al., 2020, Eq. 4.

    Args:
        logits: (B, K).
        labels: (B,) int64.
        weights: (B,) in [0, 1].
    """
    return (weights.detach() * F.cross_entropy(logits.float(), labels, reduction="none")).mean()


def labeled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of labeled images; of several labels an image the mean binary one of all that is known.

    Args:
        logits: (B, K) float32.
        labels: (B,) int64 class numbers; or (B, K) int64, 1 for a label, 0 for none, -1 for unknown.
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    known = (labels >= 0).float()
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).float(), reduction="none")
    return (known * losses).sum() / known.sum().clamp_min(1.0)


def masked_binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ_bk w_bk·BCE(logits_bk, label_bk) / (B·K): the mean over all images and labels, not over the accepted ones.

    Args:
        logits: (B, K).
        labels: (B, K) bool.
        weights: (B, K) in [0, 1].
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return (weights.detach() * losses).mean()


def masked_divergence(targets: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    """Σ_b w_b·KL(target_b ‖ softmax(logits_b)) / B; no gradient reaches ``targets``.

    Args:
        targets: (B, K) probabilities.
        logits: (B, K).
        weights: (B,) in [0, 1].
    """
    terms = F.kl_div(logits.float().log_softmax(dim=1), targets.detach().float(), reduction="none")
    return (weights.detach() * terms.sum(dim=1)).mean()


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits) for logits (B, K), in nats, with its gradient."""
    logarithms = logits.float().log_softmax(dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1).mean()


def probability_distance(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and classes of (softmax(logits) − softmax(targets))², in [0, 2/K]; both are logits (B, K).

    Tarvainen & Valpola, 2017, §2; no gradient reaches ``targets``.
    """
    return F.mse_loss(logits.float().softmax(dim=1), targets.detach().float().softmax(dim=1))


def class_group_contrast(queries: Tensor, keys: Tensor, labels: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of KL(t ‖ p) of the pseudo group contrast of Self-Tuning (Wang et al., 2021).

    p is the softmax over a query's similarities, divided by the temperature, with its own key and all queued keys; t
    is uniform over its own key and the Q keys queued for its class. Gradients reach ``queries`` only.

    Args:
        queries: (B, L) unit rows.
        keys: (B, L) unit rows, the own key of each query.
        labels: (B,) int64 in 0..K-1.
        queue: (K, Q, L) unit rows by class.
        temperature: τ > 0.
    """
    size = queue.shape[1]
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, queue = queries.float(), keys.detach().float(), queue.detach().float()
        own = (queries * keys).sum(dim=1, keepdim=True)
        queued = queries @ queue.flatten(0, 1).T
    logarithms = (torch.cat([own, queued], dim=1) / temperature).log_softmax(dim=1)
    of_class = logarithms[:, 1:].reshape(len(labels), -1, size)[
        torch.arange(len(labels), device=labels.device), labels
    ]
    return (-math.log(size + 1) - (logarithms[:, 0] + of_class.sum(dim=1)) / (size + 1)).mean()


def class_membership(labels: Tensor, classes: int) -> Tensor:
    """Return (B, K) float32, 1 where the column is the label (B,) and 0 elsewhere, without looking at the labels."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def class_fairness(logits: Tensor, weights: Tensor, expected: Tensor, histogram: Tensor) -> Tensor:
    """Σ_c a_c·log b_c, the self-adaptive fairness of FreeMatch (Wang et al., 2023), ≤ 0; 0 where nothing is accepted.

    a is ``expected`` / ``histogram`` and b the mean accepted prediction divided by the histogram of its arg max, both
    scaled to sum 1; a class that no prediction names has b_c = 0, as in the authors' code. 1e-12 is added to b.

    Args:
        logits: (U, K) of the strong views.
        weights: (U,), 1 for accepted images and 0 for the others.
        expected: (K,) running mean of the probabilities.
        histogram: (K,) running histogram of the predicted classes.
    """
    probabilities, weights = logits.float().softmax(dim=1), weights.detach().float()
    named = class_membership(probabilities.argmax(dim=1), logits.shape[1])
    count = weights.sum()
    share = (weights[:, None] * named).sum(dim=0) / count.clamp_min(1.0)
    mean = (weights[:, None] * probabilities).sum(dim=0) / count.clamp_min(1.0)
    found = _sum_to_one(mean * _inverse(share))
    wanted = _sum_to_one(expected.detach().float() * _inverse(histogram.detach().float()))
    return torch.where(count > 0, (wanted * (found + 1e-12).log()).sum(), 0.0)


def _inverse(values: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(values > 0, 1.0 / values.clamp_min(1e-12), 0.0)


def _sum_to_one(values: Tensor) -> Tensor:
    return values / values.sum().clamp_min(1e-12)
