"""PixPro (Xie et al., 2021, arXiv 2011.10043) with affine views (§III-C), the paper's method for segmentation.

The views are warped by affine transforms as the last step of augmentation. The inverse is applied to the maps of the
online and the target network, which are then cells of the same crop boxes again, and PixPro goes on as ever:
``affine_probability=0`` is PixPro.

Deviations from the original: the target network moves after the optimizer step instead of before the next forward;
the loss is the mean of both directions of −cos, where the original takes twice their sum; a pair weighs what is left
of its two cells after warping and unwarping, nothing below one half; images without a pair are left out of the mean
(``empty_pairs``). For how the paper is read where it leaves a choice, see docs/paper_map.md.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tpssl_hf.augment.affine import AffinePolicy, key_mask, unwarp, validity
from tpssl_hf.augment.pretrain_views import PIXPRO_VIEW_1, PIXPRO_VIEW_2, ViewSettings, two_affine_views
from tpssl_hf.config.parser import key
from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import nearby_cells, normalized_std, pixpro_consistency
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views
from tpssl_hf.models.ema import cosine_momentum, ema_update, frozen_copy
from tpssl_hf.models.feature_maps import feature_maps, freeze_beyond_maps, map_size
from tpssl_hf.models.heads import PixelPropagation, pixpro_head
from tpssl_hf.models.timm_network import timm_network

SMALLEST_WEIGHT = 0.5  # of a cell: one of which less is left says more about its surroundings


@dataclass(frozen=True)
class PixProConfig:
    """PixPro; defaults are the official ones (Xie et al., 2021, §4.1), the affine ones the paper's (§III-C)."""

    base_momentum: float = key(0.99, "EMA momentum of the target at the start; rises to 1 along a cosine.")
    hidden_features: int = key(4096, "Width of the hidden layer of the projector.")
    projection_features: int = key(256, "Width of the projections that are compared.")
    gamma: float = key(2.0, "Sharpness of pixel propagation; 0 mixes all cells alike.")
    distance_threshold: float = key(0.7, "Largest distance of cells that count as the same place, in cell diagonals.")
    affine_probability: float = key(0.5, "Probability of each affine component (§III-C); 0 is plain PixPro.")
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

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for the fields of ``batch["images"]``, those of ``two_affine_views``.

        Each view goes through each network by itself, so BatchNorm sees one kind of view at a time; the target stays
        in training mode and keeps its own running statistics.
        """
        images = batch["images"]
        projections, predictions, targets, kept = [], [], [], []
        for number in (1, 2):
            view, matrix = images[f"view{number}"], images[f"affine{number}"]
            maps = self.projector(feature_maps(self.backbone, view))
            height, width = maps.shape[2:]
            projections.append(maps)
            predictions.append(unwarp(self.propagation(maps, key_mask(matrix, height, width)), matrix))
            with torch.no_grad():
                target_maps = self.target_projector(feature_maps(self.target_backbone, view))
                targets.append(unwarp(target_maps, matrix))
                cells = validity(matrix, height, width).flatten(1)
                kept.append(torch.where(cells >= SMALLEST_WEIGHT, cells, 0.0))
        threshold, empty = self.config.distance_threshold, self.config.empty_pairs
        near = nearby_cells(images["geometry1"], images["geometry2"], (height, width), threshold)
        weights = near * kept[0][:, :, None] * kept[1][:, None]
        loss = 0.5 * (
            pixpro_consistency(predictions[0], targets[1], weights, empty)
            + pixpro_consistency(predictions[1], targets[0], weights.transpose(1, 2), empty)
        )
        return {
            "loss": loss,
            "loss_pixpro": loss.detach(),
            "projection_std": normalized_std(projections[0].movedim(1, 3).flatten(0, 2)),
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
