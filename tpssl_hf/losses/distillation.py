"""Losses that make features of one network follow those of another."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relational_divergence(
    projections: Tensor, targets: Tensor, keys: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """Mean KL(p‖q) over the batch of how teacher and student see an image among the same others, ≥ 0.

    p_j = exp(t·k_j/τ_t) / Σ_i exp(t·k_i/τ_t) and q_j = exp(z·k_j/τ) / Σ_i exp(z·k_i/τ), as in SEED (Fang et al.,
    2021, arXiv 2101.04731), which minimizes the cross-entropy: the same gradient, as p has none. Gradients reach
    ``projections`` only.

    Args:
        projections: (B, D) of the student, z, normalized here.
        targets: (B, D) of the teacher for the same images, t, normalized here.
        keys: (K, D) of the teacher for other images, unit rows.
        temperature: τ > 0 of the student.
        teacher_temperature: τ_t > 0; below τ the student must tell images further apart to agree.
    """
    projections = F.normalize(projections.float(), dim=1)
    targets, keys = F.normalize(targets.detach().float(), dim=1), keys.detach().float()
    with torch.autocast(projections.device.type, enabled=False):
        student = F.log_softmax(projections @ keys.T / temperature, dim=1)
        teacher = F.log_softmax(targets @ keys.T / teacher_temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
