"""The files a finished run is published as, by their path in the repository."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tpssl_hf.errors import InputError
from tpssl_hf.files.json_file import read_json
from tpssl_hf.hub.card import render_card
from tpssl_hf.hub.redaction import publishable, without_paths, without_secrets
from tpssl_hf.hub.run_record import MODEL, MODEL_CONFIG, VERDICT, WEIGHTS, Evidence
from tpssl_hf.hub.snippets import onnx_snippets
from tpssl_hf.models.sealed import SEALS, check_seals, read_sealed_weights, with_seals
from tpssl_hf.training.run_dir import CALIBRATION, RESULTS

Package = dict[str, bytes | Path]  # path in the repository -> its content, or the file that holds it

CARD, RUN_CONFIG = "README.md", "run_config.yaml"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
CURVES, VERDICT_IMAGE = "curves.png", "verdict.png"
ONNX = "onnx/model.onnx"  # where transformers.js looks
# Everything this module may write; what a former push left of it and the new one lacks goes in the same commit.
OWN_FILES = frozenset(
    {CARD, RUN_CONFIG, RESULTS, VERDICT, VERDICT_IMAGE, WEIGHTS, MODEL_CONFIG, *PROCESSOR_FILES, CURVES, ONNX}
    | {CALIBRATION}
)
PRIVATE_KEYS = ("cache_dir", "feature_dir")  # where this machine keeps things; of no use to others


def package(
    evidence: Evidence,
    repo: str,
    *,
    verdict_folder: Path | None,
    known_secrets: Iterable[str],
    onnx: bool = False,
) -> Package:
    """Collect weights, processor, configuration, results, images and card.

    Images of the data set itself (views, predictions, pseudo-labels) stay at home: they may not be anyone's to give
    away. Tokens and this machine's paths are taken out of every text.

    Args:
        evidence: what the run says about itself.
        repo: Hub id the card names.
        verdict_folder: folder of the verdict that ``evidence`` holds.
        known_secrets: tokens that must not appear.
        onnx: whether to add the network as ONNX, and the processor that transformers.js needs.

    Raises:
        InputError: for weights that are no whole safetensors file, and as ``export_onnx`` does.
    """
    known, folder = list(known_secrets), evidence.folder
    model = folder / MODEL
    _check_weights(model / WEIGHTS)
    files: Package = {WEIGHTS: model / WEIGHTS, RESULTS: _json(evidence.results, known)}
    read_sealed_weights(model / WEIGHTS)  # damaged ones stay at home
    check_seals(model, (*PROCESSOR_FILES, CALIBRATION))
    model_config = publishable(_licensed(model / MODEL_CONFIG, evidence.license), known)
    names = [name for name in (*PROCESSOR_FILES, CALIBRATION) if (model / name).is_file()]
    others = {name: publishable(_read(model / name), known) for name in names}
    if SEALS in model_config:
        model_config = with_seals(model_config, model_config[SEALS][WEIGHTS], others)
    files |= {name: _as_json(content) for name, content in {MODEL_CONFIG: model_config, **others}.items()}
    config = {name: value for name, value in evidence.results["config"].items() if name not in PRIVATE_KEYS}
    shown = yaml.safe_dump(publishable(config, known), sort_keys=False, allow_unicode=True)
    files[RUN_CONFIG] = shown.encode()
    if (folder / CURVES).is_file():
        files[CURVES] = folder / CURVES
    if evidence.verdict is not None and verdict_folder is not None:
        files[VERDICT] = _json(evidence.verdict, known)
        if (verdict_folder / VERDICT_IMAGE).is_file():
            files[VERDICT_IMAGE] = verdict_folder / VERDICT_IMAGE
    more = _add_onnx(files, evidence, repo, known) if onnx else None
    _refuse_other_content(files)
    card = render_card(evidence, repo, frozenset(files), more)
    files[CARD] = without_paths(without_secrets(card, known)).encode()
    return files


def _add_onnx(files: Package, evidence: Evidence, repo: str, known: list[str]) -> str:
    """Add the network as ONNX to ``files``, and return what the card says of running it."""
    from tpssl_hf.hub.onnx import browser_processor, export_onnx

    exported = export_onnx(evidence)
    files[ONNX] = exported.content
    if not files.keys() & PROCESSOR_FILES:
        files[PROCESSOR_FILES[0]] = _json(browser_processor(evidence), known)
    return onnx_snippets(evidence.results, repo, exported)


def _licensed(path: Path, license: str) -> dict[str, Any]:
    """Return the model's configuration with the license in it, which runs that start from the model inherit."""
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "pretrained_cfg" in config:
        config["pretrained_cfg"]["license"] = license
    else:
        config["provenance"] = {**config.get("provenance", {}), "license": license}
    return config


def _refuse_other_content(files: Package) -> None:
    """Refuse images that are none: a stranger's folder could hold links to what is nobody's to see."""
    for name, content in files.items():
        if name.endswith(".png") and isinstance(content, Path):
            with content.open("rb") as stream:
                if stream.read(4) != b"\x89PNG":
                    raise InputError(f"{content} is no PNG image, so it is not published; remove it.")


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); the run is damaged, make it again.") from error


def write_package(files: Package, folder: Path) -> None:
    """Write a package to an empty folder.

    Raises:
        InputError: for a folder that holds something, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"dry_run {folder} is not empty; give a new folder, or delete it.")
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    except OSError as error:
        raise InputError(f"dry_run {folder} cannot be written ({error.strerror}); give another folder.") from error


def _json(data: dict[str, Any], known: list[str]) -> bytes:
    data = publishable(data, known)
    if isinstance(data.get("config"), dict):
        data["config"] = {name: value for name, value in data["config"].items() if name not in PRIVATE_KEYS}
    return _as_json(data)


def _as_json(data: Any) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"


def _check_weights(path: Path) -> None:
    """Refuse a file that is cut short: its header says how long it must be."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a safetensors file; the run is damaged, make it again.") from error
    if size != 8 + length + max(ends, default=0):
        raise InputError(
            f"{path} is {size:,} bytes long and should be {8 + length + max(ends, default=0):,}; make the run again."
        )
