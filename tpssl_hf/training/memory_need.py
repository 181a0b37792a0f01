"""Whether the images of a step fit in a CPU's memory, asked before the system ends a run without a word."""

import copy
import os
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tpssl_hf.models.batchnorm import keep_frozen

MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")  # of Linux; elsewhere nothing is known
GIB = 2**30


def too_large(network: nn.Module, size: tuple[int, int], images: int, accelerator: Accelerator) -> str:
    """Say that a step's activations alone are more than the free memory of this machine, on a CPU.

    Args:
        network: that is trained, on its device.
        size: height and width of the images.
        images: of a step that may go backward, over all processes.
        accelerator: devices, processes, precision.

    Returns:
        What is needed, what is there, and what takes less; nothing where it fits, or the system does not say.
    """
    free = free_bytes()
    if accelerator.device.type != "cpu" or free is None:
        return ""
    here = images * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // accelerator.num_processes
    needed = here * activation_bytes(network, size, accelerator.mixed_precision == "bf16")
    return (
        f"a step of {here} images of {size[0]} x {size[1]} pixels needs {needed / GIB:.1f} GiB of memory and "
        f"{free / GIB:.1f} GiB are free; give a smaller --batch_size or smaller images, or a --budget, which "
        "chooses both (--gradient_checkpointing needs less memory and more time)."
        if needed > free
        else ""
    )


def activation_bytes(network: nn.Module, size: tuple[int, int], bf16: bool = False) -> int:
    """Return the bytes of an image that a forward pass of ``network`` in training keeps for the backward pass.

    Args:
        network: on a CPU; it is left as it is.
        size: height and width of the image.
        bf16: whether it computes in bfloat16.
    """
    learner = copy.deepcopy(network).train().requires_grad_(True)
    keep_frozen(learner)
    kept: dict[int, int] = {}
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*learner.parameters(), *learner.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(2, 3, *size).contiguous(memory_format=torch.channels_last)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        result = learner(images)  # held, so that no two tensors have had one place
    del result
    return sum(kept.values()) // len(images)


def free_bytes() -> int | None:
    """Return how much memory this process may still take, swap included; None where the system does not say."""
    with suppress(OSError, KeyError, ValueError):
        lines = (line.split() for line in MEMORY.read_text(encoding="ascii").splitlines())
        known = {words[0]: 1024 * int(words[1]) for words in lines if len(words) > 1}
        free = known["MemAvailable:"] + known["SwapFree:"]
        with suppress(OSError, ValueError):  # no limit of a container: "max", or no such file
            limit, used = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = (line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
            cached = sum(int(words[1]) for words in stat if words[0] == "inactive_file")  # files that can be let go
            free = min(free, limit - used + cached)
        return max(0, free)
    return None
