"""What a bug report needs: versions, device, bfloat16, threads, free disk, cache and login.

tpssl-hf doctor
tpssl-hf doctor --benchmark --backbone resnet18 --image_size 64     # how this CPU trains that network fastest
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

from tpssl_hf.config.parser import key, parse_args
from tpssl_hf.process import cpu_has_bf16, more_threads, threads_in_use
from tpssl_hf.training.machine_choice import Workload, measure, sensible, table
from tpssl_hf.training.provenance import PACKAGES

GIB = 2**30


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed."""

    benchmark: bool = key(
        False, "Time what training chooses from on this CPU: precision, memory format and threads, for some seconds."
    )
    backbone: str = key("resnet18", "The timm model to time, with random weights and frozen BatchNorm.")
    image_size: int = key(64, "Side of its images, in pixels.")


@dataclass(frozen=True)
class DoctorArgs:
    """Everything the doctor is told."""

    timed: BenchmarkConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit code."""
    args = parse_args(DoctorArgs, sys.argv[1:] if arguments is None else arguments, description=__doc__ or "")
    sys.stdout.write("\n".join(f"{name:14} {value}" for name, value in report()) + "\n")
    if args.timed.benchmark:
        sys.stdout.write(benchmark(args.timed))
    return 0


def benchmark(config: BenchmarkConfig) -> str:
    """Time a network on this CPU and return the table of what a run with ``precision`` auto chooses from.

    Raises:
        InputError: for an unknown network, and images that it does not take.
    """
    work = Workload(config.backbone, (config.image_size, config.image_size), statistics_frozen=True)
    settings = sensible(bf16=cpu_has_bf16(), threads=torch.get_num_threads(), more_threads=more_threads())
    times = measure(work, settings)
    title = f"{config.backbone} at {config.image_size} px, forward and backward, on this CPU"
    gpu = "\nA run on the GPU is not timed: it takes bfloat16 and channels_last." if torch.cuda.is_available() else ""
    return f"\n{title}\n{table(times)}{gpu}\n"


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
