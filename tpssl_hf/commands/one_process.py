"""Devices of the commands that train nothing and run in one process."""

from accelerate import Accelerator

from tpssl_hf.config.shared import RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.training.accelerator import make_accelerator


def open_device(command: str, output_dir: str, cpu_threads: int | None) -> Accelerator:
    """Build the accelerator of a command that computes features in float32.

    Raises:
        InputError: if several processes were started.
    """
    accelerator = make_accelerator(RunConfig(output_dir=output_dir, precision="fp32", cpu_threads=cpu_threads))
    if accelerator.num_processes > 1:
        raise InputError(f"{command} needs one process only: start it with `tpssl-hf {command}`.")
    return accelerator
