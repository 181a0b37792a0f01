"""Turn weights from elsewhere into a folder that timm, transformers and ``--init`` load, and prove it."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import Tensor, nn

from tpssl_hf.convert.config import ConvertConfig
from tpssl_hf.convert.families import family_of
from tpssl_hf.convert.images import preprocessing_of, stated
from tpssl_hf.convert.match import (
    OPTIONAL,
    POSITIONS,
    Match,
    by_name,
    by_order,
    classifier_of,
    fitting,
    outline,
)
from tpssl_hf.convert.proof import prove
from tpssl_hf.convert.read import WeightFile, read_weights
from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import replacing_folder
from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE, stored_config
from tpssl_hf.models.tensors import resampled_positions
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.models.timm_network import timm_network
from tpssl_hf.training.provenance import run_facts

RECIPE = "convert"
MOST_LISTED, SMALLEST = 8, 8


@dataclass(frozen=True)
class Converted:
    """What a conversion found and wrote.

    Attributes:
        folder: where timm's two files are.
        match: where in the file the network was.
        left_out: (part of the file, number of its tensors) that were not taken.
        difference: greatest difference of features to those of ``compared_with``, the same weights in another network.
        compared_with: what that network was.
        lines: all of it for people.
    """

    folder: Path
    match: Match
    left_out: tuple[tuple[str, int], ...]
    difference: float
    compared_with: str
    lines: tuple[str, ...]


def convert(options: ConvertConfig) -> Converted:
    """Find a timm network in a file of weights, write timm's two files, load them back and compare features.

    Raises:
        InputError: for a file that cannot be read without unpickling or is damaged, a network that is not wholly in it
            or only a part of what is in it, weights that are not finite, a folder that is not convert's to replace,
            and features that differ from those of the source.
    """
    name, folder = _checked(options)
    file = read_weights(Path(options.weights).expanduser())
    fixed = options.image_size if stated(name).get("fixed_input_size") else None
    model = _outline(name, fixed)
    match = _found(name, model, file, options)
    classifier = classifier_of(match, model, file)
    if options.keep_classifier and not classifier:
        raise InputError(f"keep_classifier: {file.name} holds no classifier of {name}'s features; leave it out.")
    kept = classifier if options.keep_classifier else {}
    preprocessing, why = preprocessing_of(options, match, file, classified=bool(classifier))
    network, remarks = _filled(name, fixed, file, match, kept)
    left_out = _left_out(file, match, kept)
    family = family_of(file.tensors, file.keys)
    source = {"file": file.name, "sha256": file.sha256, "family": family, "names": match.naming}
    provenance = run_facts(recipe=RECIPE, source={**source, "prefix": match.prefix}, license=options.license)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder) as staged:
            save_timm_folder(
                network, staged, preprocessing=preprocessing, provenance=provenance, license=options.license
            )
            difference, compared_with = prove(
                staged, name, network, match, file, preprocessing.image_size, classifier=bool(kept)
            )
            _refuse_others(folder)  # again: it may have been filled meanwhile
    except OSError as error:
        raise InputError(f"output_dir {folder} cannot be written ({error.strerror}); choose another.") from error
    lines = (
        f"  read       {file.name}, SHA-256 {file.sha256}" + (f", {family}" if family else ""),
        f"  matched    all tensors of {name}, {len(match.used)} of {_count(file)} in the file"
        + (f", below {match.prefix!r}" if match.prefix else "")
        + (", in their order" if match.naming == "by order" else f", by the names of {match.naming}"),
        *(f"             {other!r} fits as well; --branch takes it instead" for other in match.others[:MOST_LISTED]),
        *(f"             {remark}" for remark in remarks),
        f"  left out   {_listed(left_out)}",
        f"  images     {why}",
        f"  license    {options.license or 'not stated; --license states it, and a card will ask for it'}",
        f"  compared   features of two fixed images with {compared_with}: differ by {difference:.1e} at most",
        f"  written    {folder}; use it with --init {folder} --backbone {name}",
    )
    return Converted(folder, match, left_out, difference, compared_with, lines)


def _checked(options: ConvertConfig) -> tuple[str, Path]:
    if not options.weights:
        raise InputError("no weights are given; name the file, `tpssl-hf convert FILE`.")
    name = options.backbone.partition(".")[0]
    if not is_model(name):
        near = timm.list_models(f"*{name}*")[:3] if name else ["resnet50", "vit_small_patch16_224"]
        raise InputError(
            f"backbone {options.backbone!r} is no timm model; give the one that the file holds"
            + (f", e.g. {', '.join(near)}." if near else "; `timm.list_models()` names them.")
        )
    stated(options.backbone)
    if options.image_size is not None and options.image_size < SMALLEST:
        raise InputError(
            f"image_size {options.image_size} is smaller than any network can use; give the side in pixels."
        )
    if not options.output_dir:
        raise InputError("no folder is given; add `--output_dir FOLDER`.")
    folder = Path(options.output_dir).expanduser().resolve()
    _refuse_others(folder)
    return name, folder


def _refuse_others(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"output_dir {folder} is a file; give a folder.")
    inside = {path.name for path in folder.iterdir()}
    ours = (stored_config(str(folder)).get("tpssl_hf") or {}).get("recipe") == RECIPE
    if inside and not (ours and inside <= {CONFIG_FILE, WEIGHTS_FILE}):
        raise InputError(f"output_dir {folder} holds other files than convert's ({min(inside)}); give a new folder.")


def _outline(name: str, image_size: int | None) -> nn.Module:
    try:
        return outline(name, image_size)
    except (AssertionError, ValueError) as error:
        raise InputError(f"image_size {image_size} is none that {name} can be built for ({error}).") from error


def _found(name: str, model: nn.Module, file: WeightFile, options: ConvertConfig) -> Match:
    match = by_name(model, file, options.branch)
    if match.complete:
        return match
    if options.by_order:
        return by_order(model, file, options.branch)
    hint = fitting(file, options.branch, but=name)
    problems = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", match.lacking),
            ("of another shape", match.misshapen),
            ("that this network has no place for", match.strangers),
        )
        if names
    ]
    if hint:
        mend = f"it is {hint}'s, say `--backbone {hint}`"
    else:
        mend = "try another --backbone, or --by_order if all names differ but the order may not"
    below = f" below {match.prefix!r}" if match.prefix else ""
    raise InputError(f"{file.name} does not hold {name}{below}: tensors {'; '.join(problems)}; {mend}.")


def _filled(
    name: str, image_size: int | None, file: WeightFile, match: Match, classifier: dict[str, str]
) -> tuple[nn.Module, list[str]]:
    """Build the network with the file's numbers in it; returns it and what was done to them."""
    rows = len(file.tensors[classifier["weight"]]) if classifier else 0
    arguments: dict[str, Any] = {"img_size": image_size} if image_size else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=rows, **arguments)
    own, remarks, kinds = model.state_dict(), [], Counter[str]()
    head = timm_network(model).pretrained_cfg["classifier"] if classifier else ""
    if not isinstance(head, str):
        raise InputError(f"keep_classifier: {name} has several classifiers ({', '.join(head)}); leave it out.")
    sources = {**match.sources, **{f"{head}.{leaf}": (source,) for leaf, source in classifier.items()}}
    for target, parts in sources.items():
        given = [file.tensors[part] for part in parts]
        kinds.update(str(value.dtype).removeprefix("torch.") for value in given if value.is_floating_point())
        value = torch.cat(given) if len(given) > 1 else given[0]
        value = value.to(own[target].dtype)
        if not torch.isfinite(value).all():
            raise InputError(f"{file.name} holds weights that are not finite numbers, in {parts[0]}; it is damaged.")
        if target.endswith("running_var") and (value < 0).any():
            raise InputError(f"{file.name} has negative variances in {parts[0]}; that is not what the order says.")
        if target in POSITIONS and value.shape != own[target].shape:
            value = _resampled(value, model, parts[0])
            remarks.append(f"{target} resampled from {given[0].shape[1]} to {own[target].shape[1]} positions")
        own[target] = value
    if set(kinds) - {"float32"}:
        remarks.append(f"stored as {', '.join(sorted(kinds))}, written as float32")
    counters = {
        n: file.tensors[match.prefix + n] for n in own if n.endswith(OPTIONAL) and match.prefix + n in file.tensors
    }
    own |= {n: value for n, value in counters.items() if value.numel() == 1 and not value.is_floating_point()}
    model.load_state_dict(own)
    return model.eval(), remarks


def _resampled(value: Tensor, model: nn.Module, name: str) -> Tensor:
    extra = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
    patches = value.shape[1] - extra
    if math.isqrt(max(patches, 0)) ** 2 != patches or patches < 1:
        raise InputError(
            f"{name} has {value.shape[1]} positions, which are not {extra} tokens and a square of patches; the "
            "network was made for other images than square ones, or has other tokens, and is not this --backbone."
        )
    return resampled_positions(model, value, extra)


def _left_out(file: WeightFile, match: Match, kept: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """Return the parts of the file that were not taken: the first word that sets them apart from what was."""
    before = match.prefix.split(".")[:-1]
    counts: Counter[str] = Counter()
    for name in file.tensors:
        if name in match.used or name in kept.values() or name.endswith(OPTIONAL):
            continue
        words = name.split(".")
        same = next((i for i, (a, b) in enumerate(zip(words, before, strict=False)) if a != b), len(before))
        counts[".".join(words[: same + 1])] += 1
    return tuple(counts.items())


def _count(file: WeightFile) -> int:
    return sum(not name.endswith(OPTIONAL) for name in file.tensors)


def _listed(parts: tuple[tuple[str, int], ...]) -> str:
    shown = ", ".join(f"{part} ({count})" for part, count in parts[:MOST_LISTED])
    return (shown or "nothing") + (f" and {len(parts) - MOST_LISTED} parts more" if len(parts) > MOST_LISTED else "")
