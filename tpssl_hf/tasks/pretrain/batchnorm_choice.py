"""BatchNorm of the backbone while it adapts: frozen or trained, decided before the first step and said."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.tasks.pretrain.helped import in_points
from tpssl_hf.tasks.pretrain.selection import answers_of, query_difference


@dataclass(frozen=True)
class BatchNormChoice:
    """What was chosen.

    Attributes:
        mode: ``frozen``: the running statistics of the weights stay; ``train``: those of the images are learned;
            ``none``: the backbone has no BatchNorm layer.
        why: the reason, in a few words.
    """

    mode: Literal["frozen", "train", "none"]
    why: str

    def sentence(self) -> str:
        """Say what was chosen, or nothing where there was nothing to choose."""
        if self.mode == "none":
            return ""
        return f"BatchNorm of the backbone: {self.mode} ({self.why}); --backbone_batchnorm decides otherwise"


@dataclass(frozen=True)
class LookedAt:
    """Images, how they are shown, and where."""

    store: ImageCache
    views: ViewSettings
    device: torch.device


def choose_batchnorm(
    asked: Literal["auto", "frozen", "train"],
    backbone: nn.Module,
    kind: str,
    images: LookedAt | None,
    split: ProbeSplit | None,
) -> BatchNormChoice:
    """Decide between frozen and trained BatchNorm.

    Pretrained weights are best left with the statistics they were trained with, unless those of the images serve
    better; and re-estimating them, with nothing else, shows that. With labels, images that they choose by are asked
    about with either; ``train`` must be better by an interval above 0. Without, and with ``auto``, they are frozen.

    Args:
        asked: the key ``backbone_batchnorm``.
        backbone: Φ_pre.
        kind: of its weights; random ones know no statistics.
        images: to measure on; None when streaming.
        split: labels to measure by, or None.
    """
    if not batchnorm_layers(backbone):
        return BatchNormChoice("none", "there is none")
    if asked != "auto":
        return BatchNormChoice(asked, "as asked")
    if kind == "random":
        return BatchNormChoice("train", "random weights have no statistics")
    if images is None or split is None:
        return BatchNormChoice("frozen", "no labels to measure by, and pretrained statistics rarely lose")
    backbone = backbone.to(images.device).eval()
    other = with_reestimated_batchnorm(backbone, sample_for_statistics(images.store), images.views, images.device)

    def answers(network: nn.Module) -> list[int]:
        def features(indices: np.ndarray) -> np.ndarray:
            return extract_features(network, images.store, indices, images.views, images.device)

        return answers_of(features, split)

    gain = query_difference(answers(backbone), answers(other))
    why = f"re-estimated statistics alone: {in_points(gain)} on {len(split.queries)} images"
    return BatchNormChoice("train" if gain["low"] > 0 else "frozen", why)
