"""CLMB (Alonso et al., 2021, arXiv 2104.13415): pseudo-labels, and pixels that look like their class's memory.

Deviations: what the original counts in iterations is a part of the run; there are as many unlabeled images as
labeled ones, each in two augmentations, where the original has half as many; what is drawn is drawn for each image
and not for a batch; colors are distorted before images are mixed; labeled and unlabeled images share BatchNorm
statistics; the contrast takes up to ``pixels_per_class`` random pixels of a class instead of all; heads work on whole
maps; there are no class weights (the original has them for Cityscapes); and weights are never taken back to those with
the best validation score; the teacher's momentum is at most (1 + k) / (10 + k) in its k-th update, where the original
caps it for the first 20 alone, so that pseudo-labels of short runs are not made by its start. Two slips of the
official code are left out unless ``ref_quirks`` asks for them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.mixing import class_masks, mix, zoom
from tpssl_hf.augment.segment_views import (
    IGNORED,
    ColorPolicy,
    SegmentViewSettings,
    segment_views,
    zoom_draws,
)
from tpssl_hf.config.allowed import BELOW_1, FROM_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.losses.segmentation import pixel_cross_entropy, pixel_entropy, weighted_cross_entropy
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.segment.clmb_bank import (
    ClassBank,
    ClassSelectors,
    bank_contrast,
    best_rows,
    normalized_weights,
    sample_by_class,
)
from tpssl_hf.methods.segment.streams import LABELED, UNLABELED, logits_of, next_one, predictions
from tpssl_hf.models.ema import EMATeacher, cosine_momentum
from tpssl_hf.models.heads import pixpro_head
from tpssl_hf.models.segmenter import LOW_STRIDE, TpsslForSemanticSegmentation

# official code: colors, how often images are mixed and zoomed, and by how much
STRONG = ColorPolicy(
    brightness=0.25, contrast=0.25, saturation=0.25, hue=0.25, grayscale=0.0, blur=0.2, blur_sigma=(0.1, 1.5)
)
WEAK = ColorPolicy(jitter=0.2, brightness=0.125, contrast=0.125, saturation=0.125, hue=0.125, grayscale=0.0)
STRONG_MIX, WEAK_MIX, STRONG_ZOOM, WEAK_ZOOM = 0.75, 0.2, 0.8, 0.5
ZOOM_RANGE = (0.75, 1.75)


@dataclass(frozen=True)
class CLMBConfig:
    """CLMB; defaults are those of its authors' code for VOC (Alonso et al., 2021)."""

    ema_momentum: float = key(
        0.995, "EMA momentum of the teacher, rises to 1; less early (Alonso et al., 2021).", within=BELOW_1
    )
    confidence_power: float = key(6.0, "Power of the confidence that weighs a pseudo-label (Alonso et al., 2021).")
    entropy_weight: float = key(0.01, "Weight of the unlabeled entropy (Alonso et al., 2021, code).")
    contrast_weight: float = key(0.1, "Weight of each of the two contrasts (Alonso et al., 2021, code).")
    contrast_start: float = key(
        2 / 150,
        "Part of the run after which pixels are contrasted and mixed (Alonso et al., 2021: 2000 of 150000).",
        within=SHARE,
    )
    bank_start: float = key(
        1 / 150, "Part of the run after which the memory is filled (Alonso et al., 2021, code).", within=SHARE
    )
    bank_size: int = key(256, "Features kept of each class (Alonso et al., 2021, code).", within=FROM_1)
    bank_confidence: float = key(
        0.95, "Probability above which a feature is kept (Alonso et al., 2021, code).", within=SHARE
    )
    bank_rows_per_image: int = key(
        7,
        "Features of a class added per labeled image: VOC with 200 labels (Alonso et al., 2021, code).",
        within=FROM_1,
    )  # there max(1, int(classes / 3 * round(256 / labels))) for VOC, max(1, round(256 / labels)) for Cityscapes
    pixels_per_class: int = key(
        1024, "Random pixels of a class that are contrasted (our choice; all in the original).", within=FROM_1
    )
    projection_features: int = key(256, "Width of the features compared (Alonso et al., 2021, code).", within=FROM_1)
    mix_background: bool = key(True, "Whether class 0 is pasted; False in Alonso et al., 2021, for VOC's background.")
    ref_quirks: bool = key(
        False, "As the code of Alonso et al., 2021: keep the features of lowest score, weigh all memories alike."
    )


class CLMB(Method):
    """Pseudo-labels weighed by their confidence, low entropy, and pixel features close to those of their class."""

    def __init__(self, segmenter: TpsslForSemanticSegmentation, config: CLMBConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = segmenter
        self.classes = classes = int(segmenter.config.num_labels)
        width, features = int(segmenter.config.decoder_width), config.projection_features
        self.projector = pixpro_head(width, features, features)
        self.predictor = pixpro_head(features, features, features)
        self.selectors = ClassSelectors(classes, features)
        # one more set, which the official code normalizes away
        self.memory_selectors = None if config.ref_quirks else ClassSelectors(classes, features)
        self.bank = ClassBank(classes, config.bank_size, features)
        # parameters only; both stay in training mode and gather BatchNorm statistics of their own
        self.teacher, self.teacher_projector = (
            EMATeacher(module, config.ema_momentum, buffers="keep") for module in (segmenter, self.projector)
        )
        self._new_rows: list[tuple[Tensor, Tensor]] = []  # between forward and after_step of one step only

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``images``, ``masks``, ``zoom`` (B, 4); and ``unlabeled``.

        The unlabeled ones are ``images``, ``distorted1``, ``distorted2`` of one geometry, ``valid``, ``zoom1`` and
        ``zoom2``. All of the student's images go through it together.
        """
        labeled, unlabeled, config = batch["labeled"], batch["unlabeled"], self.config
        started = progress >= config.contrast_start
        images, masks, weights = self.augmented_batch(labeled, unlabeled, started)
        count = len(labeled["images"])
        output = self.student(images, output_hidden_states=True)
        logits, features = output.logits.float(), self.predictor(self.projector(output.hidden_states[0]))
        loss_labeled = pixel_cross_entropy(logits[:count], masks[:count])
        loss_unlabeled = weighted_cross_entropy(logits[count:], masks[count:], weights[count:])
        entropy = pixel_entropy(logits[count:], masks[count:] != IGNORED)
        cells = cell_labels(masks, features.shape[2:])
        contrasts = self.contrast(features[:count], cells[:count]), self.contrast(features[count:], cells[count:])
        if progress >= config.bank_start:
            self._new_rows.append(self.memories(images[:count], cells[:count]))
        # a weight of 0 instead of leaving it out: in DDP every parameter must take part in every step
        contrast_weight = config.contrast_weight if started else 0.0
        loss = loss_labeled + pseudo_ramp(progress, config.contrast_start) * loss_unlabeled
        loss = loss + config.entropy_weight * entropy + contrast_weight * (contrasts[0] + contrasts[1])
        return {
            "loss": loss,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "entropy": entropy.detach(),
            "loss_contrast": (contrasts[0] + contrasts[1]).detach(),
            "bank_filled": self.bank.filled.float().mean(),
        }

    @torch.no_grad()
    def augmented_batch(
        self, labeled: Mapping[str, Tensor], unlabeled: Mapping[str, Tensor], started: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, labels and weights of the labeled and twice the unlabeled ones, (B + 2U, ...)."""
        parts = [self.augmented(labeled["images"], labeled["masks"], labeled["zoom"], WEAK_MIX)]
        labels, confidence = predictions(logits_of(self.teacher.network, unlabeled["images"]), unlabeled["valid"])
        confidence = confidence**self.config.confidence_power
        chance = STRONG_MIX if started else 0.0
        for number in (1, 2):
            images, moves = unlabeled[f"distorted{number}"], unlabeled[f"zoom{number}"]
            parts.append(self.augmented(images, labels, moves, chance, confidence))
        images, masks, weights = (torch.cat(values) for values in zip(*parts, strict=True))
        return images, masks, weights

    def augmented(
        self, images: Tensor, labels: Tensor, moves: Tensor, chance: float, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Paste classes of a ``chance`` of the images into the next one, and zoom; labels and weights alike."""
        numbers = torch.rand(len(images), self.classes + 1, device=images.device)
        chosen = class_masks(labels, numbers[:, 1:], background=self.config.mix_background, more=1)
        chosen = chosen & (numbers[:, 0] < chance)[:, None, None]
        weights = torch.ones_like(labels, dtype=torch.float32) if weights is None else weights
        # the ground is always the next image, so that where nothing is pasted each still appears once
        images, labels, weights = (mix(next_one(own), own, chosen) for own in (images, labels, weights))
        return zoom(images, labels, weights, moves)

    def contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """Contrast predicted features (B, D, h, w) of classes ``labels`` (B, h, w) with the bank."""
        rows, present = sample_by_class(features, labels, self.classes, self.config.pixels_per_class)
        memory, filled = self.bank.rows, self.bank.filled
        scores = torch.zeros_like(memory[:, :, 0])
        if self.memory_selectors is not None:
            scores = self.memory_selectors(memory, filled)
        weights = normalized_weights(self.selectors(rows, present), present)
        return bank_contrast(rows, present, weights, memory, filled, normalized_weights(scores, filled))

    @torch.no_grad()
    def memories(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Choose features of labeled images that the teacher is right and sure about: (K, M, D) and (K, M) bool.

        Args:
            images: (B, 3, H, W), as the student sees them.
            labels: (B, h, w) of the decoder's cells.
        """
        teacher = cast(TpsslForSemanticSegmentation, self.teacher.network)
        coarse, features = teacher.decode(images)
        found, confidence = predictions(coarse.float(), labels != IGNORED)
        kept = torch.where((found == labels) & (confidence > self.config.bank_confidence), labels, IGNORED)
        projections = self.teacher_projector.network(features)
        rows, present = sample_by_class(projections, kept, self.classes, self.config.pixels_per_class)
        count = min(len(images) * self.config.bank_rows_per_image, self.config.bank_size)
        return best_rows(rows, present, self.selectors(rows, present), count, lowest=self.config.ref_quirks)

    def after_step(self, progress: float) -> None:
        """Store this step's features and move the teacher and its projector toward the student's."""
        for rows, present in self._new_rows:
            self.bank.enqueue(rows, present)
        self._new_rows = []
        momentum = cosine_momentum(self.config.ema_momentum, progress)
        self.teacher.update(self.student, momentum)
        self.teacher_projector.update(self.projector, momentum)

    @property
    def deployed(self) -> nn.Module:
        """The student, as in the original."""
        return self.student


def pseudo_ramp(progress: float, end: float) -> float:
    """Weight of pseudo-labels: exp(−5(1 − progress/end)²), 1 from ``end`` on (Alonso et al., 2021, official code)."""
    return math.exp(-5.0 * (1.0 - progress / end) ** 2) if progress < end else 1.0


def cell_labels(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the labels (B, H, W) in the middle of the decoder's (h, w) cells, 255 beyond the image: (B, h, w)."""
    height, width = (LOW_STRIDE * length for length in size)
    padded = F.pad(labels, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=IGNORED)
    return padded[:, LOW_STRIDE // 2 :: LOW_STRIDE, LOW_STRIDE // 2 :: LOW_STRIDE]


def views(settings: SegmentViewSettings, config: CLMBConfig) -> Views:
    """Crops as they are, in one or two colorings, and how they are zoomed and mirrored after they are mixed."""
    plain = replace(settings, scale=(1.0, 1.0), horizontal_flip=False)

    def labeled(images: ImageBatch) -> dict[str, Tensor]:
        crops = segment_views(images, plain, LABELED, {"images": WEAK})
        moves = zoom_draws(images, settings, LABELED, WEAK_ZOOM, ZOOM_RANGE)
        return {"images": crops["images"], "masks": crops["masks"], "zoom": moves}

    def unlabeled(images: ImageBatch) -> dict[str, Tensor]:
        crops = segment_views(images, plain, UNLABELED, {"distorted1": STRONG, "distorted2": STRONG})
        del crops["masks"]
        for number in (1, 2):
            view = UNLABELED + number
            crops[f"zoom{number}"] = zoom_draws(images, settings, view, STRONG_ZOOM, ZOOM_RANGE)
        return crops

    return {"labeled": labeled, "unlabeled": unlabeled}


SPEC = LearnerSpec(
    config=CLMBConfig,
    build=CLMB,
    views=views,
    defaults={
        "optimizer": "sgd",
        "learning_rate": 2e-4,
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "schedule": "poly",
        "head_lr_multiplier": 1.0,
        "batch_size": 20,
        "unlabeled_ratio": 1,
        "exclude_labeled": True,
        "scale_min": 0.5,
        "scale_max": 1.5,
    },
)
