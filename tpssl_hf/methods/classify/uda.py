"""Unsupervised data augmentation, UDA (Xie et al., 2020, arXiv 1904.12848).

Deviations: no training signal annealing, which leaves out labeled images that are already known; no warm-up; the
batch, the optimizer and the evaluated average are FixMatch's.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import ABOVE_0, BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import masked_divergence, sharpen
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.streams import weak_and_strong
from tpssl_hf.models.ema import EMATeacher


@dataclass(frozen=True)
class UDAConfig:
    """UDA; defaults are those of its scripts for few labels (Xie et al., 2020), the average is FixMatch's."""

    threshold: float = key(
        0.8, "Probability above which a prediction is a target (Xie et al., 2020, official scripts).", within=SHARE
    )
    temperature: float = key(
        0.4, "Temperature that sharpens the targets (Xie et al., 2020, official scripts).", within=ABOVE_0
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Xie et al., 2020, §2.2).")
    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Sohn et al., 2020, official code).", within=BELOW_1
    )


class UDA(Method):
    """Predictions on strong views follow the sharpened, confident ones on weak views of the same images."""

    def __init__(self, classifier: nn.Module, config: UDAConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``strong``, ``index``.

        The threshold looks at the probabilities before they are sharpened.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        passes = Passes(self.student, batch)
        confidence, labels = passes.weak.softmax(dim=1).max(dim=1)
        weights = (confidence > self.config.threshold).float()
        logits, strong = passes.learn(weights)
        loss_labeled = F.cross_entropy(logits, labeled["labels"])
        loss_unlabeled = masked_divergence(sharpen(passes.weak, self.config.temperature), strong, weights)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
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


def views(settings: ViewSettings, config: UDAConfig) -> Views:
    """A weak view of every image, and a strong one of the unlabeled ones (Xie et al., 2020, §2.3)."""
    return weak_and_strong(settings)


SPEC = LearnerSpec(config=UDAConfig, build=UDA, views=views)
