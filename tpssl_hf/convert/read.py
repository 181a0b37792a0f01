"""Read a file of weights from elsewhere, without ever running what is in it."""

import hashlib
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tpssl_hf.errors import InputError
from tpssl_hf.models.sealed import first_repeated, refuse_names_twice

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
# What a training script keeps beside the weights; its tensors may look like weights.
NOT_WEIGHTS = frozenset(
    ("optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict", "optim", "scheduler")
    + ("lr_scheduler", "lr_schedulers", "scaler", "amp", "amp_scaler", "callbacks", "loops", "message_hub")
)
# Plain records that checkpoints keep beside the weights. Their names stand for a class of ours that forgets whatever
# it is given, so reading past them neither imports nor runs anything of the file's or of theirs.
RECORDS = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
MOST_NAMES, LONGEST_NAME, DEEPEST, MOST_ENTRIES = 100_000, 500, 8, 1_000_000
LONGEST_HEADER = 100_000_000  # bytes of JSON; safetensors' own bound


class _Forgotten:
    """Stands for a record beside the weights."""

    def __new__(cls, *_: object, **__: object) -> "_Forgotten":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a file.

    Attributes:
        name: the file's name, without its folder.
        sha256: its digest.
        tensors: full name (``state_dict.module.conv1.weight``) to tensor, in the file's order.
        keys: names of the outermost entries, tensors or not; they tell families apart.
        ordered: whether the order is that of the network; a .safetensors file forgets it.
    """

    name: str
    sha256: str
    tensors: dict[str, Tensor]
    keys: frozenset[str]
    ordered: bool


def read_weights(path: Path) -> WeightFile:
    """Read every tensor of a PyTorch or safetensors file; what the file is shows in its content, not in its suffix.

    Raises:
        InputError: for a file that is missing, no file of weights, damaged, oversized, or readable by unpickling only.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"weights {path} {what}; give a file that ends in {', '.join(SUFFIXES)}.")
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            head = stream.read(64)
            if head.startswith(b"PK\x03\x04"):
                tree, ordered = _read_archive(path), True
            elif head.startswith(b"\x80"):
                tree, ordered = _load_torch(path), True
            elif path.suffix == ".safetensors" or head[8:9] == b"{":
                tree, ordered = _read_safetensors(path, stream), False
            else:
                raise InputError(f"weights {path.name} {_what_else(head)}; give a file of PyTorch or safetensors.")
    except OSError as error:
        raise InputError(f"weights {path} cannot be read ({error.strerror or error}).") from error
    if not isinstance(tree, dict):
        raise InputError(
            f"weights {path.name} holds a {type(tree).__name__} instead of named tensors; save the network's "
            "`state_dict()` and give that."
        )
    return WeightFile(path.name, digest, _tensors(tree, path.name), frozenset(filter(_is_name, tree)), ordered)


def _is_name(key: object) -> bool:
    return isinstance(key, str)


def _what_else(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the weights themselves (`git lfs pull` fetches them)"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not weights; the download went wrong"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed; unpack it first"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes it"
    return "is empty" if not head else "is not a file of weights"


def _read_archive(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"weights {path.name} is damaged ({error}); copy or download it again.") from error
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise InputError(
            f"weights {path.name} holds {first_repeated(names)!r} twice, so what it means is unclear; not read."
        )
    if any("/code/" in name for name in names):
        raise InputError(
            f"weights {path.name} is a TorchScript program; save the `state_dict()` of `torch.jit.load(...)` instead."
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise InputError(
            f"weights {path.name} is a zip archive that torch did not write; unpack it, give the weights."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"weights {path.name} is compressed inside, which torch never does and which can hide any size; save it "
            "again with `torch.save`."
        )
    return _load_torch(path)


def _load_torch(path: Path) -> Any:
    stand_ins: list[Any] = [(_Forgotten, name) for name in RECORDS]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)|(?:unrecognized function|but got) (.{1,80})", str(error))
        what = f"holds {next(filter(None, wanted.groups()))}" if wanted else "is damaged, or holds more than tensors"
        raise InputError(
            f"weights {path.name} {what}, which only unpickling could read, and that would run any code the file "
            "brings, so it was not read; whoever trusts the file can save its tensors alone, "
            f"`torch.save(torch.load({path.name!r}, map_location='cpu', weights_only=False)['state_dict'], "
            "'weights.pth')` (or 'model', whichever entry holds them), and convert that."
        ) from error
    except Exception as error:  # damaged or hostile bytes end in any exception that torch's reader can raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(f"weights {path.name} is damaged ({reason}); copy or download it again.") from error


def _read_safetensors(path: Path, stream: BinaryIO) -> dict[str, Tensor]:
    size = path.stat().st_size
    stream.seek(0)
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise InputError(
            f"weights {path.name} is not a safetensors file: its header would be {length:,} bytes of {size:,}; copy "
            "or download it again."
        )
    try:
        refuse_names_twice(path)
        return load_file(path)
    except InputError as error:
        raise InputError(f"weights {error}") from error
    except (ValueError, RecursionError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"weights {path.name} is damaged ({reason}); copy or download it again.") from error


def _tensors(tree: dict[Any, Any], file: str) -> dict[str, Tensor]:
    """Return the tensors of nested tables by full name, without what belongs to the training."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, dict[Any, Any], int]] = [("", tree, 0)]
    entries = 0
    while waiting:
        before, table, depth = waiting.pop()
        inner: list[tuple[str, dict[Any, Any], int]] = []
        for key, value in dict.items(table):  # a file may give a table an attribute of the same name
            entries += 1
            if entries > MOST_ENTRIES or len(found) > MOST_NAMES or depth > DEEPEST:
                raise InputError(f"weights {file} holds more entries than any network has; it was not read.")
            if not isinstance(key, str) or (not before and key in NOT_WEIGHTS):
                continue
            name = before + key
            if isinstance(value, dict):
                inner.append((f"{name}.", value, depth + 1))
            elif isinstance(value, Tensor) and _is_dense(value):
                if len(name) > LONGEST_NAME:
                    raise InputError(f"weights {file} has a name of {len(name):,} letters; it was not read.")
                if name in found:
                    raise InputError(f"weights {file} holds {name!r} twice, so what it means is unclear; not read.")
                found[name] = value.detach()
        waiting += reversed(inner)
    if not found:
        raise InputError(f"weights {file} holds no named tensors; its entries are {_listed(tree)}.")
    return found


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _listed(tree: dict[Any, Any]) -> str:
    names = [repr(key)[:40] for key in list(dict.keys(tree))[:6]]
    return (", ".join(names) + (", …" if len(tree) > 6 else "")) or "none"
