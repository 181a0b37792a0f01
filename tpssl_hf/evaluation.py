"""Evaluation of networks on stored pictures."""

import numpy as np
import torch
from torch import nn

from tpssl_hf.augment.policies import ViewSettings, eval_view
from tpssl_hf.data.store import PictureStore


@torch.inference_mode()
def extract_features(
    backbone: nn.Module,
    store: PictureStore,
    indices: np.ndarray,
    settings: ViewSettings,
    device: torch.device,
    batch_size: int = 256,
) -> np.ndarray:
    """Features of stored pictures, resized and cropped at the centre, in float32 and evaluation mode.

    The backbone is left in the mode it was in.

    Args:
        backbone: images (B, 3, H, W) to features (B, D).
        store: the pictures.
        indices: (N,) int64, which of them.
        settings: image size and normalisation.
        device: where ``backbone`` is.
        batch_size: pictures per forward pass.

    Returns:
        (N, D) float32.
    """
    was_training = backbone.training
    backbone.eval()
    features = []
    for start in range(0, len(indices), batch_size):
        pictures = store.gather(indices[start : start + batch_size], epoch=0).to(device)
        features.append(backbone(eval_view(pictures, settings)).float().cpu().numpy())
    backbone.train(was_training)
    return np.concatenate(features)
