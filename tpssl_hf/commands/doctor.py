"""What a bug report needs: versions, device, bfloat16, threads, free disk, cache and login.

tpssl-hf doctor
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, get_token, is_offline_mode

from tpssl_hf.config.parser import parse_args
from tpssl_hf.process import cpu_has_bf16, threads_in_use
from tpssl_hf.training.provenance import PACKAGES

GIB = 2**30


@dataclass(frozen=True)
class DoctorArgs:
    """The doctor asks nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit code."""
    parse_args(DoctorArgs, sys.argv[1:] if arguments is None else arguments, description=__doc__ or "")
    sys.stdout.write("\n".join(f"{name:14} {value}" for name, value in report()) + "\n")
    return 0


def report() -> list[tuple[str, str]]:
    """Return what is found, name and value; nothing in it is secret or names a private path but the cache's."""
    return [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((name, _version(name)) for name in (*PACKAGES, "torchvision")),
        *_devices(),
        ("threads", threads_in_use() or f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        ("image cache", _space(Path(constants.HF_HOME) / "tpssl_hf" / "images")),
        ("Hub cache", _space(Path(constants.HF_HUB_CACHE))),
        ("output", _space(Path.cwd())),
        ("Hub", "offline mode" if is_offline_mode() else "online mode"),
        ("login", "a token is stored" if get_token() else "none; `hf auth login` makes one, needed only to publish"),
    ]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    cpu = f"bfloat16 {'multiplied natively' if cpu_has_bf16() else 'not native: float32 is used'}"
    found = [("CPU", f"{platform.machine()}, {os.cpu_count()} cores, {cpu}")]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        found.append((f"GPU {number}", f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, {bf16}"))
    return found if len(found) > 1 else [*found, ("GPU", "none that torch can use")]


def _space(folder: Path) -> str:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return f"{folder}, {shutil.disk_usage(existing).free / GIB:.1f} GiB free"
