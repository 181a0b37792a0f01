"""BYOL (Grill et al., 2020, arXiv 2006.07733), the paper's method for classification (Eq. 2).

Deviations from the original, all of them named options or stated here: the target network starts as a copy of the
online one instead of other random weights (a pretrained start would be lost), and the loss is the mean of the two
ways of −cos (Eq. 3) where the original sums 2 − 2·cos; ``loss_scale=4`` gives the original's gradient.
"""

from dataclasses import dataclass

import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import BYOL_VIEW_1, BYOL_VIEW_2, ViewSettings, two_views
from tpssl_hf.config.allowed import FROM_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.contrastive import negative_cosine, normalized_std
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views, both_ways
from tpssl_hf.models.ema import cosine_momentum, ema_update, frozen_copy
from tpssl_hf.models.heads import mlp_head
from tpssl_hf.models.sizes import feature_width


@dataclass(frozen=True)
class BYOLConfig:
    """BYOL; defaults are its official 300-epoch preset (Grill et al., 2020, App. J)."""

    base_momentum: float = key(
        0.99, "EMA momentum of the target at the start; rises to 1 along a cosine.", within=SHARE
    )
    hidden_features: int = key(4096, "Width of the hidden layer of projector and predictor.", within=FROM_1)
    projection_features: int = key(256, "Width of the projections that are compared.", within=FROM_1)
    loss_scale: float = key(1.0, "Factor of the loss: 1 is Eq. 3, 4 the original's sum of 2 - 2cos both ways.")


class BYOL(Method):
    """The online network predicts the target network's projection of the other view, both ways in turn (Eq. 2)."""

    def __init__(self, backbone: nn.Module, config: BYOLConfig) -> None:
        super().__init__()
        self.config = config
        self.projection_features = config.projection_features
        self.backbone = backbone
        self.projector = mlp_head(feature_width(backbone), config.hidden_features, config.projection_features)
        self.predictor = mlp_head(config.projection_features, config.hidden_features, config.projection_features)
        self.target_backbone = frozen_copy(backbone)
        self.target_projector = frozen_copy(self.projector)

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the batch, and the same with its views exchanged."""
        return both_ways(batch)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` of predicting ``view2`` from ``view1`` of ``batch["images"]``, each (B, 3, H, W).

        Each view goes through each network by itself, so BatchNorm sees one kind of view at a time; the target stays
        in training mode and keeps its own running statistics.
        """
        view, other = batch["images"]["view1"], batch["images"]["view2"]
        projections = self.projector(self.backbone(view))
        with torch.no_grad():
            targets = self.target_projector(self.target_backbone(other))
        loss = negative_cosine(self.predictor(projections), targets)
        return {
            "loss": self.config.loss_scale * loss,
            "loss_byol": loss.detach(),
            "projection_std": normalized_std(projections),
            "ema_momentum": torch.full_like(loss, cosine_momentum(self.config.base_momentum, progress)),
        }

    def after_step(self, progress: float) -> None:
        """Move the target network toward the online one."""
        momentum = cosine_momentum(self.config.base_momentum, progress)
        ema_update(self.target_backbone, self.backbone, momentum)
        ema_update(self.target_projector, self.projector, momentum)

    @property
    def deployed(self) -> nn.Module:
        """The online backbone."""
        return self.backbone


def views(settings: ViewSettings, config: BYOLConfig) -> Views:
    """Two asymmetric views of every image (Grill et al., 2020, App. B)."""
    return {"images": lambda images: two_views(images, (BYOL_VIEW_1, BYOL_VIEW_2), settings)}


SPEC = MethodSpec(
    config=BYOLConfig,
    build=BYOL,
    views=views,
    # §IV-B: LARS, base rate 0.3, momentum 0.9; the rest from the 300-epoch preset of the original.
    defaults={
        "optimizer": "lars",
        "base_learning_rate": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
    },
)
