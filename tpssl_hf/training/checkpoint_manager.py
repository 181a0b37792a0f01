"""The run's folder and its checkpoints."""

import gc
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from tpssl_hf.config.parser import carry_out_keys, flat
from tpssl_hf.config.shared import RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.process import give_back_freed_memory
from tpssl_hf.training.checkpoint import (
    Checkpoint,
    load_latest,
    pack_optimizer,
    remove_leftovers,
    remove_old,
    save_checkpoint,
    unpack_optimizer,
)
from tpssl_hf.training.nonfinite_guard import refuse_spoilt
from tpssl_hf.training.run_dir import RESULTS, RunDir

COLLECT_EVERY = 300.0  # seconds at least; it takes half a second, mostly for what was imported
FINGERPRINTS = ("dataset", "unlabeled images")  # facts of a run that mean nothing to people


class TaskArgs(Protocol):
    """Arguments of a task that has an output folder."""

    @property
    def run(self) -> RunConfig:
        """How the run is carried out."""


def open_run_dir(stack: ExitStack, args: TaskArgs, accelerator: Accelerator) -> tuple[RunDir | None, bool]:
    """Take the run's folder until ``stack`` ends, on the main process; say so if it holds the finished run.

    Returns:
        The folder, None on other processes; and whether its run is finished.

    Raises:
        InputError: if it holds another run, or an unfinished one that may not be resumed.
    """
    folder, run_dir = Path(args.run.output_dir), None
    if accelerator.is_main_process:
        run_dir = stack.enter_context(locked_run_dir(args))
    finished = run_dir.finished if run_dir else (folder / RESULTS).exists()
    if finished:
        accelerator.print(f"{folder} holds the finished run of these settings; its weights are in {folder / 'model'}.")
    elif not args.run.resume and (folder / "checkpoints").exists():
        raise InputError(f"{folder} holds an unfinished run and resume is false; choose another output_dir.")
    return run_dir, finished


def locked_run_dir(args: TaskArgs) -> RunDir:
    """Return the run's folder, to be entered on the main process."""
    assert is_dataclass(args)
    return RunDir(Path(args.run.output_dir), flat(args), ignore=carry_out_keys(type(args)))


class CheckpointManager:
    """Writes and reads the checkpoints of one run; only the main process writes."""

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunDir | None,
        folder: Path,
        method: nn.Module,
        optimizer: Optimizer,
        facts: Mapping[str, Any],
        keep: int,
    ) -> None:
        self.accelerator, self.run, self.folder = accelerator, run, folder
        self.method, self.optimizer = method, optimizer
        self.facts, self.keep = dict(facts), keep
        self._collected = time.monotonic()

    def save(
        self, step: int, extra: Mapping[str, Any], groups: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    ) -> None:
        """Write a checkpoint after ``step`` completed steps, with JSON values ``extra`` and more tensor ``groups``.

        Raises:
            InputError: if weights, buffers or optimizer are not finite, or the disk refuses; older ones are intact.
        """
        if self.run is None:
            return
        tensors, optimizer_state = pack_optimizer(self.optimizer)
        state = {**extra, "facts": self.facts, "optimizer": optimizer_state, "log_position": self.run.position()}
        own = {"method": self.method.state_dict(), "optimizer": tensors}
        refuse_spoilt(own, step)
        save_checkpoint(self.folder, step, {**own, **(groups or {})}, state, keep=self.keep)
        # Once in a while, so that a long run stays as large as it is. Python looks at old objects for cycles only when
        # they are a quarter more, which after all imports is hardly ever; safetensors leaves some of each tensor.
        if time.monotonic() - self._collected > COLLECT_EVERY:
            gc.collect()
            self._collected = time.monotonic()
        give_back_freed_memory()

    def restore(self) -> Checkpoint | None:
        """Load the newest good checkpoint into method and optimizer, and cut the metrics log back to it.

        Raises:
            InputError: if the checkpoint belongs to other data or another start.
        """
        if self.run is not None:
            remove_leftovers(self.folder)
        checkpoint = load_latest(self.folder)
        if checkpoint is None:
            if self.run is not None:
                self.run.rewind(0)
            return None
        for name, value in self.facts.items():
            before = checkpoint.state["facts"].get(name)
            if before != value:
                changed = f"{name} {before!r}, now it is {value!r}"
                if name in FINGERPRINTS:
                    changed = f"other images: files of its {name} came, went or changed since"
                raise InputError(
                    f"{checkpoint.path} was made with {changed}; "
                    "use another --output_dir, or give back what the run was started with."
                )
        self.method.load_state_dict(checkpoint.tensors["method"])
        unpack_optimizer(self.optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
        for parameter, state in self.optimizer.state.items():  # as laid out in memory as the parameter, for speed
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        if self.run is not None:
            self.run.rewind(checkpoint.state["log_position"])
            remove_old(self.folder, checkpoint.step, self.keep)  # a kill may have come between
        return checkpoint
