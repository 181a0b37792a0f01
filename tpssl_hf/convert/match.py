"""Find a timm network among the tensors of a file, by names and shapes, or by order and shapes."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tpssl_hf.convert.families import NAMINGS, Naming, branch_rank
from tpssl_hf.convert.read import WeightFile
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_network import timm_network

OPTIONAL = ("num_batches_tracked",)
POSITIONS = ("pos_embed",)  # may have another size
# Parts that decide what the network computes, though timm's may have none; anything else beside it is a head or queue.
PARTS = re.compile(
    r"(layer\d+|stem|norm_pre|pre_norm|ln_pre|fc_norm|dist_token|reg_token|register_tokens|rel_pos_bias)$"
)
HEADS = frozenset({"mask_token"})  # inside of a network, but for its pretraining only
OTHER_SPELLINGS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
LEAVES = frozenset({"weight", "bias", "running_mean", "running_var"})
MOST_PREFIXES = 24
HINTS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnet50d"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
    *("vit_small_patch8_224", "vit_base_patch8_224", "vit_base_patch32_224", "convnext_tiny", "tf_efficientnet_lite0"),
)


@dataclass(frozen=True)
class Match:
    """How far a network was found in a file.

    Attributes:
        naming: whose names the file has.
        prefix: what stands before them.
        sources: timm's name to those in the file.
        lacking: timm's names of needed tensors that the file lacks.
        misshapen: timm's names of those that have another shape.
        strangers: names in the file of parts that timm's network lacks.
        others: prefixes of further copies that fit as well.
    """

    naming: str
    prefix: str
    sources: dict[str, tuple[str, ...]]
    lacking: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the file has this network, and no part that it lacks."""
        return not (self.lacking or self.misshapen or self.strangers)

    @property
    def used(self) -> set[str]:
        """Names in the file that the network is made of."""
        return {name for names in self.sources.values() for name in names}


@cache
def outline(name: str, image_size: int | None = None) -> nn.Module:
    """Return a timm network without its numbers: names, shapes and facts."""
    arguments: dict[str, Any] = {"img_size": image_size} if image_size else {}
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return model


def by_name(model: nn.Module, file: WeightFile, branch: str | None) -> Match:
    """Return the best match by names, complete or not; of complete copies the one that ``BRANCHES`` prefers."""
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(OPTIONAL)}
    matches, heads = [], _heads(model)
    for naming in NAMINGS:
        sources = naming.sources(wanted)
        if sources is not None:
            prefixes = _prefixes(sources, file)
            matches += [_match(naming, p, sources, wanted, heads, file) for p in prefixes if _is_branch(p, branch)]
    if not matches:
        if branch is not None:
            raise InputError(f"branch {branch!r} names no part of {file.name} with such a network; leave it out.")
        return Match(NAMINGS[0].title, "", {}, lacking=tuple(wanted))
    complete = [match for match in matches if match.complete]
    if complete:
        first, *rest = sorted(complete, key=lambda match: (branch_rank(match.prefix), len(match.prefix)))
        others = tuple(match.prefix for match in rest if match.prefix != first.prefix)
        return Match(first.naming, first.prefix, first.sources, others=others)
    return max(matches, key=lambda match: (len(match.sources) - len(match.misshapen), -len(match.strangers)))


def by_order(model: nn.Module, file: WeightFile, branch: str | None) -> Match:
    """Match tensor after tensor of the file to timm's, where only the names differ.

    Raises:
        InputError: at the first tensor that differs, or where more is left than a classifier.
    """
    if not file.ordered:
        raise InputError(
            f"by_order is of no use with {file.name}: a .safetensors file forgets the order of the network's tensors; "
            "give the .pth file it was made from."
        )
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(OPTIONAL)}
    given = [name for name in file.tensors if not name.endswith(OPTIONAL) and _is_branch(name, branch)]
    for number, (name, source) in enumerate(zip(wanted, given, strict=False)):
        own, value = wanted[name], file.tensors[source]
        if not _fits(name, own, [value]) or own.shape != value.shape or _leaf(source) not in (None, _leaf(name)):
            raise InputError(
                f"{file.name} differs from the order of this network at tensor {number + 1} of {len(wanted)}: "
                f"{source} {_shape(value)} stands where {name} {_shape(own)} should; try another --backbone."
            )
    if len(given) < len(wanted):
        raise InputError(f"{file.name} ends after {len(given)} of the {len(wanted)} tensors of this network.")
    rest = given[len(wanted) :]
    if len(rest) > 2 or (rest and not _is_classifier(rest, model, file)):
        raise InputError(
            f"{file.name} goes on after the {len(wanted)} tensors of this network, with {len(rest)} more ({rest[0]}, "
            "…), which are no classifier; it is another network, or --branch must name the part of the file to take."
        )
    sources: dict[str, tuple[str, ...]] = {name: (part,) for name, part in zip(wanted, given, strict=False)}
    return Match("by order", "", sources)


def fitting(file: WeightFile, branch: str | None, *, but: str) -> str | None:
    """Return a common architecture that the file holds, as a hint."""
    for name in HINTS:
        if name != but and by_name(outline(name), file, branch).complete:
            return name
    return None


def classifier_of(match: Match, model: nn.Module, file: WeightFile) -> dict[str, str]:
    """Return the names of a classifier's ``weight`` and ``bias`` in the file, where one fits the features."""
    beside = match.prefix.removesuffix(".").rpartition(".")[0]
    heads = ("fc", "head", "classifier", "heads.head", "head.fc", "head.layers.head", "classifier.1", "linear", "_fc")
    places = [*(match.prefix + head for head in heads), *(f"{beside}.{head}".lstrip(".") for head in heads)]
    if match.naming == "by order":
        places = [name.removesuffix(".weight") for name in file.tensors if name not in match.used]
    for place in places:
        names = [name for name in (f"{place}.weight", f"{place}.bias") if name in file.tensors]
        if len(names) == 2 and _is_classifier(names, model, file):
            return dict(zip(("weight", "bias"), names, strict=True))
    return {}


def _is_classifier(names: list[str], model: nn.Module, file: WeightFile) -> bool:
    weight, *bias = (file.tensors[name] for name in names)
    features = int(getattr(model, "head_hidden_size", None) or timm_network(model).num_features)
    rows = weight.shape[0] if weight.ndim else 0
    return weight.shape == (rows, features) and all(value.shape == (rows,) for value in bias) and rows > 0


def _prefixes(sources: dict[str, tuple[str, ...]], file: WeightFile) -> list[str]:
    """Return what stands before the network's names in the file, the most frequent first."""
    tails = {names[0] for names in sources.values()}
    counts: Counter[str] = Counter()
    for name in file.tensors:
        counts.update(name[:start] for start in _starts(name) if name[start:] in tails)
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.most_common(MOST_PREFIXES) if 2 * count >= most]


def _heads(model: nn.Module) -> tuple[str, ...]:
    facts: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classifiers = facts.get("classifier") or ()
    return tuple(f"{head}." for head in ((classifiers,) if isinstance(classifiers, str) else classifiers))


def _starts(name: str) -> list[int]:
    return [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]


def _is_branch(name: str, branch: str | None) -> bool:
    """Whether a name lies in the branch: the beginning of it, or one of the words between its dots."""
    return branch is None or name.startswith(branch.rstrip(".") + ".") or branch in name.split(".")[:-1]


def _match(
    naming: Naming,
    prefix: str,
    sources: dict[str, tuple[str, ...]],
    own: dict[str, Tensor],
    heads: tuple[str, ...],
    file: WeightFile,
) -> Match:
    found = {name: tuple(prefix + part for part in parts) for name, parts in sources.items()}
    found = {name: parts for name, parts in found.items() if all(part in file.tensors for part in parts)}
    misshapen = [name for name, parts in found.items() if not _fits(name, own[name], [file.tensors[p] for p in parts])]
    used = {part for parts in found.values() for part in parts}
    tops = {part.split(".")[0] for parts in sources.values() for part in parts}
    strangers = []
    for name in file.tensors:
        rest = name[len(prefix) :]
        if not name.startswith(prefix) or name in used or rest.endswith(OPTIONAL):
            continue
        if rest.startswith(heads) or rest.rpartition(".")[2] in HEADS:
            continue
        top = rest.split(".")[0]
        if top in tops or PARTS.match(top):
            strangers.append(name)
    lacking = tuple(name for name in sources if name not in found)
    return Match(naming.title, prefix, found, lacking, tuple(misshapen), tuple(strangers))


def _fits(name: str, own: Tensor, parts: list[Tensor]) -> bool:
    shape = list(parts[0].shape)
    if len(parts) > 1:
        if any(part.ndim == 0 or part.shape != parts[0].shape for part in parts):
            return False
        shape[0] *= len(parts)
    if any(part.is_complex() or part.is_floating_point() != own.is_floating_point() for part in parts):
        return False
    if name in POSITIONS and own.ndim == 3 and len(shape) == 3 and shape != list(own.shape):
        tokens = shape[1]  # a square of patches, and perhaps a few tokens before them
        square = any(tokens > extra and math.isqrt(tokens - extra) ** 2 == tokens - extra for extra in (0, 1, 2, 5))
        return shape[0] == 1 and shape[2] == own.shape[2] and square
    return shape == list(own.shape)


def _leaf(name: str) -> str | None:
    last = name.rpartition(".")[2]
    last = OTHER_SPELLINGS.get(last, last)
    return last if last in LEAVES else None


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"
