"""Devices, precision, processes and trackers of a run."""

import importlib.metadata
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from tpssl_hf.config.shared import ModelConfig, RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch
from tpssl_hf.models.batchnorm import synchronize_batchnorm
from tpssl_hf.process import cpu_has_bf16, no_more_threads, threads_in_use

Network = TypeVar("Network", bound=nn.Module)
MemoryFormat = Literal["auto", "channels_last", "contiguous"]


def make_accelerator(config: RunConfig) -> Accelerator:
    """Build the accelerator for this run's precision and tracker.

    Raises:
        InputError: if the tracker asked for is not installed.
    """
    if config.log_with != "none":
        try:
            importlib.metadata.version(config.log_with)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(
                f"log_with {config.log_with} needs the package {config.log_with}: `uv pip install {config.log_with}`, "
                "or use --log_with none."
            ) from error
    for message in (
        "`broadcast_buffers` is deprecated",  # accelerate has only this name for it
        "Grad strides do not match bucket view strides",  # 1 x 1 convolutions: two descriptions of one layout
    ):
        warnings.filterwarnings("ignore", message)
    if config.cpu_threads:
        no_more_threads()
    if config.cpu_threads and threads_in_use() is None:  # torch was there first, so OpenMP's settings are read already
        torch.set_num_threads(config.cpu_threads)
    precision = mixed_precision(config.precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # that of an earlier run in this process, which is over
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        cpu=several and not torch.accelerator.is_available(),  # untold, accelerate would start them all as single ones
        mixed_precision=precision,
        log_with=None if config.log_with == "none" else config.log_with,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def mixed_precision(asked: str) -> str:
    """Return ``no`` or ``bf16``, which ``auto`` means where the launcher asks for it or the hardware multiplies it."""
    if asked != "auto":
        return "no" if asked == "fp32" else asked
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
        return "bf16"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if cpu_has_bf16() else "no"


def describe(accelerator: Accelerator) -> str:
    """Say in one line where and how this run computes, with the number of processes it really has."""
    device = accelerator.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else threads_in_use() or _threads_of_torch()
    precision = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
    count = accelerator.num_processes
    return f"{where}; {count} process{'es' if count > 1 else ''}; {precision}"


def _threads_of_torch() -> str:
    return f"CPU: {torch.get_num_threads()} of {os.cpu_count()} cores (as this process was set up)"


def per_device_batch_size(batch_size: int, processes: int, accumulation_steps: int) -> int:
    """Return how many images of each optimizer step one process computes at a time.

    Raises:
        InputError: if ``batch_size`` cannot be divided evenly, or leaves a single image, which BatchNorm cannot use.
    """
    parts = processes * accumulation_steps
    if batch_size % parts or batch_size // parts < 2:
        near = max(2, round(batch_size / parts)) * parts
        raise InputError(
            f"batch_size {batch_size} over {processes} processes and {accumulation_steps} accumulation steps gives "
            f"{batch_size / parts:g} images each; it must be a whole number of at least 2 (try --batch_size {near})."
        )
    return batch_size // parts


def prepare_method(
    method: Network, model: ModelConfig, accelerator: Accelerator, memory_format: MemoryFormat
) -> Network:
    """Bring the method to the device in the form it is trained in, and images that it is given to the same layout."""
    if model.sync_batchnorm and accelerator.num_processes > 1:
        method = synchronize_batchnorm(method, accelerator.device)
    contiguous = memory_format == "contiguous"
    if contiguous:
        method.register_forward_pre_hook(_contiguous)  # views are channels_last, and convolutions follow their input
    layout = torch.contiguous_format if contiguous else torch.channels_last
    method = method.to(accelerator.device).to(memory_format=layout)
    if model.compile:
        method.compile()
    return method


def _contiguous(_: nn.Module, inputs: tuple[Batch, float]) -> tuple[Batch, float]:
    batch, progress = inputs
    made = {stream: {name: tensor.contiguous() for name, tensor in views.items()} for stream, views in batch.items()}
    return made, progress


def start_tracker(accelerator: Accelerator, config: Mapping[str, Any]) -> Callable[[Mapping[str, Any], int], None]:
    """Start the tracker named in the accelerator, if any, and return how to log to it."""
    if not accelerator.log_with:
        return lambda values, step: None
    accelerator.init_trackers("tpssl_hf", config={k: v for k, v in config.items() if v is not None})
    return lambda values, step: accelerator.log(dict(values), step=step)
