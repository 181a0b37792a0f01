"""FlexMatch (Zhang et al., 2021, arXiv 2110.08263): FixMatch with a threshold per class that follows its learning.

Deviations: a batch in which an image appears twice stores its last confident label, where the original leaves the
order to chance; the evaluated average is as in our FixMatch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import masked_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.streams import weak_and_strong
from tpssl_hf.models.ema import EMATeacher
from tpssl_hf.models.queue import gather_rows
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class FlexMatchConfig:
    """FlexMatch; defaults are the original's (Zhang et al., 2021)."""

    threshold: float = key(
        0.95, "Threshold of the best learned class, and of the memory (Zhang et al., 2021, §4).", within=SHARE
    )
    threshold_warmup: bool = key(True, "Count images without a confident label yet (Zhang et al., 2021, §3.3).")
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Zhang et al., 2021, §4).")
    ema_momentum: float = key(0.999, "EMA momentum of the evaluated network (Zhang et al., 2021, §4).", within=BELOW_1)


class FlexMatch(Method):
    """FixMatch whose threshold is lower for classes of which few images were confidently predicted so far."""

    def __init__(self, classifier: nn.Module, config: FlexMatchConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)
        self.classes = timm_network(classifier).num_classes
        self.memory: Tensor  # the last confident label of every unlabeled image, -1 before there is one
        self.register_buffer("memory", torch.full((unlabeled_count,), -1, dtype=torch.int64))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``strong``, ``index``.

        The thresholds are those from before this batch, which then enters the memory by the fixed threshold.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        passes = Passes(self.student, batch)
        confidence, labels = passes.weak.softmax(dim=1).max(dim=1)
        weights = (confidence >= self.thresholds()[labels]).float()
        self.remember(unlabeled["index"], torch.where(confidence >= self.config.threshold, labels, -1))
        logits, strong = passes.learn(weights)
        loss_labeled = F.cross_entropy(logits, labeled["labels"])
        loss_unlabeled = masked_cross_entropy(strong, labels, weights)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "accepted": weights.mean(),
        }

    def thresholds(self) -> Tensor:
        """Return threshold·β / (2 − β) per class, (K,), for β from the memory (Zhang et al., 2021, §3.3–3.4)."""
        counts = torch.zeros(self.classes + 1, dtype=torch.int64, device=self.memory.device)
        counts.scatter_add_(0, self.memory + 1, torch.ones_like(self.memory))
        largest = (counts if self.config.threshold_warmup else counts[1:]).amax().clamp_min(1)
        learned = counts[1:] / largest
        return self.config.threshold * learned / (2.0 - learned)

    @torch.no_grad()
    def remember(self, index: Tensor, labels: Tensor) -> None:
        """Store the labels (U,) of the images ``index`` (U,) of every process; -1 leaves what was there."""
        index, labels = gather_rows(index, with_gradient=False), gather_rows(labels, with_gradient=False)
        # every row of an image that comes twice stores the same label, so the order of writing does not matter
        same = (index[:, None] == index) & (labels >= 0)
        last = (same * torch.arange(1, len(index) + 1, device=index.device)).amax(dim=1)
        self.memory[index] = torch.where(last > 0, labels[last - 1], self.memory[index])

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: FlexMatchConfig) -> Views:
    """FixMatch's."""
    return weak_and_strong(settings)


SPEC = LearnerSpec(config=FlexMatchConfig, build=FlexMatch, views=views)
