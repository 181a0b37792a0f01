"""A timm backbone with a new linear classifier on top."""

import torch
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WeightsSource, load_backbone
from tpssl_hf.models.timm_network import timm_network


def load_classifier(
    architecture: str, *, init: str, classes: int, image_size: int | None = None
) -> tuple[nn.Module, WeightsSource]:
    """Build Φ with a new classifier, images (B, 3, H, W) to logits (B, K).

    The classifier's weights are drawn from N(0, 0.01), its bias is 0; the global random stream decides the draw.

    Args:
        architecture: as in :func:`tpssl_hf.models.backbone.load_backbone`, which loads the backbone.
        init: likewise; a classifier among the stored weights is left out.
        classes: K ≥ 2.
        image_size: likewise.

    Raises:
        InputError: for an architecture whose classifier is not one linear layer, and as ``load_backbone`` does.
    """
    model, origin = load_backbone(architecture, init=init, image_size=image_size)
    network = timm_network(model)
    network.reset_classifier(classes)
    head = network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"backbone {architecture!r} ends in a {type(head).__name__}, not in a linear layer on pooled features; "
            "choose another one."
        )
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return model, origin


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the classifier of a timm model reads and what it says of ``images`` (B, 3, H, W).

    Returns:
        Pooled features (B, D) and logits (B, K); the logits are those of ``model(images)``.
    """
    network = timm_network(model)
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    logits: Tensor = network.get_classifier()(features)
    return features, logits


def split_logits(model: nn.Module, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return the logits (B_i, K), float32, of several batches of images that share one forward pass and BatchNorm.

    Args:
        model: images (B, 3, H, W) to logits (B, K).
        parts: images (B_i, 3, H, W).
    """
    logits: Tensor = model(torch.cat(parts)).float()
    return torch.split(logits, [len(part) for part in parts])
