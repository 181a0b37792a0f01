"""ClassMix (Olsson et al., 2021, arXiv 2007.07936): whole predicted segments are pasted into another image.

Deviations: colors are distorted, if at all, before images are mixed and not after; and pixels outside an image
that is smaller than its crop are neither pasted nor learned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpssl_hf.augment.mixing import class_masks, mix
from tpssl_hf.augment.segment_views import ColorPolicy, SegmentViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.segmentation import confident_share, pixel_cross_entropy, weighted_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.segment.streams import labeled_crops, logits_of, next_one, predictions, unlabeled_crops
from tpssl_hf.models.ema import EMATeacher, mean_share

# Olsson et al., 2021, official code for Cityscapes
STUDENT_COLORS = ColorPolicy(
    brightness=0.25, contrast=0.25, saturation=0.25, hue=0.25, grayscale=0.0, blur=0.5, blur_sigma=(0.15, 1.15)
)


@dataclass(frozen=True)
class ClassMixConfig:
    """ClassMix; defaults are those of its authors' code (Olsson et al., 2021)."""

    confidence: float = key(
        0.968, "Least confidence of the teacher at which a pixel counts (Olsson et al., 2021).", within=SHARE
    )
    unlabeled_weight: float = key(1.0, "Weight of the unlabeled loss (Olsson et al., 2021, code).")
    ema_momentum: float = key(
        0.99, "EMA momentum of the teacher in the long run (Olsson et al., 2021, code).", within=BELOW_1
    )
    color: bool = key(False, "Distort the student's colors, as for Cityscapes, not VOC (Olsson et al., 2021, code).")


class ClassMix(Method):
    """The teacher's classes are the labels of mixtures; its confidence scales the loss of the whole batch."""

    def __init__(self, segmenter: nn.Module, config: ClassMixConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = segmenter
        # parameters only; the teacher stays in training mode and gathers BatchNorm statistics of its own
        self.teacher = EMATeacher(segmenter, config.ema_momentum, early_share=mean_share, buffers="keep")

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``images``, ``masks``; and ``unlabeled``: ``images``, ``valid``.

        With ``color`` the student sees the unlabeled images as ``distorted`` instead of ``images``.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        loss_labeled = pixel_cross_entropy(logits_of(self.student, labeled["images"]), labeled["masks"])
        images = unlabeled["distorted"] if self.config.color else unlabeled["images"]
        labels, confidence, segments = self.targets(unlabeled["images"], unlabeled["valid"])
        logits = logits_of(self.student, mix(next_one(images), images, segments))
        confident = confident_share(mix(next_one(confidence), confidence, segments), self.config.confidence)
        loss_unlabeled = weighted_cross_entropy(logits, mix(next_one(labels), labels, segments), confident)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "confident": confident,
        }

    @torch.no_grad()
    def targets(self, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's classes (U, H, W), their probabilities, and the segments to paste, bool."""
        logits = logits_of(self.teacher.network, images)
        labels, confidence = predictions(logits, valid)
        return labels, confidence, class_masks(labels, torch.rand(logits.shape[:2], device=logits.device))

    def after_step(self, progress: float) -> None:
        """Move the teacher toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The student, as in the original."""
        return self.student


def views(settings: SegmentViewSettings, config: ClassMixConfig) -> Views:
    """One crop of every image, and with ``color`` the unlabeled ones in other colors as well."""
    return {
        **labeled_crops(settings),
        **unlabeled_crops(settings, {"distorted": STUDENT_COLORS} if config.color else {}),
    }


SPEC = LearnerSpec(
    config=ClassMixConfig,
    build=ClassMix,
    views=views,
    defaults={
        "optimizer": "sgd",
        "learning_rate": 2.5e-4,
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "schedule": "poly",
        "head_lr_multiplier": 10.0,
        "batch_size": 10,
        "unlabeled_ratio": 1,
        "exclude_labeled": True,
        "scale_min": 0.5,
        "scale_max": 1.5,
    },
)
