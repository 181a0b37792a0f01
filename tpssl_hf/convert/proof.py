"""Compare a converted network with one that was built from the file itself."""

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from tpssl_hf.convert.match import OPTIONAL, Match
from tpssl_hf.convert.read import WeightFile
from tpssl_hf.errors import InputError

CLOSE = 1e-4  # of the greatest feature: above what two orders of the same sums in float32 make of it
# What torchvision calls networks that timm calls otherwise.
TORCHVISION = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
}


@torch.inference_mode()
def prove(
    folder: Path, name: str, network: nn.Module, match: Match, file: WeightFile, image_size: int, *, classifier: bool
) -> tuple[float, str]:
    """Load the folder with plain timm and compare its features on a fixed batch.

    Returns:
        The greatest difference, and what to: torchvision's network with the file's own names where it has one and they
        are all there, or else timm's, which shows no more than that writing and reading lose nothing.

    Raises:
        InputError: where the features differ or are not finite.
    """
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    written = timm.create_model(f"local-dir:{folder}", pretrained=True, **({} if classifier else {"num_classes": 0}))
    features = written.eval()(images)
    twin = _twin(name, match, file, image_size) if not classifier else None
    expected: Tensor = (twin or network).eval()(images)
    what = f"torchvision's {TORCHVISION.get(name, name)}" if twin else f"timm's {name} before it was written"
    if not torch.isfinite(features).all():
        raise InputError(f"{file.name} gives features that are not finite numbers; it is damaged, or not {name}'s.")
    if features.shape != expected.shape:
        raise InputError(f"{file.name}: {what} has {expected.shape[1]} features, timm's {features.shape[1]}.")
    difference = float((features - expected).abs().max())
    if difference > CLOSE * max(1.0, float(expected.abs().max())):
        raise InputError(
            f"{file.name} gives other features in {what} than in timm's {name}, by {difference:.1e}; the two compute "
            "differently, so nothing was written."
        )
    return difference, what


def _twin(name: str, match: Match, file: WeightFile, image_size: int) -> nn.Module | None:
    """Return torchvision's network without its classifier, filled from the file, or None where that cannot be."""
    from torchvision.models import get_model, list_models

    theirs = TORCHVISION.get(name, name)
    if theirs not in list_models() or (name in TORCHVISION and image_size != 224):
        return None
    with torch.device("meta"):
        names = get_model(theirs, weights=None).state_dict()
    tensors = {n.removeprefix(match.prefix): file.tensors[n] for n in match.used}
    heads = ("fc.", "classifier.", "heads.", "head.")
    needed = [n for n in names if not n.endswith(OPTIONAL) and not n.startswith(heads)]
    if any(n not in tensors or tensors[n].shape != names[n].shape for n in needed):
        return None
    network: nn.Module = get_model(theirs, weights=None)
    for head in ("fc", "classifier", "heads", "head"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    network.load_state_dict(tensors, strict=False)
    return network
