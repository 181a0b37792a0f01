"""Linear probe: the backbone stays as it is, and only the classifier learns (He et al., 2020, arXiv 1911.05722, §4.1).

A baseline of ours beside the paper's learners: what few labels make of Φ when nothing else may change. The loss is

    L = mean_b CE(W·Φ(weak view of x_b) + c, y_b),

over W and c alone. Φ is in evaluation mode, with the BatchNorm statistics it came with, and has no gradient.

Deviations: weak view, optimizer, length and evaluated average are those of the other learners here, so that the budget
is the same; He et al. train for 100 epochs of all labels, at rate 30 without decay.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import labeled_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.classify.streams import labeled_weak
from tpssl_hf.models.ema import EMATeacher
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class LinearProbeConfig:
    """A classifier on frozen features (He et al., 2020); the average is that of FixMatch's code."""

    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated classifier (Sohn et al., 2020, official code).", within=BELOW_1
    )


class LinearProbe(Method):
    """Cross-entropy of a linear classifier on features that do not change."""

    def __init__(self, classifier: nn.Module, config: LinearProbeConfig, unlabeled_count: int) -> None:
        super().__init__()
        classifier.requires_grad_(False)
        timm_network(classifier).get_classifier().requires_grad_(True)
        self.student = classifier.eval()
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def train(self, mode: bool = True) -> Self:
        """Leave the backbone in evaluation mode: its BatchNorm statistics are part of what is frozen."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["labeled"]``: ``weak`` (B, 3, H, W) and ``labels`` (B,) or (B, K)."""
        network = timm_network(self.student)
        with torch.no_grad():
            features = network.forward_head(network.forward_features(batch["labeled"]["weak"]), pre_logits=True)
        loss = labeled_cross_entropy(network.get_classifier()(features).float(), batch["labeled"]["labels"])
        return {"loss": loss, "loss_labeled": loss.detach()}

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The frozen backbone with the average of the classifier."""
        return self.teacher.network


def views(settings: ViewSettings, config: LinearProbeConfig) -> Views:
    """One weak view of the labeled images; there are no unlabeled ones."""
    return labeled_weak(settings)


SPEC = LearnerSpec(
    config=LinearProbeConfig, build=LinearProbe, views=views, defaults={"unlabeled_ratio": 0}, several_labels=True
)
