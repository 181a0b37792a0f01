"""Any timm backbone: one small member of every family, through every method, or refused in a sentence before a run.

Shapes are what is tested, so most of it is computed on tensors that hold no numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.classifier import features_and_logits, load_classifier
from tpssl_hf.models.segmenter import build_segmenter

SMALL: dict[str, dict[str, Any]] = {
    "byol": {"hidden_features": 32, "projection_features": 16},
    "moco": {"queue_size": 16, "projection_features": 16},
    "simclr": {"projection_features": 16},
    "densecl": {"queue_size": 16, "hidden_features": 32, "projection_features": 16},
    "pixpro": {"hidden_features": 32, "projection_features": 16},
}


def pretrained_once(name: str, architecture: str, size: int) -> None:
    """Make one step of a method, as a run does it."""
    backbone, _ = load_backbone(architecture, init="random", image_size=size)
    spec = PRETRAIN[name]
    config = replace(spec.config(), **SMALL[name])
    spec.check(backbone, config, size, 4)
    method = spec.build(backbone, config).train()
    images = {f"view{number}": torch.randn(4, 3, size, size) for number in (1, 2)}
    images |= {f"geometry{number}": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4) for number in (1, 2)}
    images |= {f"affine{number}": torch.eye(3).expand(4, 3, 3) for number in (1, 2)}
    method({"images": images}, 0.0)["loss"].backward()
    method.after_step(0.0)


def classified(architecture: str, size: int) -> nn.Module:
    """Make a classifier and ask it in both ways in which learners do."""
    model, _ = load_classifier(architecture, init="random", classes=5, image_size=size)
    images = torch.randn(2, 3, size, size)
    assert features_and_logits(model, images)[1].shape == model(images).shape == (2, 5)
    return model


def segmented(architecture: str) -> None:
    """Make a segmenter and ask it."""
    model, _ = build_segmenter(architecture, init="random", class_names=["a", "b"], decoder_width=16)
    assert model.train()(pixel_values=torch.randn(2, 3, 64, 64)).logits.shape == (2, 2, 64, 64)


def refusal(attempt: Callable[[], Any]) -> str:
    """What was said, empty where it worked; anything else than an InputError is a fault."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    return ""


def refusals(architecture: str, size: int) -> dict[str, str]:
    """What of a family is refused, and why; its smallest size is tried where ``size`` is not taken."""
    found = {name: refusal(lambda name=name: pretrained_once(name, architecture, size)) for name in PRETRAIN}  # type: ignore[misc]
    found["classifier"] = refusal(lambda: classified(architecture, size))
    found["segmenter"] = refusal(lambda: segmented(architecture))
    return {name: said for name, said in found.items() if said}
