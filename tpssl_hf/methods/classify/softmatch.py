"""SoftMatch (Chen et al., 2023, arXiv 2301.10921): FixMatch with a smooth weight instead of a threshold.

Deviations: mean and variance of the confidence are those of the predictions as they are, where the authors' code
takes the aligned ones; the average prediction starts uniform, where that code starts it at the first batch's; the
momentum of the statistics is smaller in the first updates, like that of the evaluated average of our FixMatch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import ABOVE_0, BELOW_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import masked_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.streams import weak_and_strong
from tpssl_hf.models.ema import EMATeacher, average_into
from tpssl_hf.models.queue import gather_rows
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class SoftMatchConfig:
    """SoftMatch; defaults are the original's (Chen et al., 2023)."""

    statistics_momentum: float = key(
        0.999,
        "EMA momentum of the confidence's statistics in the long run, less early (Chen et al., 2023, App.).",
        within=BELOW_1,
    )
    deviations: float = key(
        2.0, "Standard deviations of confidence per width of the weight (Chen et al., 2023, code).", within=ABOVE_0
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Chen et al., 2023).")
    ema_momentum: float = key(0.999, "EMA momentum of the evaluated network (Chen et al., 2023).", within=BELOW_1)


class SoftMatch(Method):
    """Pseudo-labels count the less the further their confidence lies below its running mean."""

    def __init__(self, classifier: nn.Module, config: SoftMatchConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)
        classes = timm_network(classifier).num_classes
        self.confidence_mean: Tensor
        self.confidence_variance: Tensor
        self.mean_probabilities: Tensor
        self.register_buffer("confidence_mean", torch.tensor(1.0 / classes))
        self.register_buffer("confidence_variance", torch.tensor(1.0))
        self.register_buffer("mean_probabilities", torch.full((classes,), 1.0 / classes))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``strong``, ``index``.

        The alignment with a uniform distribution of classes decides weights only, never labels.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        passes = Passes(self.student, batch)
        probabilities = passes.weak.softmax(dim=1)
        confidence, labels = probabilities.max(dim=1)
        self.observe(probabilities)
        weights = self.weights(probabilities)
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

    def observe(self, probabilities: Tensor) -> None:
        """Move the running statistics toward the predictions (U, K) of all processes; before they are used."""
        rows = gather_rows(probabilities, with_gradient=False)
        confidence = rows.amax(dim=1)
        momentum, updates = self.config.statistics_momentum, self.teacher.updates  # one of both per step
        average_into(self.confidence_mean, confidence.mean(), momentum, updates)
        average_into(self.confidence_variance, confidence.var(correction=min(1, len(rows) - 1)), momentum, updates)
        average_into(self.mean_probabilities, rows.mean(dim=0), momentum, updates)

    def weights(self, probabilities: Tensor) -> Tensor:
        """Return exp(−min(c − μ, 0)² / (2σ²/n²)), (U,), for the aligned confidence c of predictions (U, K)."""
        aligned = probabilities / self.mean_probabilities.clamp_min(1e-6)
        confidence = (aligned / aligned.sum(dim=1, keepdim=True)).amax(dim=1)
        shortfall = (confidence - self.confidence_mean).clamp_max(0.0)
        variance = self.confidence_variance / self.config.deviations**2
        return torch.exp(-shortfall.square() / (2.0 * variance).clamp_min(1e-12))

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: SoftMatchConfig) -> Views:
    """FixMatch's."""
    return weak_and_strong(settings)


SPEC = LearnerSpec(config=SoftMatchConfig, build=SoftMatch, views=views)
