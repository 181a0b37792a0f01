"""What a backbone makes of the stored images, shown to it as they are."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import MOCO_VIEW, ViewSettings, two_views
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import extract_features, features_of_views
from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.selection import Right, answers_of

CROP_EPOCH = 1 << 21  # their crops are those of an epoch no run reaches


@dataclass(frozen=True)
class ShownImages:
    """Stored images, how they are shown, and where.

    Attributes:
        store: the images.
        views: how they are shown.
        device: where to.
        cropped: of how many crops are compared, at most.
    """

    store: ImageCache
    views: ViewSettings
    device: torch.device
    cropped: int = 1000

    def features(self, backbone: nn.Module, indices: np.ndarray) -> np.ndarray:
        """Return features (N, D) of undistorted images."""
        return extract_features(backbone.to(self.device), self.store, indices, self.views, self.device)

    def answers(self, backbone: nn.Module, split: ProbeSplit) -> Right:
        """Return what labels say of a backbone, see :func:`answers_of`."""
        return answers_of(lambda indices: self.features(backbone, indices), split)

    def reestimated(self, backbone: nn.Module) -> nn.Module:
        """Copy a backbone and give it the BatchNorm statistics of the images."""
        return with_reestimated_batchnorm(backbone, sample_for_statistics(self.store), self.views, self.device)

    def crops(self, backbone: nn.Module) -> Crops:
        """Return how a backbone sees two crops of some images, always the same ones."""
        some = np.sort(np.random.default_rng(2).permutation(len(self.store))[: self.cropped])
        return Crops.of(
            *features_of_views(
                backbone.to(self.device),
                self.store,
                some,
                lambda images: two_views(images, (MOCO_VIEW, MOCO_VIEW), self.views),
                self.device,
                epoch=CROP_EPOCH,
            )
        )
