"""What a finished run says about itself, and what must be known before it may be published."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpssl_hf.data.registry import DATASETS, EMBEDDED
from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.models.backbone import converted_from
from tpssl_hf.tasks.classify.selection import FINETUNED
from tpssl_hf.training.run_dir import METRICS, RESULTS, read_metrics

RECIPES = ("target_pretrain", "ssl_classify", "ssl_segment")
MODEL, WEIGHTS, MODEL_CONFIG, VERDICT = "model", "model.safetensors", "config.json", "verdict.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]*")
CONTROLS = ("base", "base, statistics only", "teacher")  # rows of a verdict beside those of runs
HEALTH = ("drift", "projection_std", "health_")  # what their names in metrics.jsonl begin with
_LONGEST_CHAIN = 8


@dataclass(frozen=True)
class Base:
    """Published weights that a run started from, perhaps over runs of one's own.

    Attributes:
        hub_id: repository of the weights; None where the start was random, or weights that are published nowhere.
        revision: its commit, if known.
        license: of the weights, as far as their source states it.
        steps: what was done between them and this run, first thing first.
        note: what they are, in its maker's words, where they are published nowhere.
        converted: the note is what ``tpssl-hf convert`` recorded of a file from elsewhere instead.
    """

    hub_id: str | None
    revision: str | None = None
    license: str | None = None
    steps: tuple[str, ...] = ()
    note: str | None = None
    converted: bool = False


@dataclass(frozen=True)
class Evidence:
    """Everything a card is made of.

    Attributes:
        folder: of the run.
        results: its results.json.
        base: what it started from.
        license: of its weights, as the Hub spells it.
        dataset_id: Hub id of the data set, if it has one.
        dataset_license: terms of the images in words, if known.
        dataset_citation: where the data set was published, if known.
        spread: results.json over all label seeds, if the run is one of several.
        verdict: verdict.json, if there is one.
        health: last values of the run's measures of drift and health, by name.
    """

    folder: Path
    results: dict[str, Any]
    base: Base
    license: str
    dataset_id: str | None
    dataset_license: str | None
    dataset_citation: str | None
    spread: dict[str, Any] | None
    verdict: dict[str, Any] | None
    health: dict[str, float]


def gather(folder: Path, choices: PublishConfig) -> Evidence:
    """Read a run's folder, and decide what a card must say.

    Args:
        folder: of a finished run of pretrain, classify or segment.
        choices: what the user adds.

    Raises:
        InputError: for a folder without a finished run, and where base weights, data set, license or seed are unknown;
            the message says how to give what is missing.
    """
    results = _results(folder)
    base, license = start_and_license(results, choices, str(folder))
    name = results["config"].get("dataset")
    spec = DATASETS.get(str(name))
    dataset_id = choices.dataset_id or (spec.source if spec and spec.source != EMBEDDED else None)
    if dataset_id is None and HUB_ID.fullmatch(results["dataset"]["name"]):
        dataset_id = results["dataset"]["name"]
    if dataset_id is not None and not HUB_ID.fullmatch(dataset_id):
        raise InputError(f"dataset_id {dataset_id!r} is not a Hub id; give `owner/name`, or leave it out.")
    return Evidence(
        folder=folder,
        results=results,
        base=base,
        license=license,
        dataset_id=dataset_id,
        dataset_license=choices.dataset_license or (spec.license if spec else None),
        dataset_citation=spec.citation if spec else None,
        spread=_spread(folder),
        verdict=_verdict(folder, choices.verdict),
        health=_health(folder / METRICS),
    )


def start_and_license(results: dict[str, Any], choices: PublishConfig, what: str) -> tuple[Base, str]:
    """Return what a run goes back to, and the license of its weights.

    Args:
        results: of the run, or its entries ``init`` and ``config`` alone where it has only begun.
        choices: what the user adds.
        what: the run's name in a sentence.

    Raises:
        InputError: where either is unknown or wrong.
    """
    base = _base(results, choices)
    license = choices.license or base.license
    if not license:
        raise InputError(
            f"the license of {what} is not known: say under which the weights may be used, as the Hub spells it, "
            "e.g. `--license apache-2.0`."
        )
    if not LICENSE.fullmatch(license):
        raise InputError(
            f"license {license!r} is not spelled as on the Hub; e.g. apache-2.0, mit, cc-by-4.0 or other."
        )
    return base, license


def _results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a finished run, its `--output_dir`.")
    if not (folder / RESULTS).is_file():
        parent = f"; did you mean {folder.parent}?" if (folder.parent / RESULTS).is_file() else ""
        raise InputError(
            f"{folder} holds no {RESULTS}, so no run has finished there{parent or '; finish it, or give another.'}"
        )
    results = _json(folder / RESULTS)
    if results.get("recipe") not in RECIPES:
        raise InputError(
            f"{folder} was made by {results.get('recipe')!r}; publish takes runs of {', '.join(RECIPES)}."
        )
    if results.get("label_seeds"):
        one = folder / f"label_seed_{results['label_seeds'][0]}"
        raise InputError(f"{folder} holds {len(results['label_seeds'])} runs; publish one of them, e.g. {one}.")
    dataset = results.get("dataset") or {}
    if not dataset.get("name") or not dataset.get("fingerprint"):
        raise InputError(f"{folder / RESULTS} does not say which images were used; run the recipe again.")
    if not isinstance(results.get("seed"), int):
        raise InputError(f"{folder / RESULTS} does not say which seed was used; run the recipe again with `--seed 0`.")
    if not isinstance(results.get("config"), dict) or not isinstance(results.get("init"), dict):
        raise InputError(f"{folder / RESULTS} does not say how the run was made; run the recipe again.")
    for name in (WEIGHTS, MODEL_CONFIG):
        if not (folder / MODEL / name).is_file():
            raise InputError(f"{folder / MODEL} holds no {name}; the run is damaged, make it again.")
    return results


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it, or make the run again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold what a run leaves there; restore it, or make the run again.")
    return content


def _base(results: dict[str, Any], choices: PublishConfig) -> Base:
    """Return the weights a run goes back to; the user's word is needed where only the user knows them."""
    given, note = choices.base_model, choices.base_note
    if given is not None and given != "none" and not HUB_ID.fullmatch(given.partition("@")[0]):
        raise InputError(f"base_model {given!r} is not a Hub id; give `owner/name`, or `none` for random weights.")
    if given is not None and note is not None:
        raise InputError("base_note is for weights that are published nowhere; give it or `--base_model`, not both.")
    found, steps = _traced(results)
    if found is not None and found.converted and (given is not None or note is not None):
        found = None  # where the file was published is the user's to say
    if found is None and given is None and note is None:
        raise InputError(
            f"the base weights are not known: this run started from {results['init'].get('name')!r}, which only you "
            "have; say which published weights that goes back to, e.g. `--base_model timm/resnet18.a1_in1k`, or "
            "`--base_model none` for random ones; or say in words what they are with `--base_note`."
        )
    license = results["init"].get("license")
    if given is None and note is None:
        assert found is not None
        return found
    hub_id, _, revision = (given or "none").partition("@")
    stated = Base(None if hub_id == "none" else hub_id, revision or None, license, () if found else steps, note)
    if found is None:
        return stated
    if note is not None or (found.hub_id != stated.hub_id and not found.steps):
        raise InputError(
            f"base_{'note' if note else 'model'} {note or given!r} is not what this run started from, "
            f"{found.hub_id or 'random weights'}; leave it out."
        )
    return found if found.hub_id == stated.hub_id else stated


def _traced(results: dict[str, Any]) -> tuple[Base | None, tuple[str, ...]]:
    """Follow local folders that are still there and unchanged back to random or published weights.

    Returns:
        The weights, or None where the way ends before them; and what was done since.
    """
    init, location, steps = results["init"], str(results["config"].get("init", "")), tuple[str, ...]()
    for _ in range(_LONGEST_CHAIN):
        kind, name, license = init.get("kind"), str(init.get("name") or ""), init.get("license")
        if init.get("source"):
            return Base(None, None, license, steps, init["source"], converted=True), steps
        if kind == "random":
            return Base(None, None, license, steps), steps
        if kind == "hub":
            return Base(name, init.get("revision"), license, steps), steps
        if kind == "timm" and not name.endswith(".default"):
            return Base(f"timm/{name}", None, license, steps), steps
        earlier = _provenance(Path(location) / MODEL_CONFIG) if kind == "folder" and location else {}
        if not earlier or not _same(Path(location) / WEIGHTS, init.get("sha256")):
            return None, steps
        if (source := converted_from(earlier)) is not None:
            return Base(None, None, license, steps, source, converted=True), steps
        if not isinstance(earlier.get("init"), dict):
            return None, steps
        images = (earlier.get("dataset") or {}).get("name", "images")
        if earlier.get("candidate") in (None, FINETUNED):  # a baseline has the weights it started from
            taught = earlier.get("teacher")
            of = f" of {taught['name']} (license: {taught['license'] or 'not stated'})" if taught else ""
            steps = (f"{earlier.get('method', '?')}{of} on {images} ({earlier.get('recipe', '?')})", *steps)
        init, location = earlier["init"], ""
    return None, steps


def _provenance(config: Path) -> dict[str, Any]:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = content.get("tpssl_hf") or content.get("provenance") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _same(weights: Path, digest: str | None) -> bool:
    import hashlib

    if digest is None or not weights.is_file():
        return False
    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == digest


def _spread(folder: Path) -> dict[str, Any] | None:
    """Return the results over all label seeds where the run is one of them."""
    whole = folder.parent / RESULTS
    if not folder.name.startswith("label_seed_") or not whole.is_file():
        return None
    found = _json(whole)
    return found if found.get("label_seeds") else None


def verdict_folder(folder: Path, given: str | None) -> Path | None:
    """Return where the verdict on a run is, as ``--verdict`` says or else in its own folder; None without one."""
    if given == "none":
        return None
    locations = [Path(given)] if given else [folder, folder / "verdict"]
    return next((location for location in locations if (location / VERDICT).is_file()), None)


def _verdict(folder: Path, given: str | None) -> dict[str, Any] | None:
    location = verdict_folder(folder, given)
    if location is None:
        if given and given != "none":
            raise InputError(f"verdict {given!r} holds no {VERDICT}; give the folder that `tpssl-hf verdict` made.")
        return None
    file = location / VERDICT
    verdict = _json(file)
    judged = [row["name"] for row in verdict.get("rows", []) if row["name"] not in CONTROLS]
    if folder.resolve().name not in judged:
        raise InputError(
            f"{file} is about {', '.join(judged) or 'nothing'}, not about {folder.resolve().name}; give its own "
            "verdict, or `--verdict none`."
        )
    return verdict


def _health(metrics: Path) -> dict[str, float]:
    """Return the last number of each measure of drift and health in a metrics log."""
    found: dict[str, float] = {}
    for entry in read_metrics(metrics):
        for name, value in entry.items():
            if name.startswith(HEALTH) and isinstance(value, int | float):
                found[name] = float(value)
    return found
