"""UniMatch (Yang et al., 2023, arXiv 2208.09910): FixMatch for pixels, from two strong views and perturbed features.

Deviations: the image that a box is cut from is the next one of the same batch, where the original draws a second
batch for it; features of labeled images, which no loss uses once perturbed, are not perturbed; boxes are drawn as
:func:`tpssl_hf.augment.mixing.unimatch_boxes` says. ``teacher`` takes the pseudo-labels from an average of the
student, as in UniMatch V2 (Yang et al., 2024, arXiv 2410.10777), with the losses of the first version.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.mixing import UNIMATCH_BOX_DRAWS, box_masks, mix, unimatch_boxes
from tpssl_hf.augment.segment_views import IGNORED, ColorPolicy, SegmentViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.segmentation import pixel_cross_entropy, weighted_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.segment.streams import labeled_crops, logits_of, next_one, predictions, unlabeled_crops
from tpssl_hf.models.ema import EMATeacher, mean_share
from tpssl_hf.models.segmenter import LOW_STRIDE, TpsslForSemanticSegmentation

STRONG = ColorPolicy(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25, blur=0.5)  # ibid., official code


@dataclass(frozen=True)
class UniMatchConfig:
    """UniMatch; defaults are those of its authors' code (Yang et al., 2023)."""

    confidence: float = key(
        0.95, "Least probability at which a pixel's pseudo-label counts (Yang et al., 2023).", within=SHARE
    )
    strong_weight: float = key(0.25, "Weight of each of the two strong views (Yang et al., 2023, code).")
    feature_weight: float = key(0.5, "Weight of the weak view with perturbed features (Yang et al., 2023, code).")
    feature_dropout: float = key(
        0.5, "Fraction of feature channels dropped in that view (Yang et al., 2023, §3.2).", within=BELOW_1
    )
    teacher: bool = key(False, "Pseudo-labels from an average of the student (UniMatch V2, Yang et al., 2024).")
    ema_momentum: float = key(
        0.996, "EMA momentum of that average in the long run (Yang et al., 2024, code).", within=BELOW_1
    )


class UniMatch(Method):
    """Confident predictions on weak views are the labels of two strong views and of perturbed features."""

    def __init__(self, segmenter: TpsslForSemanticSegmentation, config: UniMatchConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = segmenter
        self.teacher: EMATeacher | None = None
        if config.teacher:
            self.teacher = EMATeacher(segmenter, config.ema_momentum, early_share=mean_share, buffers="average")

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``images``, ``masks``; and ``unlabeled``.

        The unlabeled ones are ``images``, ``strong1`` and ``strong2`` (U, 3, H, W) of one geometry, ``valid``.
        """
        labeled, unlabeled, config = batch["labeled"], batch["unlabeled"], self.config
        valid, count = unlabeled["valid"], len(labeled["images"])
        pasted = predictions(self.evaluated_logits(unlabeled["images"]), valid)
        images = torch.cat([labeled["images"], unlabeled["images"]])
        clean, perturbed = perturbed_logits(self.student, images, count, config.feature_dropout)
        own = predictions(clean[count:], valid) if self.teacher is None else pasted
        mixed, targets = zip(
            *(self.mixture(unlabeled[name], own, pasted) for name in ("strong1", "strong2")), strict=True
        )
        strong = logits_of(self.student, torch.cat(mixed)).chunk(2)
        loss_labeled = pixel_cross_entropy(clean[:count], labeled["masks"])
        losses_strong = [self.pseudo_loss(part, *target) for part, target in zip(strong, targets, strict=True)]
        loss_feature = self.pseudo_loss(perturbed, *own)
        loss_unlabeled = config.strong_weight * (losses_strong[0] + losses_strong[1])
        loss_unlabeled = loss_unlabeled + config.feature_weight * loss_feature
        accepted = (own[1] >= config.confidence) & valid
        return {
            "loss": 0.5 * (loss_labeled + loss_unlabeled),
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "loss_feature": loss_feature.detach(),
            "accepted": accepted.sum() / valid.sum().clamp_min(1),
        }

    @torch.no_grad()
    def evaluated_logits(self, images: Tensor) -> Tensor:
        """Return logits (U, K, H, W) in evaluation mode: of the teacher if there is one, else of the student."""
        if self.teacher is not None:
            return logits_of(self.teacher.network.eval(), images)
        training = self.student.training
        logits = logits_of(self.student.eval(), images)
        self.student.train(training)
        return logits

    def mixture(
        self, images: Tensor, own: tuple[Tensor, Tensor], pasted: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Paste a box of the next image into half of ``images``, and of its labels and confidences alike."""
        size = images.shape[2], images.shape[3]
        numbers = torch.rand(len(images), UNIMATCH_BOX_DRAWS, device=images.device)
        boxes = box_masks(unimatch_boxes(numbers, size), size)
        labels, confidence = (mix(to, next_one(of), boxes) for to, of in zip(own, pasted, strict=True))
        return mix(images, next_one(images), boxes), (labels, confidence)

    def pseudo_loss(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        """Cross-entropy of the confident pixels, divided by the number of all that are not ignored."""
        weights = (confidence >= self.config.confidence).float()
        return weighted_cross_entropy(logits, labels, weights, labels != IGNORED)

    def after_step(self, progress: float) -> None:
        """Move the teacher, if there is one, toward the student."""
        if self.teacher is not None:
            self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The student, as in the original."""
        return self.student


def perturbed_logits(
    segmenter: TpsslForSemanticSegmentation, images: Tensor, start: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """Return the logits of all ``images``, and of those from ``start`` on with channels of their features left out.

    Args:
        segmenter: the network.
        images: (B, 3, H, W).
        start: number of images without a second result.
        dropout: share of channels, drawn for each image and map, that the decoder gets as 0.

    Returns:
        (B, K, H, W) and (B - start, K, H, W), float32; both go through the decoder in one batch.
    """
    height, width = images.shape[2:]
    stride = segmenter.config.output_stride
    maps = segmenter.backbone(F.pad(images, (0, -width % stride, 0, -height % stride)))
    low, high = (
        torch.cat([each, F.dropout2d(each[start:], dropout)]) for each in (maps[segmenter.low_level], maps[-1])
    )
    coarse, _ = segmenter.decoder(low, high)
    logits = F.interpolate(coarse.float(), scale_factor=LOW_STRIDE, mode="bilinear", align_corners=False)
    logits = logits[..., :height, :width]
    return logits[: len(images)], logits[len(images) :]


def views(settings: SegmentViewSettings, config: UniMatchConfig) -> Views:
    """One crop of every image, scaled by any factor of the range, and the unlabeled ones in two other colors."""
    settings = replace(settings, scale_spacing="uniform")
    return {**labeled_crops(settings), **unlabeled_crops(settings, {"strong1": STRONG, "strong2": STRONG})}


SPEC = LearnerSpec(
    config=UniMatchConfig,
    build=UniMatch,
    views=views,
    defaults={
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "momentum": 0.9,
        "schedule": "poly",
        "head_lr_multiplier": 10.0,
        "batch_size": 8,
        "unlabeled_ratio": 1,
        "exclude_labeled": False,
        "scale_min": 0.5,
        "scale_max": 2.0,
    },
)
