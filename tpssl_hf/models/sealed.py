"""Seals by which a damaged folder of weights is told from a sound one, read by this package and ignored by others.

The weight file holds the digest of its tensors in its own header, and ``config.json`` the digests of all files. A
weight file that somebody saved again has no seal, and then nothing is compared.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from tpssl_hf.errors import InputError
from tpssl_hf.files.json_file import read_json

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
SEAL = "sha256"  # in the header of the weights
SEALS = "tpssl_sha256"  # in config.json: file name -> digest
DIGITS = 64  # of a seal


def weights_digest(tensors: Mapping[str, Tensor], *, any_size: bool = False) -> str:
    """SHA-256 of named tensors; with ``any_size`` of those only that do not depend on the size of the images."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if not (any_size and any(part in name for part in ("pos_embed", "rel_pos", "relative_position", "attn_mask"))):
            data = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(name.encode() + data.tobytes())
    return digest.hexdigest()


def seal_folder(folder: Path) -> None:
    """Put the seals into the weights and the ``config.json`` of a folder that is being written."""
    tensors = load_file(folder / WEIGHTS_FILE)
    seal = weights_digest(tensors)
    (folder / WEIGHTS_FILE).write_bytes(_sealed(save(tensors, {"format": "pt"}), seal))
    others = {path.name: read_json(path) for path in folder.glob("*.json") if path.name != CONFIG_FILE}
    config = with_seals(read_json(folder / CONFIG_FILE), seal, others)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _sealed(content: bytes, seal: str) -> bytes:
    """Put a seal into the header of a safetensors file; the library itself writes metadata in a random order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"][SEAL] = seal
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[start:]


def with_seals(config: Mapping[str, Any], weights: str, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` with the digest of its weights, of ``others`` by name, and its own."""
    own = {name: value for name, value in config.items() if name != SEALS}
    seals = {name: _content_digest(content) for name, content in others.items()}
    return {**own, SEALS: {WEIGHTS_FILE: weights, CONFIG_FILE: _content_digest(own), **seals}}


def read_sealed_weights(path: Path) -> dict[str, Tensor]:
    """Read a weight file whose tensors are what its seal says, if it has one.

    Raises:
        InputError: for a file that is no safetensors file, is damaged, or holds values that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        refuse_names_twice(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); copy or download it again.") from error
    if (seal := _seal_in(metadata)) is not None and seal != weights_digest(tensors):
        raise InputError(f"{path} is damaged: its tensors are not those that were saved; copy or download it again.")
    refuse_not_finite(tensors, str(path))
    return tensors


def check_seals(folder: Path, others: Collection[str] = ()) -> None:
    """Compare the files of a folder with the seals in its ``config.json``, if its weights are as they were saved.

    What was changed in a JSON file is a warning, because it may have been changed on purpose.

    Args:
        folder: of weights and ``config.json``.
        others: names of further JSON files that must be as they were saved.

    Raises:
        InputError: if weights and ``config.json`` do not belong together.
    """
    path = folder / CONFIG_FILE
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        seal = _seal_in(file.metadata() or {})
    if seal is None or not path.is_file():
        return
    config: dict[str, Any] = read_json(path)
    seals = config.get(SEALS)
    seals = seals if isinstance(seals, dict) else {}
    if seals.get(WEIGHTS_FILE, seal) != seal:
        raise InputError(f"{folder / WEIGHTS_FILE} and {path} are not of the same model; copy the folder again.")
    contents: dict[str, Any] = {CONFIG_FILE: {name: value for name, value in config.items() if name != SEALS}}
    for name in set(others) & seals.keys():
        contents[name] = read_json(folder / name) if (folder / name).is_file() else None
    changed = [name for name, content in contents.items() if _content_digest(content) != seals.get(name)]
    if changed:
        warnings.warn(
            f"{', '.join(changed)} in {folder} was changed after it had been saved; if that was not you, copy the "
            "folder again.",
            stacklevel=2,
        )


def refuse_names_twice(path: Path) -> None:
    """Refuse a safetensors file, of sound header, that holds a name twice: readers differ in which one they take.

    Raises:
        InputError: naming it.
    """
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    json.loads(header, object_pairs_hook=partial(_once, where=path.name))


def first_repeated(names: Iterable[str]) -> str:
    """Return the first of ``names`` that is there more than once."""
    return next(name for name, count in Counter(names).items() if count > 1)


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = first_repeated(name for name, _ in pairs)
        raise InputError(f"{where} holds {name!r} twice, so what it means is unclear; not read.")
    return content


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with infinities or NaN, with which every answer would be one, and complex numbers.

    Raises:
        InputError: naming the tensors.
    """
    if strange := [name for name, tensor in tensors.items() if tensor.is_complex()]:
        raise InputError(f"{where} holds complex numbers ({', '.join(strange[:4])}), as no network here does.")
    if bad := names_of_not_finite(tensors):
        raise InputError(
            f"{where} holds values that are not finite in {len(bad)} tensors ({', '.join(bad[:4])}"
            f"{', …' if len(bad) > 4 else ''}): its training went wrong, or it is damaged; take other weights."
        )


def names_of_not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold infinities or NaN."""
    return [k for k, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t.float()).all()]


def _seal_in(metadata: Mapping[str, str]) -> str | None:
    """Return the seal of a header, also under a name that has suffered."""
    return next((value for value in metadata.values() if len(value) == DIGITS), None)


def _content_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
