"""Self-Tuning (Wang et al., 2021, arXiv 2102.12903): pseudo-labels decide groups of a contrast, not classes.

Deviations: the key network moves once per step where the original's code moves it twice; the query pass that the code
repeats to get pseudo-labels is made once, so unlabeled images count once in BatchNorm statistics; and the momentum
of the averages is smaller in the first updates.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.classify_views import strong_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.allowed import ABOVE_0, BELOW_1, FROM_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.semi_supervised import class_group_contrast
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, PseudoLabels, Views
from tpssl_hf.methods.classify import streams
from tpssl_hf.models.batchnorm import keep_statistics
from tpssl_hf.models.classifier import features_and_logits
from tpssl_hf.models.ema import EMATeacher
from tpssl_hf.models.queue import gather_rows
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class SelfTuningConfig:
    """Self-Tuning; defaults are those of its code's run scripts (Wang et al., 2021)."""

    queue_size: int = key(32, "Keys kept of each class (Wang et al., 2021, official code).", within=FROM_1)
    projection_features: int = key(
        1024, "Width of the projections (Wang et al., 2021, official run scripts).", within=FROM_1
    )
    temperature: float = key(0.07, "Temperature of the contrast (Wang et al., 2021, official code).", within=ABOVE_0)
    ema_momentum: float = key(
        0.999, "EMA momentum of the key network, which is evaluated (Wang et al., 2021, code).", within=BELOW_1
    )


class ClassQueue(nn.Module):
    """The last ``size`` keys of each class of all processes, unit rows, in persistent buffers; first in, first out.

    It starts as random unit vectors drawn with a fixed seed, the same everywhere and in every run.

    Args:
        classes: K.
        size: Q, keys kept of each class.
        features: L, width of a key.
    """

    buffers_change = "after_step"

    def __init__(self, classes: int, size: int, features: int) -> None:
        super().__init__()
        start = torch.randn(classes, size, features, generator=torch.Generator().manual_seed(0))
        self.keys: Tensor
        self.positions: Tensor
        self.register_buffer("keys", F.normalize(start, dim=2))
        self.register_buffer("positions", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest keys of each class by ``keys`` (B, L) of ``labels`` (B,); the last Q of a class stay.

        Keys that are not finite are left out.
        """
        keys, labels = gather_rows(keys, with_gradient=False), gather_rows(labels, with_gradient=False)
        classes, size, features = self.keys.shape
        rows = torch.arange(len(keys), device=keys.device)
        finite = torch.isfinite(keys).all(dim=1)
        member = (labels[:, None] == torch.arange(classes, device=keys.device)) & finite[:, None]
        counts = member.cumsum(dim=0)
        order = counts[rows, labels] - 1  # how many of its class came before it
        stays = finite & (order >= counts[-1, labels] - size)
        place = labels * size + (self.positions[labels] + order) % size
        # those that do not stay go to one row more, which is cut off: shapes must not depend on values
        table = torch.cat([self.keys.flatten(0, 1), self.keys.new_zeros(1, features)])
        table[torch.where(stays, place, classes * size)] = keys.to(table.dtype)
        self.keys.copy_(table[:-1].view_as(self.keys))
        self.positions.copy_((self.positions + counts[-1]) % size)


class SelfTuning(Method):
    """Each query is drawn to its own key and to the queued keys of its class, labeled or pseudo-labeled."""

    def __init__(self, classifier: nn.Module, config: SelfTuningConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = classifier
        head = timm_network(classifier).get_classifier()
        assert isinstance(head, nn.Linear)  # load_classifier has seen to it
        self.projector = nn.Linear(head.in_features, config.projection_features)
        self.teacher = EMATeacher(classifier, config.ema_momentum)
        self.key_projector = EMATeacher(self.projector, config.ema_momentum)
        self.queue = ClassQueue(head.out_features, config.queue_size, config.projection_features)
        self._new_keys: list[tuple[Tensor, Tensor]] = []  # between forward and after_step of one step only

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``labels`` and ``unlabeled``: ``index``, both with ``strong``, ``strong2``.

        ``strong`` gives queries, ``strong2`` keys, each (B, 3, H, W). The queue is the one from before this step.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        queries, logits = self.query(labeled["strong"])
        loss_labeled = F.cross_entropy(logits, labeled["labels"])
        loss_contrast = self.contrast(queries, self.key(labeled["strong2"]), labeled["labels"])
        queries, logits = self.query(unlabeled["strong"])
        confidence, labels = logits.detach().softmax(dim=1).max(dim=1)
        loss_unlabeled = self.contrast(queries, self.key(unlabeled["strong2"]), labels)
        weights = torch.ones_like(confidence)
        self.pseudo_labels = PseudoLabels(unlabeled["index"], labels, confidence, weights)
        return {
            "loss": loss_labeled + loss_contrast + loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_contrast": loss_contrast.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "accepted": weights.mean(),
        }

    def query(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit queries (B, L) and logits (B, K), float32, of the student for ``images`` (B, 3, H, W)."""
        features, logits = features_and_logits(self.student, images)
        return F.normalize(self.projector(features).float(), dim=1), logits.float()

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """Return unit keys (B, L), float32, of the key network for ``images`` (B, 3, H, W), by batch statistics."""
        with keep_statistics(self.teacher.network):
            features, _ = features_and_logits(self.teacher.network, images)
        return F.normalize(self.key_projector.network(features).float(), dim=1)

    def contrast(self, queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """Return the contrast of queries and keys (B, L) of ``labels`` (B,), and keep the keys for the queue."""
        self._new_keys.append((keys, labels))
        return class_group_contrast(queries, keys, labels, self.queue.keys, self.config.temperature)

    def after_step(self, progress: float) -> None:
        """Store this step's keys and move the key network toward the student."""
        if self._new_keys:
            keys, labels = zip(*self._new_keys, strict=True)
            self.queue.enqueue(torch.cat(keys), torch.cat(labels))
        self._new_keys = []
        self.teacher.update(self.student)
        self.key_projector.update(self.projector)

    @property
    def deployed(self) -> nn.Module:
        """The average of the student; its backbone is the key network's."""
        return self.teacher.network


def views(settings: ViewSettings, config: SelfTuningConfig) -> Views:
    """Two strong views of every image (Wang et al., 2021, official CIFAR pipeline)."""
    return {
        "labeled": lambda images: {
            "strong": strong_view(images, settings, streams.LABELED_STRONG),
            "strong2": strong_view(images, settings, streams.LABELED_STRONG2),
        },
        "unlabeled": lambda images: {
            "strong": strong_view(images, settings, streams.UNLABELED_STRONG),
            "strong2": strong_view(images, settings, streams.UNLABELED_STRONG2),
            "index": images.index,
        },
    }


SPEC = LearnerSpec(
    config=SelfTuningConfig,
    build=SelfTuning,
    views=views,
    # its run scripts for CIFAR-100: decay on everything, the new head 10 times as fast, steps instead of a cosine
    defaults={
        "batch_size": 24,
        "unlabeled_ratio": 1,
        "learning_rate": 1e-3,
        "head_lr_multiplier": 10.0,
        "weight_decay": 1e-4,
        "decay_norm_and_bias": True,
        "schedule": "steps",
    },
)
