"""Distillation of a larger frozen teacher's features, without labels, on the user's own images.

A linear map of the student's features follows the teacher's features of the same view, by cosine and by how an image
looks among others, as SEED has it (Fang et al., 2021, arXiv 2101.04731). Linear, because what shall be read off the
features later is read off linearly as well.

Deviations from SEED: the cosine, which SEED has not; keys of other images only, where SEED adds the teacher's own
feature of the image, which the cosine already follows; one shared mild view of every image, because distortions that
the student alone sees make it follow a teacher that looked at something else; the teacher's mean is taken off its
features, or the direction that all images share would be most of every cosine; and the map begins as ridge regression
instead of at random, so that the first steps move features for a reason (a linear probe first, then finetuning,
Kumar et al., 2022, arXiv 2202.10054). As the teacher stands still, so does that mean: it is taken once.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import DISTILL_VIEW, ViewSettings, one_view
from tpssl_hf.config.allowed import ABOVE_0, FROM_1
from tpssl_hf.config.parser import key
from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import negative_cosine, normalized_std
from tpssl_hf.losses.distillation import relational_divergence
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views
from tpssl_hf.models.batchnorm import keep_statistics
from tpssl_hf.models.heads import fit_ridge
from tpssl_hf.models.queue import KeyQueue, check_queue
from tpssl_hf.models.sizes import feature_width
from tpssl_hf.models.teacher import Teacher, load_teacher
from tpssl_hf.models.timm_export import preprocessing_of


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of a frozen teacher, after SEED (Fang et al., 2021); the defaults are ours."""

    teacher: str = key(
        "",
        "Whose features are followed: a timm model (vit_small_patch14_dinov2.lvd142m), a folder, or a Hub id. When "
        "not given, the weights the run starts from, which see its images enlarged to the size they were trained at.",
    )
    teacher_backbone: str | None = key(None, "Architecture of a teacher that does not say it itself.")
    teacher_image_size: int = key(
        0, "Side of the images the teacher sees, in pixels; 0: the size its weights were trained at."
    )
    relational_weight: float = key(1.0, "Weight of the relational loss; that of the cosine is 1.")
    temperature: float = key(0.1, "Temperature of the student's similarities to the queue.", within=ABOVE_0)
    teacher_temperature: float = key(0.05, "Temperature of the teacher's similarities to the queue.", within=ABOVE_0)
    queue_size: int = key(
        4096, "Features of the teacher kept to compare with; a multiple of the batch size.", within=FROM_1
    )


class Distill(Method):
    """A linear map of the student's features follows the centered features of a frozen teacher."""

    buffers_change = "never"  # its own: the center

    def __init__(self, backbone: nn.Module, teacher: Teacher, config: DistillConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.teacher = teacher  # no module: see there
        self.teacher_source, self.projection_features = teacher.source, teacher.width
        self.projector = nn.Linear(feature_width(backbone), teacher.width)
        self.queue = KeyQueue(config.queue_size, teacher.width)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(teacher.width))
        self._new_keys: list[Tensor] = []  # between forward and after_step of one step only

    @torch.no_grad()
    def begin(self, batches: Iterable[Batch]) -> None:
        """Take the teacher's mean, fit the linear map, and fill the queue with the teacher's features, repeated."""
        features, targets = [], []
        with keep_statistics(self.train()):
            for batch in batches:
                images = batch["images"]["view1"]
                features.append(self.backbone(images).float())
                targets.append(self.teacher.features(images))
        taught = torch.cat(targets)
        self.center.copy_(taught.mean(dim=0))
        taught = taught - self.center
        fit_ridge(self.projector, torch.cat(features), taught)
        rows = torch.arange(len(self.queue.keys), device=taught.device) % len(taught)
        self.queue.keys.copy_(F.normalize(taught, dim=1)[rows])

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["images"]["view1"]`` (B, 3, H, W), which student and teacher both see."""
        images, config = batch["images"]["view1"], self.config
        projections = self.projector(self.backbone(images))
        targets = self.teacher.features(images) - self.center
        cosine = 1.0 + negative_cosine(projections, targets)
        relational = relational_divergence(
            projections, targets, self.queue.keys, config.temperature, config.teacher_temperature
        )
        self._new_keys.append(targets)
        return {
            "loss": cosine + config.relational_weight * relational,
            "loss_cosine": cosine.detach(),
            "loss_relational": relational.detach(),
            "projection_std": normalized_std(projections),
        }

    def after_step(self, progress: float) -> None:
        """Store the teacher's features of this step."""
        for keys in self._new_keys:
            self.queue.enqueue(keys)
        self._new_keys = []

    @property
    def deployed(self) -> nn.Module:
        """The student."""
        return self.backbone


def build(backbone: nn.Module, config: DistillConfig) -> Distill:
    """Load the teacher and put the method around the student."""
    shown = preprocessing_of(backbone)
    teacher = load_teacher(config.teacher, config.teacher_backbone, config.teacher_image_size, shown)
    return Distill(backbone, teacher, config)


def views(settings: ViewSettings, config: DistillConfig) -> Views:
    """One mild view, for student and teacher alike."""
    return {"images": lambda images: one_view(images, DISTILL_VIEW, settings)}


def check(backbone: nn.Module, config: DistillConfig, image_size: int, batch_size: int) -> None:
    """Refuse a run without a teacher, temperatures that mean nothing, and a queue that the batch does not divide."""
    if not config.teacher:
        raise InputError(
            "method distill follows a teacher, and random weights are none: add --teacher "
            "vit_small_patch14_dinov2.lvd142m, or another timm model, a folder or a Hub id."
        )
    if config.teacher_image_size < 0:
        raise InputError(
            f"teacher_image_size is {config.teacher_image_size}; give a number of pixels, or 0 for the size the "
            "teacher's weights were trained at."
        )
    for name in ("temperature", "teacher_temperature"):
        if getattr(config, name) <= 0:
            raise InputError(f"{name} is {getattr(config, name)}; give one above 0, 0.05 to 0.2 is usual.")
    if config.relational_weight < 0:
        raise InputError(f"relational_weight is {config.relational_weight}; give 0 or more.")
    check_queue(config.queue_size, batch_size)


SPEC = MethodSpec(
    config=DistillConfig,
    build=build,
    views=views,
    # Ours: AdamW does not care how long features and gradients of a teacher and of a fitted map happen to be, and a
    # hundred steps of 64 images gain most of what there is to gain (docs/evidence.md).
    defaults={
        "batch_size": 64,
        "optimizer": "adamw",
        "base_learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 1.0,
    },
    check=check,
    crop_scale=DISTILL_VIEW.crop_scale,
)
