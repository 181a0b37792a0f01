"""FixMatch (Sohn et al., 2020, arXiv 2001.07685), the paper's main learner (Eq. 4).

Predictions may be aligned with the shares of the classes among the labels before pseudo-labels are taken (Berthelot et
al., 2020, arXiv 1911.09785, §3.1), which Sohn et al. tried as well (§4.1): with few labels a network soon takes most
images for a few classes. A root of the ratio (``alignment`` below 1) does so by half, because nobody knows the shares.

Deviations: the original's code distorts strongly by CTAugment, here it is RandAugment, which its paper reports as
equal; and the evaluated average has a smaller momentum in the first updates, for runs much shorter than 2^20 steps.

With several labels an image, each label of an image has a pseudo-label of its own: the image has the label where its
weak view says so with τ or more, has it not where that is 1 − τ or less, and counts for nothing between. These are the
positive and negative pseudo-labels of UPS (Rizve et al., 2021, arXiv 2101.06329) with τ_n = 1 − τ_p and without its
second condition, on uncertainty. The strong view learns them by binary cross-entropy, the mean over all images and
labels, as Eq. 4 of FixMatch is over all images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import labeled_cross_entropy, masked_binary_cross_entropy, masked_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.streams import weak_and_strong
from tpssl_hf.models.ema import EMATeacher, average_into, mean_share
from tpssl_hf.models.queue import gather_rows
from tpssl_hf.models.timm_network import timm_network

SHARES_MOMENTUM = 0.99  # about the 128 batches of Berthelot et al., 2020, less early
EVEN_BATCHES = 10
PUBLISHED_THRESHOLD = 0.95  # Sohn et al., 2020, Table 4


@dataclass(frozen=True)
class FixMatchConfig:
    """FixMatch; defaults are the original's (Sohn et al., 2020, Table 4)."""

    threshold: float | None = key(
        None,
        "Least probability at which a pseudo-label counts. When not given: 0.95 (Sohn et al., 2020, Table 4), or 0.8 "
        "where the head is fitted, whose probabilities are less sharp.",
        within=SHARE,
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Sohn et al., 2020, Table 4).")
    alignment: float | None = key(
        None,
        "Exponent, 0 to 1, by which predictions are brought to the classes' shares among the labels before "
        "pseudo-labels are taken: 0 is FixMatch as published, 1 is distribution alignment (Berthelot et al., 2020). "
        "When not given: 0.5 where the head is fitted, else 0.",
        within=SHARE,
    )
    ema_momentum: float = key(
        0.999, "EMA momentum of the evaluated network (Sohn et al., 2020, official code).", within=BELOW_1
    )


class FixMatch(Method):
    """Confident predictions on weak views are the labels of strong views of the same images."""

    def __init__(self, classifier: nn.Module, config: FixMatchConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.threshold = PUBLISHED_THRESHOLD if config.threshold is None else config.threshold
        self.alignment = config.alignment or 0.0
        self.student = classifier
        self.teacher = EMATeacher(classifier, config.ema_momentum)
        classes = timm_network(classifier).num_classes
        self.predicted_shares: Tensor
        self.labeled_shares: Tensor
        for name in ("predicted_shares", "labeled_shares"):
            self.register_buffer(name, torch.full((classes,), 1.0 / classes))

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``weak``, ``labels``; and ``unlabeled``: ``weak``, ``strong``, ``index``.

        Where BatchNorm takes the statistics of the batch, all images share them (see
        :class:`~tpssl_hf.methods.classify.passes.Passes`).
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        passes = Passes(self.student, batch)
        if labeled["labels"].ndim == 2:
            return self._learn_several(passes, labeled["labels"])
        probabilities = self.aligned(passes.weak.softmax(dim=1), labeled["labels"])
        confidence, labels = probabilities.max(dim=1)
        weights = (confidence >= self.threshold).float()
        logits, strong = passes.learn(weights)
        loss_labeled = labeled_cross_entropy(logits, labeled["labels"])
        loss_unlabeled = masked_cross_entropy(strong, labels, weights)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "accepted": weights.mean(),
        }

    def aligned(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return predictions (U, K), divided by their own running mean and multiplied by the labels' shares.

        Those are a mean over all labels (B,) so far, and even ones for as many as ``EVEN_BATCHES`` have: a few labels
        say little of them. Both are of all processes. Rows sum to 1.
        """
        if self.alignment == 0:
            return probabilities
        updates = self.teacher.updates
        predicted = gather_rows(probabilities, with_gradient=False).mean(dim=0)
        average_into(self.predicted_shares, predicted, SHARES_MOMENTUM, updates)
        shown = F.one_hot(labels, probabilities.shape[1]).to(self.labeled_shares)
        labeled = gather_rows(shown, with_gradient=False).mean(dim=0)
        self.labeled_shares.lerp_(labeled, mean_share(EVEN_BATCHES + updates))
        ratio = (self.labeled_shares / self.predicted_shares.clamp_min(1e-6)) ** self.alignment
        aligned = probabilities * ratio
        return aligned / aligned.sum(dim=1, keepdim=True)

    def _learn_several(self, passes: Passes, labels: Tensor) -> Losses:
        """Return the losses of labels (B, K), as above."""
        probabilities = passes.weak.sigmoid()
        having = probabilities >= self.threshold
        weights = (having | (probabilities <= 1 - self.threshold)).float()
        logits, strong = passes.learn(weights.amax(dim=1))
        loss_labeled = labeled_cross_entropy(logits, labels)
        loss_unlabeled = masked_binary_cross_entropy(strong, having, weights)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "accepted": weights.mean(),
            "accepted_having": having.float().mean(),
        }

    def after_step(self, progress: float) -> None:
        """Move the evaluated average toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student."""
        return self.teacher.network


def views(settings: ViewSettings, config: FixMatchConfig) -> Views:
    """A weak view of every image, and a strong one of the unlabeled ones (Sohn et al., 2020, §2.2)."""
    return weak_and_strong(settings)


SPEC = LearnerSpec(config=FixMatchConfig, build=FixMatch, views=views, several_labels=True)
