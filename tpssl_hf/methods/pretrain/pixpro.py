"""PixPro (Xie et al., 2021, arXiv 2011.10043) with affine views (§III-C), the paper's method for segmentation.

The views are warped by affine transforms as the last step of augmentation. The inverse is applied to the maps of the
online and the target network, which are then cells of the same crop boxes again, and PixPro goes on as ever:
``affine_probability=0`` is PixPro.

Deviations from the original: the target network moves after the optimizer step instead of before the next forward;
the loss is the mean of both ways of −cos, where the original takes twice their sum; a pair weighs what is left
of its two cells after warping and unwarping, nothing below one half; images without a pair are left out of the mean
(``empty_pairs``). For how the paper is read where it leaves a choice, see docs/paper_map.md.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tpssl_hf.augment.affine import AffinePolicy, key_mask, unwarp, validity
from tpssl_hf.augment.pretrain_views import PIXPRO_VIEW_1, PIXPRO_VIEW_2, ViewSettings, two_affine_views
from tpssl_hf.config.allowed import FROM_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import nearby_cells, normalized_std, pixpro_consistency
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views, both_ways
from tpssl_hf.models.ema import cosine_momentum, ema_update, frozen_copy
from tpssl_hf.models.feature_maps import feature_maps, freeze_beyond_maps, map_size
from tpssl_hf.models.heads import PixelPropagation, pixpro_head
from tpssl_hf.models.timm_network import timm_network

SMALLEST_WEIGHT = 0.5  # of a cell: one of which less is left says more about its surroundings


@dataclass(frozen=True)
class PixProConfig:
    """PixPro; defaults are the official ones (Xie et al., 2021, §4.1), the affine ones the paper's (§III-C)."""

    base_momentum: float = key(
        0.99, "EMA momentum of the target at the start; rises to 1 along a cosine.", within=SHARE
    )
    hidden_features: int = key(4096, "Width of the hidden layer of the projector.", within=FROM_1)
    projection_features: int = key(256, "Width of the projections that are compared.", within=FROM_1)
    gamma: float = key(2.0, "Sharpness of pixel propagation; 0 mixes all cells alike.")
    distance_threshold: float = key(0.7, "Largest distance of cells that count as the same place, in cell diagonals.")
    affine_probability: float = key(
        0.5, "Probability of each affine component (§III-C); 0 is plain PixPro.", within=SHARE
    )
    empty_pairs: Literal["skip", "count"] = key(
        "skip", "Images whose views share no cell: leave them out of the mean, or count them as 0 (the original)."
    )


class PixPro(Method):
    """Each cell, mixed with its like, predicts the target network's cells at the same place in the other view."""

    def __init__(self, backbone: nn.Module, config: PixProConfig) -> None:
        super().__init__()
        self.config = config
        self.projection_features = config.projection_features
        freeze_beyond_maps(backbone)
        self.backbone = backbone
        width = timm_network(backbone).num_features
        self.projector = pixpro_head(width, config.hidden_features, config.projection_features)
        self.propagation = PixelPropagation(config.projection_features, config.gamma)
        self.target_backbone = frozen_copy(backbone)
        self.target_projector = frozen_copy(self.projector)

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the batch, and the same with its views exchanged."""
        return both_ways(batch)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` of predicting view 2 from view 1 for the fields of ``two_affine_views``, in "images".

        Each view goes through each network by itself, so BatchNorm sees one kind of view at a time; the target stays
        in training mode and keeps its own running statistics.
        """
        images = batch["images"]
        matrix, other_matrix = images["affine1"], images["affine2"]
        projections = self.projector(feature_maps(self.backbone, images["view1"]))
        height, width = projections.shape[2:]
        predictions = unwarp(self.propagation(projections, key_mask(matrix, height, width)), matrix)
        with torch.no_grad():
            maps = self.target_projector(feature_maps(self.target_backbone, images["view2"]))
            targets = unwarp(maps, other_matrix)
            boxes = images["geometry1"], images["geometry2"]
            near = nearby_cells(*boxes, (height, width), self.config.distance_threshold)
            kept, others_kept = (_kept(warp, height, width) for warp in (matrix, other_matrix))
            weights = near * kept[:, :, None] * others_kept[:, None]
        loss = pixpro_consistency(predictions, targets, weights, self.config.empty_pairs)
        return {
            "loss": loss,
            "loss_pixpro": loss.detach(),
            "projection_std": normalized_std(projections.movedim(1, 3).flatten(0, 2)),
            "positive_pairs": (weights > 0).float().sum(dim=(1, 2)).mean(),
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


def _kept(matrix: Tensor, height: int, width: int) -> Tensor:
    """Return how much is left of each cell (B, H·W) after warping and unwarping, 0 for less than half."""
    cells = validity(matrix, height, width).flatten(1)
    return torch.where(cells >= SMALLEST_WEIGHT, cells, 0.0)


def views(settings: ViewSettings, config: PixProConfig) -> Views:
    """BYOL's two asymmetric views of every image, affine transforms last."""
    affine, policies = AffinePolicy(config.affine_probability), (PIXPRO_VIEW_1, PIXPRO_VIEW_2)
    return {"images": lambda images: two_affine_views(images, policies, affine, settings)}


def check(backbone: nn.Module, config: PixProConfig, image_size: int, batch_size: int) -> None:
    """Refuse a backbone without maps, maps too small to compare places, and settings that mean nothing."""
    height, width = map_size(backbone, image_size)
    if min(height, width) < 2:
        raise InputError(
            f"image_size {image_size} gives {height} x {width} cells of this backbone, and pixpro compares places: "
            f"give at least {2 * image_size}."
        )
    if 0 < config.gamma < 1 or config.gamma < 0:
        raise InputError(f"gamma is {config.gamma}; give 0 or at least 1 (the original: 2).")
    if config.distance_threshold <= 0:
        raise InputError(f"distance_threshold is {config.distance_threshold}; give one above 0, 0.7 is usual.")
    AffinePolicy(config.affine_probability)


SPEC = MethodSpec(
    config=PixProConfig,
    build=PixPro,
    views=views,
    # §IV-B: LARS, base rate 0.1, momentum 0.9; weight decay and warm-up from the original.
    defaults={
        "optimizer": "lars",
        "base_learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "warmup_epochs": 5.0,
    },
    check=check,
)
