"""Mean Teacher (Tarvainen & Valpola, 2017, arXiv 1703.01780), in the setting of FixMatch's authors.

Deviations: weight 50 with a linear ramp over 40 % of the run (official code of Sohn et al., 2020) where the original
has up to 100 and a sigmoid ramp over few epochs; and the teacher's momentum is smaller in the first updates, which
the original gets from a second momentum for its ramp.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tpssl_hf.augment.classify_views import weak_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import linear_ramp, probability_distance
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.classify.streams import UNLABELED_WEAK, UNLABELED_WEAK2, labeled_weak
from tpssl_hf.models.batchnorm import keep_statistics
from tpssl_hf.models.ema import EMATeacher


@dataclass(frozen=True)
class MeanTeacherConfig:
    """Mean Teacher; defaults are those of FixMatch's code (Sohn et al., 2020)."""

    ema_momentum: float = key(
        0.999, "EMA momentum of the teacher, which is evaluated (Tarvainen & Valpola, 2017, §3).", within=BELOW_1
    )
    unlabeled_weight: float = key(50.0, "Weight of the consistency after its ramp (Sohn et al., 2020, official code).")
    ramp_end: float = key(
        0.4, "Part of the run over which that weight rises from 0 (Sohn et al., 2020, likewise).", within=SHARE
    )


class MeanTeacher(Method):
    """The student's probabilities follow the teacher's for another weak view of the same image."""

    def __init__(self, classifier: nn.Module, config: MeanTeacherConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``weak2`` (U, 3, H, W).

        Only the labeled images move the student's BatchNorm statistics, as in the original's code.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        loss_labeled = F.cross_entropy(self.student(labeled["weak"]).float(), labeled["labels"])
        with torch.no_grad(), keep_statistics(self.teacher.network):
            targets = self.teacher.network(unlabeled["weak"])
        with keep_statistics(self.student):
            logits = self.student(unlabeled["weak2"])
        loss_unlabeled = probability_distance(logits, targets)
        weight = self.config.unlabeled_weight * linear_ramp(progress, self.config.ramp_end)
        return {
            "loss": loss_labeled + weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
        }

    def after_step(self, progress: float) -> None:
        """Move the teacher toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The teacher."""
        return self.teacher.network


def views(settings: ViewSettings, config: MeanTeacherConfig) -> Views:
    """One weak view of the labeled images, two of the unlabeled ones."""
    return {
        **labeled_weak(settings),
        "unlabeled": lambda images: {
            "weak": weak_view(images, settings, UNLABELED_WEAK),
            "weak2": weak_view(images, settings, UNLABELED_WEAK2),
        },
    }


SPEC = LearnerSpec(config=MeanTeacherConfig, build=MeanTeacher, views=views, defaults={"unlabeled_ratio": 1})
