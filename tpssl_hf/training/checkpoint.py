"""Checkpoints that survive a kill, a full disk and a flipped bit: safetensors and JSON under a manifest of hashes.

``folder/step_N/`` holds one ``<group>.safetensors`` per group of tensors, ``state.json`` and ``MANIFEST.json``. It is
written and read back under a temporary name and then renamed: whatever is called ``step_N`` was complete once.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialize_tensors
from torch import Tensor
from torch.optim import Optimizer

from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import REPLACED, swap_folder, sync_folder, write_new_file
from tpssl_hf.process import NO_ROOM

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TENSORS_SUFFIX = ".safetensors"
TEMPORARY = ".tmp-"


class CheckpointError(InputError, OSError):
    """A checkpoint could not be written: disk full, quota, read-only or failing disk. Older ones are untouched.

    It is an ``InputError`` because the output folder was given by the user: recipes print it without a traceback.
    """


class _DamagedFileError(Exception):
    """A file is not what the manifest says; the message starts with the file's name."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete and verified checkpoint; its tensors are on the CPU, by group and name."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write ``folder/step_{step}`` so that a kill at any moment leaves it or an older checkpoint complete.

    A checkpoint of the same step is replaced; of the older ones the newest ``keep - 1`` stay. Only one process may
    save into a folder at a time, because what a killed save left behind is removed first.

    Args:
        folder: Where checkpoints live; made if it is missing.
        step: The number of finished steps.
        tensors: Tensors by group and name; any device, layout and sharing. They come back contiguous and unshared.
        state: JSON values under string keys. Tuples come back as lists, floats exactly.
        keep: How many checkpoints to keep, this one included.

    Raises:
        CheckpointError: The disk refused; the message says how many bytes are needed and free, and what is intact.
        TypeError: ``state`` is not JSON; nothing was written.
        ValueError: ``keep`` is smaller than 1; nothing was written.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the new checkpoint itself must be kept.")
    document = json.dumps(dict(state)).encode()
    try:
        return _save(folder, step, tensors, document, keep)
    except (OSError, _DamagedFileError) as error:
        needed = len(document) + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        raise CheckpointError(_explain_failure(folder, step, needed, error)) from error


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint whose every file has the size and hash that its manifest states.

    Returns None if there is none. If newer ones are damaged, one warning names their files and the checkpoint used
    instead. Nothing is written or removed, so that every process of a run may call it at the same time.

    Raises:
        InputError: There are checkpoints and all of them are damaged.
    """
    faults = []
    for step, path in _candidates(folder):
        try:
            checkpoint = _load(step, path)
        except (OSError, _DamagedFileError) as damage:
            faults.append(f"{path} ({damage})")
        else:
            if faults:
                warnings.warn(f"Damaged checkpoint {', '.join(faults)}; {path} is used instead.", stacklevel=2)
            return checkpoint
    if faults:
        raise InputError(
            f"Every checkpoint is damaged: {', '.join(faults)}. Restore one, or delete {folder} to start over."
        )
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed save has left and nobody reads; for the one process that saves, others may be loading."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)
    for path in folder.glob(f"{REPLACED}step_*"):
        if (folder / path.name.removeprefix(REPLACED)).exists():
            shutil.rmtree(path)


def remove_old(folder: Path, step: int, keep: int) -> None:
    """Remove all checkpoints before ``step`` but the newest ``keep - 1``."""
    older = [path for other, path in _candidates(folder) if other < step]
    for path in older[keep - 1 :]:
        temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
        os.replace(path, temporary)  # so that a half-removed checkpoint is never taken for one
        shutil.rmtree(temporary)


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into named tensors, not copied, and JSON values that say where each tensor belongs.

    Raises:
        TypeError: The state holds something that is neither a tensor, nor a number, string or None, nor a container.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {"state_dict": _encode(optimizer.state_dict(), "optimizer", tensors)}


def unpack_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Load what ``pack_optimizer`` returned, so that the next step is bit-identical. Tensors are copied.

    Raises:
        KeyError: A tensor that ``state`` names is missing.
        ValueError: The optimizer has other parameter groups than the one that was packed.
    """
    optimizer.load_state_dict(_decode(state["state_dict"], tensors))


def _save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], document: bytes, keep: int) -> Path:
    final, temporary = folder / f"step_{step}", folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        temporary.mkdir()
        files = {}
        for group, named in tensors.items():
            copies = {
                name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in named.items()
            }
            files[group + TENSORS_SUFFIX] = _write(temporary / (group + TENSORS_SUFFIX), serialize_tensors(copies))
        files[STATE] = _write(temporary / STATE, document)
        manifest: dict[str, Any] = {"format": FORMAT_VERSION, "step": step, "files": files}
        manifest["seal"] = _hash(json.dumps(manifest).encode())
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(temporary)
        for _ in _verified_files(temporary, step):
            pass
        swap_folder(temporary, final)  # readers look for step_N under its waiting name too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already unless the save failed
    remove_old(folder, step, keep)
    return final


def _write(path: Path, data: bytes) -> dict[str, Any]:
    write_new_file(path, data)
    return {"sha256": _hash(data), "size": len(data)}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _clear_leftovers(folder: Path) -> None:
    remove_leftovers(folder)
    for path in folder.glob(f"{REPLACED}step_*"):
        os.replace(path, folder / path.name.removeprefix(REPLACED))


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """List checkpoints by step, newest first, none of them verified."""
    found: dict[int, Path] = {}
    for prefix in (REPLACED, ""):  # step_N itself wins over the one it replaces
        for path in folder.glob(f"{prefix}step_*"):
            if match := re.fullmatch(r"step_(0|[1-9]\d*)", path.name.removeprefix(prefix)):
                found[int(match[1])] = path
    return sorted(found.items(), reverse=True)


def _load(step: int, path: Path) -> Checkpoint:
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, data in _verified_files(path, step):
        try:
            if name == STATE:
                state = json.loads(data)
            else:
                tensors[name.removesuffix(TENSORS_SUFFIX)] = parse_tensors(data)
        except (SafetensorError, ValueError) as error:
            raise _DamagedFileError(f"{name}: {error}") from error
    return Checkpoint(step, tensors, state, path)


def _verified_files(path: Path, step: int) -> Iterator[tuple[str, bytes]]:
    """Yield each file's name and content; what is yielded is what was hashed."""
    for name, expected in _read_manifest(path, step).items():
        data = (path / name).read_bytes()
        if len(data) != expected["size"]:
            raise _DamagedFileError(f"{name}: {len(data)} bytes instead of {expected['size']}")
        if _hash(data) != expected["sha256"]:
            raise _DamagedFileError(f"{name}: its content does not have the recorded SHA-256")
        yield name, data


def _read_manifest(path: Path, step: int) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        seal = manifest.pop("seal")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedFileError(f"{MANIFEST}: not a readable manifest") from error
    if seal != _hash(json.dumps(manifest).encode()):  # so that damage here is not blamed on the file it speaks of
        raise _DamagedFileError(f"{MANIFEST}: its content does not have the recorded SHA-256")
    if manifest["format"] != FORMAT_VERSION:
        raise _DamagedFileError(f"{MANIFEST}: format {manifest['format']}, only {FORMAT_VERSION} can be read")
    if manifest["step"] != step:
        raise _DamagedFileError(f"{MANIFEST}: it belongs to step {manifest['step']}")
    files: dict[str, dict[str, Any]] = manifest["files"]
    if any(Path(name).name != name for name in files):
        raise _DamagedFileError(f"{MANIFEST}: it names files outside its folder")
    return files


def _explain_failure(folder: Path, step: int, needed: int, error: Exception) -> str:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    reason, full = getattr(error, "strerror", None) or error, getattr(error, "errno", None) in NO_ROOM
    others = ", ".join(path.name.removeprefix(REPLACED) for _, path in _candidates(folder))
    return (
        f"The checkpoint of step {step} could not be saved in {folder}: {reason} (it needs about {needed} bytes, "
        f"{shutil.disk_usage(existing).free} bytes are free there). "
        + (f"What was there is intact ({others}). " if others else "There is no older checkpoint. ")
        + ("Make room" if full else "See to it that files can be written there")
        + " or choose another output folder, then run the same command again."
    )


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which has no exact form in JSON or safetensors.")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].clone()
    if "tuple" in value:
        return tuple(_decode(value["tuple"], tensors))
    return {key: _decode(item, tensors) for key, item in value["dict"]}
