"""SimCLR (Chen et al., 2020, arXiv 2002.05709): Eq. 1 with every other view of the batch as a negative.

Deviations: the color strength is halved as the original does for small images (its App. B.9), and the temperature
is 0.2, between its 0.1 for ImageNet and 0.5 for CIFAR-10.
"""

from dataclasses import dataclass

import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import SIMCLR_VIEW, ViewSettings, two_views
from tpssl_hf.config.allowed import ABOVE_0, FROM_1
from tpssl_hf.config.parser import key
from tpssl_hf.losses.contrastive import normalized_std, nt_xent
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views
from tpssl_hf.models.heads import simclr_head
from tpssl_hf.models.queue import gather_rows, own_rows
from tpssl_hf.models.sizes import feature_width


@dataclass(frozen=True)
class SimCLRConfig:
    """SimCLR; defaults follow Chen et al. (2020) at CIFAR scale."""

    temperature: float = key(
        0.2, "Temperature of NT-Xent; 0.1 on ImageNet, 0.5 on CIFAR-10 in the original.", within=ABOVE_0
    )
    projection_features: int = key(128, "Width of the projections that are compared.", within=FROM_1)


class SimCLR(Method):
    """Two views of an image must be nearer to each other than to any view of another (NT-Xent, Eq. 1)."""

    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__()
        self.config = config
        self.projection_features = config.projection_features
        self.backbone = backbone
        width = feature_width(backbone)
        self.projector = simclr_head(width, width, config.projection_features)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["images"]``: ``view1`` and ``view2``, each (B, 3, H, W).

        Both views go through the network in one pass and share BatchNorm statistics, as in the original. With several
        processes the views of all of them are negatives; gradients flow through the gathering.
        """
        view1, view2 = batch["images"]["view1"], batch["images"]["view2"]
        one, other = self.projector(self.backbone(torch.cat([view1, view2]))).float().chunk(2)
        gathered = gather_rows(one, with_gradient=True), gather_rows(other, with_gradient=True)
        loss = nt_xent(*gathered, own_rows(len(one)), self.config.temperature)
        return {"loss": loss, "loss_simclr": loss.detach(), "projection_std": normalized_std(one)}

    @property
    def deployed(self) -> nn.Module:
        """The backbone."""
        return self.backbone


def views(settings: ViewSettings, config: SimCLRConfig) -> Views:
    """Two views by the same policy (Chen et al., 2020, App. A)."""
    return {"images": lambda images: two_views(images, (SIMCLR_VIEW, SIMCLR_VIEW), settings)}


SPEC = MethodSpec(
    config=SimCLRConfig,
    build=SimCLR,
    views=views,
    # The original's: LARS, 0.3 for 256 images, decay 1e-6, ten epochs of warm-up.
    defaults={
        "optimizer": "lars",
        "base_learning_rate": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
    },
)
