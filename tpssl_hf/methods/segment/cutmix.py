"""CutMix for segmentation (French et al., 2020, arXiv 1906.01916), the paper's segmentation learner (Tables II, III).

The student's prediction for a mixture of two images follows the mixture of the teacher's predictions. As in the
authors' code, how sure the teacher is scales the loss of the whole batch by one number, instead of choosing pixels.
Batch size and learning rate are the paper's (§IV-B), which the authors' DeepLabv3+ script shares the rate of.

Deviation: the teacher's momentum is min(0.99, (1 + k) / (10 + k)) in its k-th update, where the authors' is 0.99 from
the start, so that the network of a short run is not mostly its random decoder; after 890 updates they are the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tpssl_hf.augment.mixing import HALF_BOX_DRAWS, box_masks, half_boxes, mix
from tpssl_hf.augment.segment_views import ColorPolicy, SegmentViewSettings
from tpssl_hf.config.allowed import BELOW_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.errors import InputError
from tpssl_hf.losses.segmentation import confident_share, pixel_cross_entropy, squared_consistency
from tpssl_hf.methods.base import Batch, LearnerSpec, Losses, Method, Views
from tpssl_hf.methods.segment.streams import labeled_crops, logits_of, unlabeled_crops
from tpssl_hf.models.ema import EMATeacher

STUDENT_COLORS = ColorPolicy()  # French et al., 2020, official code


@dataclass(frozen=True)
class CutMixConfig:
    """CutMix; defaults are those of its authors' code (French et al., 2020)."""

    confidence: float = key(
        0.97, "Least confidence of the teacher at which a pixel counts (French et al., 2020).", within=SHARE
    )
    unlabeled_weight: float = key(1.0, "Weight of the consistency, without a ramp (French et al., 2020, code).")
    ema_momentum: float = key(
        0.99,
        "EMA momentum of the evaluated teacher in the long run, less early (French et al., 2020, code).",
        within=BELOW_1,
    )
    color: bool = key(False, "Distort the student's unlabeled colors (French et al., 2020; not the 2019 version).")


class CutMix(Method):
    """The student's probabilities for mixtures follow the teacher's for the images mixed."""

    def __init__(self, segmenter: nn.Module, config: CutMixConfig, unlabeled_count: int) -> None:
        super().__init__()
        self.config = config
        self.student = segmenter
        # every number of the teacher is an average, also BatchNorm statistics, which its own passes move as well
        self.teacher = EMATeacher(segmenter, config.ema_momentum, buffers="average")

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``labeled``: ``images``, ``masks``; and ``unlabeled``: ``images``, ``valid``.

        The unlabeled batch (2U, ...) holds first the images that boxes are pasted into, then those they are cut
        from. With ``color`` the student sees ``distorted`` instead of ``images``.

        Raises:
            InputError: if the number of unlabeled images is odd.
        """
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        images = unlabeled["images"]
        if len(images) % 2:
            raise InputError(f"CutMix mixes pairs, not {len(images)} unlabeled images; set unlabeled_ratio to 2.")
        size = images.shape[2], images.shape[3]
        boxes = box_masks(half_boxes(torch.rand(len(images) // 2, HALF_BOX_DRAWS, device=images.device), size), size)
        loss_labeled = pixel_cross_entropy(logits_of(self.student, labeled["images"]), labeled["masks"])
        targets = self.targets(images, boxes)
        seen, seen2 = (unlabeled["distorted"] if self.config.color else images).chunk(2)
        valid, valid2 = unlabeled["valid"].chunk(2)
        confident = confident_share(targets.amax(dim=1), self.config.confidence)
        logits = logits_of(self.student, mix(seen, seen2, boxes))
        loss_unlabeled = squared_consistency(logits, targets, mix(valid, valid2, boxes), confident)
        return {
            "loss": loss_labeled + self.config.unlabeled_weight * loss_unlabeled,
            "loss_labeled": loss_labeled.detach(),
            "loss_unlabeled": loss_unlabeled.detach(),
            "confident": confident,
        }

    @torch.no_grad()
    def targets(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Return the teacher's probabilities (U, K, H, W) for ``images`` (2U, 3, H, W), mixed by ``boxes``."""
        first, second = (logits_of(self.teacher.network, half) for half in images.chunk(2))
        return mix(first, second, boxes).softmax(dim=1)

    def after_step(self, progress: float) -> None:
        """Move the teacher toward the student."""
        self.teacher.update(self.student)

    @property
    def deployed(self) -> nn.Module:
        """The teacher."""
        return self.teacher.network


def views(settings: SegmentViewSettings, config: CutMixConfig) -> Views:
    """One crop of every image, and with ``color`` the unlabeled ones in other colors as well."""
    return {
        **labeled_crops(settings),
        **unlabeled_crops(settings, {"distorted": STUDENT_COLORS} if config.color else {}),
    }


SPEC = LearnerSpec(
    config=CutMixConfig,
    build=CutMix,
    views=views,
    # Adam is AdamW without decay
    defaults={
        "optimizer": "adamw",
        "learning_rate": 1e-5,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "schedule": "constant",
        "head_lr_multiplier": 1.0,
        "batch_size": 20,
        "unlabeled_ratio": 2,
        "exclude_labeled": False,
        "scale_min": 0.5,
        "scale_max": 1.5,
    },
)
