"""What adapted weights began from, as their run recorded it; names of folders and architectures do not tell."""

import json
from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WeightsSource, stored_config
from tpssl_hf.training.run_dir import RESULTS


def recorded_start(place: str) -> dict[str, Any]:
    """Return what the weights in ``place`` were adapted from, as their run recorded it; empty where nothing is known.

    The record is in their ``config.json``, or in the ``results.json`` of the run they lie in. ``seed`` is the run's.
    """
    path = Path(place).expanduser()
    folder = path.parent if path.is_file() else path
    facts = stored_config(str(folder)).get("tpssl_hf", {})
    for run in (folder, folder.parent):
        if not facts.get("init") and (run / RESULTS).is_file():
            facts = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    init = facts.get("init")
    return {"seed": facts.get("seed"), **init} if isinstance(init, dict) else {}


def recorded_keys(place: str) -> dict[str, Any]:
    """Return the keys of the run that weights in ``place`` lie in, from its ``results.json``; empty without one."""
    path = Path(place).expanduser()
    folder = path.parent if path.is_file() else path
    file = folder.parent / RESULTS
    keys = json.loads(file.read_text(encoding="utf-8")).get("config") if file.is_file() else None
    return keys if isinstance(keys, dict) else {}


def timm_start(places: list[str], backbone: str | None) -> str | None:
    """Return the tagged timm model that adapted weights began from, for a base of ``timm``; None if none is recorded.

    A tag that is given with ``backbone`` stands.

    Raises:
        InputError: if the first run that says so began from other weights than timm's.
    """
    start = next((found for place in places if (found := recorded_start(place))), None)
    if start is None or (backbone and "." in backbone):
        return backbone
    name, kind = str(start.get("name")), start.get("kind")
    if kind != "timm":
        what = {"random": "random", "hub": f"{name}@{start.get('revision')}"}.get(str(kind), f"PATH/TO/{name}")
        raise InputError(
            f"base timm means timm's weights that were adapted, and {places[0]} was adapted from {kind} weights "
            f"({name}): say --base {what}, or name other weights by their tag (--base resnet18.tv_in1k)."
        )
    return name if backbone in (None, name.partition(".")[0]) else backbone


def same_start(start: dict[str, Any], base: WeightsSource, seed: int) -> bool | None:
    """Whether ``base`` is what weights were adapted from, by digests or else by names; None if that is not known."""
    for digest, own in (("weights", base.weights), ("sha256", base.sha256)):
        if start.get(digest) and own:
            return bool(start[digest] == own)
    if not start:
        return None
    kinds = start["kind"], base.kind
    if kinds == ("random", "random"):
        return bool(start["name"] == base.name and start.get("seed") in (None, seed))
    if kinds == ("timm", "timm"):
        return bool(start["name"] == base.name)
    if base.kind == "random" or kinds in (("random", "timm"), ("random", "hub")):
        return False
    ends = [str(name).rpartition("/")[2] for name in (start["name"], base.name)]
    return True if ends[0] == ends[1] != "model" else None
