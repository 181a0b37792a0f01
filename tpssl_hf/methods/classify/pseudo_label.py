"""Pseudo-Label (Lee, 2013, ICML workshop on challenges in representation learning), as FixMatch's authors run it.

A baseline of ours beside the paper's learners: FixMatch without a strong view. With p_b the prediction for a weak view
of unlabeled image b, and ŷ_b its class,

    L = CE(labeled) + λ_u·min(1, progress / r)·mean_b 1[max p_b ≥ τ]·CE(p_b, ŷ_b),

where the same pass makes the pseudo-label and learns from it (Lee, 2013, Eq. 15, 16).

Deviations: the threshold τ, the weight 1 and the linear ramp r are those of the official code of Sohn et al. (2020,
arXiv 2001.07685), and of TorchSSL after it, which also leave the unlabeled images out of BatchNorm's running
statistics; Lee takes every prediction, weighted up to 3. And there are as many unlabeled images a step as FixMatch
has, where those have one for each labeled image: so the budget of images is the same.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from tpssl_hf.augment.classify_views import weak_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import linear_ramp, masked_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.streams import UNLABELED_WEAK, labeled_weak
from tpssl_hf.models.batchnorm import keep_statistics
from tpssl_hf.models.ema import EMATeacher


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Pseudo-Label; defaults are those of FixMatch's code (Sohn et al., 2020)."""

    threshold: float = key(
        0.95, "Least probability at which a pseudo-label counts (Sohn et al., 2020, code).", within=SHARE
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss after its ramp (Sohn et al., 2020, code).")
    ramp_end: float = key(
        0.4, "Part of the run over which that weight rises from 0 (Sohn et al., 2020, code).", within=SHARE
    )
    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Sohn et al., 2020, official code).", within=BELOW_1
    )


class PseudoLabel(Method):
    """Confident predictions are the labels of the very views they were made for."""

    def __init__(self, classifier: nn.Module, config: PseudoLabelConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``index``.

        Only the labeled images move the student's BatchNorm statistics.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        loss_labeled = F.cross_entropy(self.student(labeled["weak"]).float(), labeled["labels"])
        with keep_statistics(self.student):
            logits = self.student(unlabeled["weak"]).float()
        confidence, labels = logits.detach().softmax(dim=1).max(dim=1)
        weights = (confidence >= self.config.threshold).float()
        loss_unlabeled = masked_cross_entropy(logits, labels, weights)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        weight = self.config.unlabeled_weight * linear_ramp(progress, self.config.ramp_end)
        return {
            "loss": loss_labeled + weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "accepted": weights.mean(),
        }

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: PseudoLabelConfig) -> Views:
    """A weak view of every image."""
    return {
        **labeled_weak(settings),
        "unlabeled": lambda images: {
            "weak": weak_view(images, settings, UNLABELED_WEAK),
            "index": images.index,
        },
    }


SPEC = LearnerSpec(config=PseudoLabelConfig, build=PseudoLabel, views=views)
