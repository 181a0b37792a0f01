"""Devices of the commands that train nothing and run in one process."""

import torch
from accelerate import Accelerator

from tpssl_hf.config.shared import RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.training.accelerator import describe, make_accelerator


def open_device(command: str, output_dir: str, cpu_threads: int | None) -> Accelerator:
    """Build the accelerator of a command that computes features in float32.

    Raises:
        InputError: if several processes were started.
    """
    if cpu_threads:
        torch.set_num_threads(cpu_threads)
    accelerator = make_accelerator(RunConfig(output_dir=output_dir, precision="fp32"))
    if accelerator.num_processes > 1:
        raise InputError(f"{command} needs one process only: start it with `tpssl-hf {command}`.")
    return accelerator


def describe_device(accelerator: Accelerator) -> str:
    """Say in one line where this process computes."""
    return describe(accelerator)
