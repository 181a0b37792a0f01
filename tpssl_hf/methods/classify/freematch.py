"""FreeMatch (Wang et al., 2023, arXiv 2205.07246): thresholds that follow the network's own confidence.

Deviations: the threshold follows the mean confidence, without the code's options of a quantile and an upper limit;
the fairness term compares the predictions of one process at a time; the momentum of the statistics
is smaller in the first updates, like that of the evaluated average of our FixMatch, or short runs accept everything.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import class_fairness, class_membership, masked_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.streams import weak_and_strong
from tpssl_hf.models.ema import EMATeacher, average_into
from tpssl_hf.models.queue import gather_rows
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class FreeMatchConfig:
    """FreeMatch; defaults are the original's (Wang et al., 2023)."""

    statistics_momentum: float = key(
        0.999,
        "EMA momentum of confidence and class shares in the long run, less early (Wang et al., 2023, §5.1).",
        within=BELOW_1,
    )
    fairness_weight: float = key(
        0.01, "Weight of the fairness term (Wang et al., 2023, official code; 0.001 for 40 labels of CIFAR-10)."
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Wang et al., 2023, §5.1).")
    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Wang et al., 2023, §5.1).", within=BELOW_1
    )


class FreeMatch(Method):
    """FixMatch with a threshold per class from running averages, and a term for evenly used classes."""

    def __init__(self, classifier: nn.Module, config: FreeMatchConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)
        self.classes = timm_network(classifier).num_classes
        self.mean_confidence: Tensor
        self.mean_probabilities: Tensor
        self.histogram: Tensor
        uniform = torch.full((self.classes,), 1.0 / self.classes)
        self.register_buffer("mean_confidence", torch.tensor(1.0 / self.classes))
        self.register_buffer("mean_probabilities", uniform)
        self.register_buffer("histogram", uniform.clone())

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``strong``, ``index``.

        The averages take this batch in before they decide what it is worth.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        passes = Passes(self.student, batch)
        probabilities = passes.weak.softmax(dim=1)
        confidence, labels = probabilities.max(dim=1)
        self.observe(probabilities)
        weights = (confidence >= self.thresholds()[labels]).float()
        logits, strong = passes.learn(weights)
        loss_labeled = F.cross_entropy(logits, labeled["labels"])
        loss_unlabeled = masked_cross_entropy(strong, labels, weights)
        fairness = class_fairness(strong, weights, self.mean_probabilities, self.histogram)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        loss = loss_labeled + self.config.unlabeled_weight * loss_unlabeled
        return {
            "loss": loss + self.config.fairness_weight * fairness,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "loss_fairness": fairness.detach(),
            "accepted": weights.mean(),
        }

    def observe(self, probabilities: Tensor) -> None:
        """Move the running averages toward the predictions (U, K) of all processes; before they are used."""
        rows = gather_rows(probabilities, with_gradient=False)
        confidence, labels = rows.max(dim=1)
        momentum, updates = self.config.statistics_momentum, self.teacher.updates  # one of both per step
        average_into(self.mean_confidence, confidence.mean(), momentum, updates)
        average_into(self.mean_probabilities, rows.mean(dim=0), momentum, updates)
        average_into(self.histogram, class_membership(labels, self.classes).mean(dim=0), momentum, updates)

    def thresholds(self) -> Tensor:
        """Return the mean confidence times each class's share relative to the largest, (K,) in [0, 1]."""
        return self.mean_confidence * self.mean_probabilities / self.mean_probabilities.amax()

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: FreeMatchConfig) -> Views:
    """FixMatch's."""
    return weak_and_strong(settings)


SPEC = LearnerSpec(config=FreeMatchConfig, build=FreeMatch, views=views)
