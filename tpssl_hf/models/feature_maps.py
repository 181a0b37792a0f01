"""Feature maps of timm backbones, in one layout."""

from typing import Any

import torch
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.evaluation_mode import evaluation_mode
from tpssl_hf.models.timm_network import timm_network


def feature_maps(backbone: nn.Module, images: Tensor) -> Tensor:
    """Last feature map of a timm backbone: (B, 3, H, W) to (B, D, h, w), whichever way the model lays it out.

    Raises:
        InputError: if the backbone has no maps (a sequence of tokens, say).
    """
    network = timm_network(backbone)
    maps: Any = network.forward_features(images)  # whatever it says, some models give other things
    width, shape = network.num_features, tuple(getattr(maps, "shape", ()))
    if len(shape) == 4 and width in (shape[1], shape[3]):
        found: Tensor = maps if shape[1] == width else maps.permute(0, 3, 1, 2)
        return found
    given = f"of shape {shape}" if shape else f"as a {type(maps).__name__}"
    raise InputError(
        f"this backbone gives features {given}, not maps (B, {width}, h, w); dense methods need a backbone with maps "
        "(a ResNet or ConvNeXt), instance-level ones (byol, moco, simclr) take any."
    )


def freeze_beyond_maps(backbone: nn.Module) -> None:
    """Freeze what comes after the maps (ConvNeXt's last norm): a dense loss gives it no gradient."""
    head = getattr(backbone, "head", None)
    if isinstance(head, nn.Module):
        head.requires_grad_(False)


@torch.no_grad()
def map_size(backbone: nn.Module, image_size: int) -> tuple[int, int]:
    """Height and width of :func:`feature_maps` for square images of ``image_size`` pixels.

    Raises:
        InputError: if the backbone has no maps, or the image is smaller than one cell of them.
    """
    stride = max((info["reduction"] for info in getattr(backbone, "feature_info", ())), default=1)
    if image_size < stride:
        raise InputError(
            f"image_size {image_size} is smaller than the stride {stride} of this backbone; "
            f"give at least {2 * stride}."
        )
    device = next(backbone.parameters()).device
    with evaluation_mode(backbone):
        maps = feature_maps(backbone, torch.zeros(1, 3, image_size, image_size, device=device))
    return maps.shape[2], maps.shape[3]
