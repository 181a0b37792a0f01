"""Which images a backbone takes, and what it gives for them: measured, because its attributes say something else."""

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_network import timm_network

TOO_SMALL_OR_ODD = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError)


def size_arguments(name: str, image_size: int) -> dict[str, Any]:
    """Return what ``timm.create_model`` needs besides the name, to make a network for images of that side."""
    facts = timm.get_pretrained_cfg(name)
    fixed = facts is not None and facts.fixed_input_size and tuple(facts.input_size[1:]) != (image_size, image_size)
    return {"img_size": image_size} if fixed else {}


def built(architecture: str, image_size: int | None) -> nn.Module:
    """Make a backbone with random weights, images (B, 3, H, W) to features (B, D).

    Raises:
        InputError: if it cannot be made for images of that side.
    """
    name = architecture.partition(".")[0]
    size = {} if image_size is None else size_arguments(name, image_size)
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **size)
    except TOO_SMALL_OR_ODD as error:
        if image_size is None or not size:
            raise
        raise InputError(_refusal(name, image_size, error)) from error
    return model


def side_of(model: nn.Module) -> int:
    """Return the side of images that ``model`` takes for sure: that it is built for, or that of its weights."""
    embedding = getattr(model, "patch_embed", None)
    return int((getattr(embedding, "img_size", None) or timm_network(model).pretrained_cfg["input_size"][1:])[0])


@torch.no_grad()
def outputs(model: nn.Module, image_size: int) -> Tensor:
    """Return what ``model`` makes of one black image, in evaluation mode; it is left in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        found: Tensor = model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    finally:
        for module, training in modes.items():
            module.training = training
    return found


def feature_width(model: nn.Module) -> int:
    """Return D of a backbone's features (B, D), which ``num_features`` need not be: many heads widen them."""
    return int(outputs(model, side_of(model)).shape[1])


def check_image_size(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse images that ``model`` does not take whole, or of which it does not make one vector each.

    Raises:
        InputError: naming the nearest sizes that it takes.
    """
    reason = _refused(model, image_size)
    if isinstance(reason, Tensor):
        raise InputError(
            f"backbone {name!r} gives features of shape {tuple(reason.shape)} for an image, not one vector; choose "
            "another backbone."
        )
    if reason is not None:
        raise InputError(_refusal(name, image_size, reason))


@torch.no_grad()
def check_crop(segmenter: nn.Module, architecture: str, crop: tuple[int, int]) -> None:
    """Refuse crops (height, width) that the backbone does not take, before anything is trained.

    Raises:
        InputError: with what the backbone says of them.
    """
    training = segmenter.training
    try:
        segmenter.eval()(torch.zeros(1, 3, *crop))
    except TOO_SMALL_OR_ODD as error:
        raise InputError(
            f"crops of {crop[0]} x {crop[1]} pixels do not suit backbone {architecture!r} ({_why(error)}); give "
            "another --crop_height and --crop_width (multiples of 64 suit most), or another backbone."
        ) from error
    segmenter.train(training)


def _refused(model: nn.Module, image_size: int) -> Exception | Tensor | None:
    """Return why images of that side are not taken: an error, or what was made of them; None if they are."""
    patch = _patch_of(model)
    if image_size % patch:
        return ValueError(f"its patches of {patch} pixels do not divide it")
    try:
        found = outputs(model, image_size)
    except TOO_SMALL_OR_ODD as error:
        return error
    return None if isinstance(found, Tensor) and found.ndim == 2 else found


def _patch_of(model: nn.Module) -> int:
    """Side of the patches that images are cut into, 1 for other networks: pixels beyond the last one would be lost."""
    embedding = getattr(model, "patch_embed", None)
    cut = getattr(embedding, "proj", None)
    if not isinstance(cut, nn.Conv2d) or cut.kernel_size != cut.stride or getattr(embedding, "dynamic_img_pad", False):
        return 1
    return cut.stride[0]


def _refusal(name: str, image_size: int, error: Exception) -> str:
    near = " or ".join(map(str, _nearest(name, image_size)))
    reason = _why(error)
    advice = f"the nearest sizes it takes: --image_size {near}" if near else "choose another backbone"
    return f"image_size {image_size} does not suit backbone {name!r} ({reason}); {advice}."


def _why(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()).rstrip(".")[:160] or type(error).__name__


def _nearest(name: str, image_size: int) -> list[int]:
    """Return the nearest side below that networks of this name take, and the nearest above.

    It is found by trying, on tensors that hold no numbers.
    """
    own = int(timm.get_pretrained_cfg(name).input_size[1])
    found = []
    for candidates in (_candidates(image_size, own, -1), _candidates(image_size, own, 1)):
        for size in candidates:
            # trying must not change what the seed means
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                try:
                    model = timm.create_model(name, pretrained=False, num_classes=0, **size_arguments(name, size))
                except TOO_SMALL_OR_ODD:
                    continue
                taken = _refused(model, size) is None
            if taken:
                found.append(size)
                break
    return found


def _candidates(image_size: int, own: int, direction: int) -> Iterator[int]:
    """Yield sides to try in one direction: multiples of usual strides and patches, then the weights' own side."""
    steps = (14, 16, 32, 64)
    multiples = {step * (image_size // step + (direction > 0) + direction * k) for step in steps for k in range(3)}
    nearer = sorted((size for size in multiples if size > 0 and (size - image_size) * direction > 0), key=abs)
    yield from nearer if direction > 0 else reversed(nearer)
    if (own - image_size) * direction > 0:
        yield own
