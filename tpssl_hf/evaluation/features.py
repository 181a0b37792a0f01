"""Frozen features of the images in a cache."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.errors import InputError
from tpssl_hf.models.cpu_convolutions import fast_convolutions, laid_out
from tpssl_hf.models.evaluation_mode import evaluation_mode, every_core


def batches_of(indices: np.ndarray, batch_size: int = 256) -> list[np.ndarray]:
    """Cut (N,) indices into parts of nearly equal length, at most ``batch_size``."""
    return np.array_split(indices, max(1, -(-len(indices) // batch_size)))


@torch.inference_mode()
def extract_features(
    backbone: nn.Module,
    store: ImageCache,
    indices: np.ndarray,
    settings: ViewSettings,
    device: torch.device,
    batch_size: int = 256,
) -> np.ndarray:
    """Features of stored images, resized and cropped at the center, in float32 and evaluation mode.

    The backbone is left in the mode it was in.

    Args:
        backbone: images (B, 3, H, W) to features (B, D).
        store: the images.
        indices: (N,) int64, which of them.
        settings: image size and normalization.
        device: where ``backbone`` is.
        batch_size: images per forward pass.

    Returns:
        (N, D) float32.
    """
    features = []
    with evaluation_mode(backbone), every_core(), fast_convolutions(device):
        for start in range(0, len(indices), batch_size):
            images = store.gather(indices[start : start + batch_size], epoch=0).to(device)
            features.append(backbone(laid_out(eval_view(images, settings))).float().cpu().numpy())
    return np.concatenate(features)


@torch.inference_mode()
def features_of_views(
    backbone: nn.Module,
    store: ImageCache,
    indices: np.ndarray,
    transform: Callable[[ImageBatch], dict[str, Tensor]],
    device: torch.device,
    *,
    epoch: int,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of ``view1`` and ``view2`` of stored images as ``transform`` draws them in ``epoch``; see above.

    A transform that makes one view is asked again, in the next epoch.

    Returns:
        Two (N, D) float32.
    """
    features: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    with evaluation_mode(backbone), every_core(), fast_convolutions(device):
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            views = transform(store.gather(part, epoch=epoch).to(device))
            if "view2" not in views:
                views["view2"] = transform(store.gather(part, epoch=epoch + 1).to(device))["view1"]
            for collected, name in zip(features, ("view1", "view2"), strict=True):
                collected.append(backbone(laid_out(views[name])).float().cpu().numpy())
    return np.concatenate(features[0]), np.concatenate(features[1])


def finite(features: np.ndarray, whose: str) -> np.ndarray:
    """Return features (N, D) if all of them are finite.

    Args:
        features: of images.
        whose: the network they are of, for people.

    Raises:
        InputError: saying of how many images they are not.
    """
    if strange := int((~np.isfinite(features)).any(axis=1).sum()):
        raise InputError(
            f"{whose} makes numbers that are not finite of {strange:,} of {len(features):,} images; "
            "give other weights."
        )
    return features
