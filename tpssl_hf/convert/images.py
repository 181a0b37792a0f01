"""How images were prepared for weights from elsewhere, as the user, timm's record or the file's family has it."""

import math
from collections.abc import Sequence
from typing import Any

import timm

from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.families import IMAGENET_MEAN, IMAGENET_STD, PLAIN, family_of
from tpssl_hf.convert.match import Match
from tpssl_hf.convert.read import WeightFile
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import Preprocessing


def stated(backbone: str) -> dict[str, Any]:
    """Return timm's record of an architecture, or of its tagged weights.

    Raises:
        InputError: for a tag that timm does not know, and an architecture that it has no record of.
    """
    try:
        facts: dict[str, Any] = timm.get_pretrained_cfg(backbone, allow_unregistered=False).to_dict()
    except RuntimeError as error:
        raise InputError(
            f"backbone {backbone!r}: timm says {error}; leave the tag out, or take a tag it has."
        ) from error
    return facts


def preprocessing_of(
    options: ConvertConfig, match: Match, file: WeightFile, *, classified: bool
) -> tuple[Preprocessing, str]:
    """Return how images were prepared for these weights, and why that is thought."""
    name = options.backbone.partition(".")[0]
    facts = stated(options.backbone)
    family = family_of(file.tensors, file.keys)
    # Plain names with a classifier, of a network that torchvision has not: timm's, whose images its record knows.
    timms = options.backbone != name or match.naming in ("by order", "transformers ViT", "transformers ResNet")
    timms |= match.naming == PLAIN.title and family is None and classified and name not in _torchvision_names()
    mean, std = (facts["mean"], facts["std"]) if timms else (IMAGENET_MEAN, IMAGENET_STD)
    why = f"timm's for {options.backbone}" if timms else f"ImageNet's, as usual for {family or match.naming}"
    if options.mean is not None or options.std is not None:
        why = "as given" if options.mean is not None and options.std is not None else f"as given, the other {why}"
    mean, std = _three("mean", options.mean, mean), _three("std", options.std, std)
    size = options.image_size or int(facts["input_size"][-1])
    interpolation = (
        facts["interpolation"] if timms and facts["interpolation"] in ("bilinear", "bicubic") else "bilinear"
    )
    done = Preprocessing(size, mean, std, interpolation)
    return done, f"mean {mean}, std {std} ({why}; --mean and --std change it), {size} px, {interpolation}"


def _torchvision_names() -> list[str]:
    from torchvision.models import list_models

    return list(list_models())


def _three(key: str, given: Any, default: Sequence[float]) -> tuple[float, float, float]:
    values: Any = default if given is None else given
    if isinstance(values, str):
        values = values.strip("[]() ").split(",")
    try:
        numbers = [float(v) for v in values] if isinstance(values, list | tuple) else [float(values)]
    except ValueError:
        numbers = []
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    low = 0.0 if key == "mean" else 1e-6
    if len(numbers) != 3 or not all(math.isfinite(n) and low <= n <= 1 for n in numbers):
        raise InputError(
            f"{key} {given!r} is not one number or three of images in [0, 1]; give e.g. `0.5` or `0.485,0.456,0.406` "
            "(of images in [0, 255], divide by 255)."
        )
    return numbers[0], numbers[1], numbers[2]
