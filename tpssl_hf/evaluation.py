"""Evaluation of networks on stored pictures."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tpssl_hf.augment.pictures import Pictures
from tpssl_hf.augment.policies import ViewSettings, eval_view
from tpssl_hf.data.store import PictureStore

RECALIBRATION_PICTURES = 4096


def batches_of(indices: np.ndarray, batch_size: int = 256) -> list[np.ndarray]:
    """Cut (N,) indices into parts of nearly equal length, at most ``batch_size``."""
    return np.array_split(indices, max(1, -(-len(indices) // batch_size)))


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


@torch.inference_mode()
def features_of_views(
    backbone: nn.Module,
    store: PictureStore,
    indices: np.ndarray,
    transform: Callable[[Pictures], dict[str, Tensor]],
    device: torch.device,
    *,
    epoch: int,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of ``view1`` and ``view2`` of stored pictures as ``transform`` draws them in ``epoch``; see above.

    Returns:
        Two (N, D) float32.
    """
    was_training = backbone.training
    backbone.eval()
    features: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for start in range(0, len(indices), batch_size):
        views = transform(store.gather(indices[start : start + batch_size], epoch=epoch).to(device))
        for collected, name in zip(features, ("view1", "view2"), strict=True):
            collected.append(backbone(views[name]).float().cpu().numpy())
    backbone.train(was_training)
    return np.concatenate(features[0]), np.concatenate(features[1])


def sample_for_statistics(store: PictureStore) -> Iterator[Pictures]:
    """Yield up to 4,096 pictures of ``store`` in batches, always the same, for :func:`recalibrated`."""
    some = np.random.default_rng(0).permutation(len(store))[:RECALIBRATION_PICTURES]
    return (store.gather(part, epoch=0) for part in batches_of(some))


@torch.no_grad()
def recalibrated(
    backbone: nn.Module, batches: Iterable[Pictures], settings: ViewSettings, device: torch.device
) -> nn.Module:
    """Copy a backbone and give its BatchNorm layers the statistics of undistorted pictures.

    What training leaves in them are those of cropped, blurred and recoloured views. In evaluation mode the network
    would then see every ordinary picture through the wrong lens. Weights are not touched; a network without BatchNorm
    comes back as it is. The statistics are means over ``batches`` of each batch's own, and each layer sees what the
    layers before it make of the batch by its own statistics, as in training.

    Args:
        backbone: images (B, 3, H, W) to features; left as it is.
        batches: pictures, at least one batch; some thousand pictures in all are plenty.
        settings: image size and normalisation.
        device: where ``backbone`` is.

    Returns:
        The copy, in evaluation mode.
    """
    network = copy.deepcopy(backbone).eval()
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    sums: dict[nn.Module, list[Tensor]] = {}

    def measure(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        variance, mean = torch.var_mean(values, dim=[d for d in range(values.dim()) if d != 1], correction=0)
        count = values.numel() // values.shape[1]
        found = [mean, variance * (count / max(1, count - 1))]
        sums[layer] = [old + new for old, new in zip(sums[layer], found, strict=True)] if layer in sums else found
        # Set before the layer runs, so that it may stay in evaluation mode: in training it might wait for processes.
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    seen = 0
    for pictures in batches if layers else ():
        network(eval_view(pictures.to(device), settings))
        seen += 1
    for hook in hooks:
        hook.remove()
    for layer, (mean, variance) in sums.items():
        layer.running_mean.copy_(mean / seen)  # type: ignore[operator]
        layer.running_var.copy_(variance / seen)  # type: ignore[operator]
    return network
