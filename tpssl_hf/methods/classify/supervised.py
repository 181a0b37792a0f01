"""Finetuning on the labeled images alone (paper, Tables I and V), the baseline of every learner.

It has the weak view, the optimizer and the evaluated average of FixMatch (Sohn et al., 2020, arXiv 2001.07685), so
that only the use of unlabeled images differs.
"""

from dataclasses import dataclass

from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import labeled_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.classify.streams import labeled_weak
from tpssl_hf.models.ema import EMATeacher


@dataclass(frozen=True)
class SupervisedConfig:
    """Finetuning on labels alone; the average is that of FixMatch's code (Sohn et al., 2020)."""

    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Sohn et al., 2020, official code).", within=BELOW_1
    )


class Supervised(Method):
    """Cross-entropy on weakly distorted labeled images."""

    def __init__(self, classifier: nn.Module, config: SupervisedConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["labeled"]``: ``weak`` (B, 3, H, W) and ``labels`` (B,) or (B, K)."""
        loss = labeled_cross_entropy(self.student(batch["labeled"]["weak"]).float(), batch["labeled"]["labels"])
        return {"loss": loss, "loss_labeled": loss.detach()}

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: SupervisedConfig) -> Views:
    """One weak view of the labeled images; there are no unlabeled ones."""
    return labeled_weak(settings)


SPEC = LearnerSpec(
    config=SupervisedConfig, build=Supervised, views=views, defaults={"unlabeled_ratio": 0}, several_labels=True
)
