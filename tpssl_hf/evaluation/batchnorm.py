"""Re-estimation of BatchNorm statistics."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.evaluation.features import batches_of
from tpssl_hf.models.batchnorm import BatchNorm, batch_statistics, batchnorm_layers
from tpssl_hf.models.cpu_convolutions import fast_convolutions, laid_out
from tpssl_hf.models.evaluation_mode import every_core

REESTIMATION_IMAGES = 1024


def sample_for_statistics(store: ImageCache) -> Iterator[ImageBatch]:
    """Yield up to 1,024 images of ``store`` in batches, always the same, for :func:`with_reestimated_batchnorm`."""
    some = np.random.default_rng(0).permutation(len(store))[:REESTIMATION_IMAGES]
    return (store.gather(part, epoch=0) for part in batches_of(some))


@torch.no_grad()
def with_reestimated_batchnorm(
    backbone: nn.Module, batches: Iterable[ImageBatch], settings: ViewSettings, device: torch.device
) -> nn.Module:
    """Copy a backbone and give its BatchNorm layers the statistics of undistorted images.

    What training leaves in them are those of cropped, blurred and recolored views. In evaluation mode the network
    would then see every ordinary image through the wrong lens. Weights are not touched; a network without BatchNorm
    comes back as it is. The statistics are means over ``batches`` of each batch's own, and each layer sees what the
    layers before it make of the batch by its own statistics, as in training.

    Args:
        backbone: images (B, 3, H, W) to features; left as it is.
        batches: images, at least one batch; a thousand images in all are plenty.
        settings: image size and normalization.
        device: where ``backbone`` is.

    Returns:
        The copy, in evaluation mode.
    """
    network = copy.deepcopy(backbone).eval()
    layers = [layer for layer in batchnorm_layers(network) if layer.track_running_stats]
    sums: dict[BatchNorm, list[Tensor]] = {}

    def measure(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        if values.device.type == "cpu":
            mean, variance = batch_statistics(values)
        else:
            dimensions = [d for d in range(values.dim()) if d != 1]
            variance, mean = torch.var_mean(values.float(), dim=dimensions, correction=0)
        count = values.numel() // values.shape[1]
        found = [mean, variance * (count / max(1, count - 1))]
        sums[layer] = [old + new for old, new in zip(sums[layer], found, strict=True)] if layer in sums else found
        # Set before the layer runs, so that it may stay in evaluation mode: in training it might wait for processes.
        _set_statistics(layer, mean, variance)

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    seen = 0
    with every_core(), fast_convolutions(device):
        for images in batches if layers else ():
            network(laid_out(eval_view(images.to(device), settings)))
            seen += 1
    for hook in hooks:
        hook.remove()
    for layer, (mean, variance) in sums.items():
        _set_statistics(layer, mean / seen, variance / seen)
    return network


def _set_statistics(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
