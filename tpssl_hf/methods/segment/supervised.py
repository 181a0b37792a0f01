"""Finetuning on the labeled images alone (paper, Tables II and IV), the baseline of every learner.

Views, optimizer and schedule are those of the CutMix learner (French et al., 2020, arXiv 1906.01916), so that only the
use of unlabeled images differs; but there is no average, the trained network itself is evaluated.
"""

from dataclasses import dataclass

from torch import nn

from tpssl_hf.augment.segment_views import SegmentViewSettings
from tpssl_hf.losses.segmentation import pixel_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.segment import cutmix
from tpssl_hf.methods.segment.streams import labeled_crops, logits_of


@dataclass(frozen=True)
class SupervisedConfig:
    """Finetuning on labels alone, with the optimizer of the CutMix learner (French et al., 2020); nothing to set."""


class Supervised(Method):
    """Cross-entropy on crops of labeled images."""

    def __init__(self, segmenter: nn.Module, config: SupervisedConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.student = segmenter

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["labeled"]``: ``images`` (B, 3, H, W) and ``masks`` (B, H, W)."""
        loss = pixel_cross_entropy(logits_of(self.student, batch["labeled"]["images"]), batch["labeled"]["masks"])
        return {"loss": loss, "loss_labeled": loss.detach()}

    @property
    def deployed(self) -> nn.Module:
        """The trained network."""
        return self.student


def views(settings: SegmentViewSettings, config: SupervisedConfig) -> Views:
    """One crop of the labeled images, without color distortions; there are no unlabeled ones."""
    return labeled_crops(settings)


SPEC = LearnerSpec(
    config=SupervisedConfig, build=Supervised, views=views, defaults={**cutmix.SPEC.defaults, "unlabeled_ratio": 0}
)
