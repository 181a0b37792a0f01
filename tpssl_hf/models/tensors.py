"""Stored tensors into a backbone: all of them must find their place, or a sentence says what they seem to be."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from tpssl_hf.errors import InputError


def load_backbone_tensors(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` into ``model``; a classifier among them is left out, anything else must match exactly.

    What was learned for another image size (position embeddings) is resampled to the size ``model`` is built for.

    Raises:
        InputError: naming missing, unexpected or differently shaped keys, or the prefix that all keys have.
    """
    facts: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classifiers = facts.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    own = model.state_dict()
    tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith(tuple(f"{head}." for head in heads))}
    if own.keys() <= tensors.keys() and _differing(own, tensors):
        tensors = _resampled(model, own, tensors)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", _differing(own, tensors)),
        )
        if keys
    ]
    if problems and not missing and not unexpected and facts.get("fixed_input_size"):
        raise InputError(
            f"{path} does not fit this backbone: keys {'; '.join(problems)}. Its shapes depend on the image size and "
            "cannot be resampled: give the --image_size that the weights were made for."
        )
    if problems:
        raise InputError(
            f"{path} does not fit this backbone: keys {'; '.join(problems)}. "
            f"{_prefix_hint(own, tensors, path, str(facts.get('architecture'))) or 'Is it another architecture?'}"
        )
    model.load_state_dict(tensors)


def _differing(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> list[str]:
    return sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)


def _resampled(model: nn.Module, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resample what depends on the image size, by timm's own rule for the architecture where it has one."""
    if _differing(own, tensors) == ["pos_embed"] and own["pos_embed"].ndim == 3 and hasattr(model, "patch_embed"):
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        return {**tensors, "pos_embed": resampled_positions(model, tensors["pos_embed"], prefix)}
    rule = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(rule(dict(tensors), model)) if rule else tensors


def resampled_positions(model: nn.Module, embedding: Tensor, prefix: int) -> Tensor:
    """Resample a position embedding (1, ``prefix`` + N, D) to the grid of patches that ``model`` is built for."""
    patches: Any = model.patch_embed
    resampled: Tensor = resample_abs_pos_embed(embedding, list(patches.grid_size), num_prefix_tokens=prefix)
    return resampled


def _prefix_hint(own: dict[str, Tensor], keys: Iterable[str], path: Path, name: str) -> str:
    """Say behind which prefix the backbone's keys were found, if they were, and what to do."""
    found = Counter(key[: -len(inner)] for key in keys for inner in _suffixes(key) if inner in own)
    if not found:
        return ""
    prefix, count = found.most_common(1)[0]
    if 2 * count < len(own):
        return ""
    return (
        f"{count} of its {len(own)} keys are there behind the prefix {prefix!r}: `tpssl-hf convert {path} "
        f"--backbone {name} --output_dir FOLDER` makes a folder to give as --init."
    )


def _suffixes(key: str) -> list[str]:
    """All proper endings of a dotted name."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]
