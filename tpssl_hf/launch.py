"""What every recipe does around its training: devices and precision, pictures, trackers, checkpoints."""

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from tpssl_hf.augment.enlarged import enlarged_share
from tpssl_hf.checkpoint import Checkpoint, load_latest, pack_optimizer, save_checkpoint, unpack_optimizer
from tpssl_hf.config import CARRY_OUT_KEYS, DataConfig, ModelConfig, RunConfig
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.sources import Source
from tpssl_hf.data.store import PictureStore, open_store
from tpssl_hf.engine import LoopSettings, train
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch
from tpssl_hf.models.batchnorm import synchronise_batchnorm
from tpssl_hf.rundir import RESULTS, RunDir
from tpssl_hf.runtime import cpu_has_bf16


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
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(
        cpu=several and not torch.accelerator.is_available(),  # untold, accelerate would start them all as single ones
        mixed_precision=_mixed_precision(config.precision),
        log_with=None if config.log_with == "none" else config.log_with,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def _mixed_precision(asked: str) -> str:
    if asked != "auto":
        return "no" if asked == "fp32" else asked
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
        return "bf16"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if cpu_has_bf16() else "no"


def describe(accelerator: Accelerator, threads: str) -> str:
    """Say in one line where and how this run computes, with the number of processes it really has."""
    device = accelerator.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    precision = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
    count = accelerator.num_processes
    return f"{where}; {count} process{'es' if count > 1 else ''}; {precision}"


def share_of_batch(batch_size: int, processes: int, accumulation_steps: int) -> int:
    """Return how many pictures of each optimizer step one process computes at a time.

    Raises:
        InputError: if ``batch_size`` cannot be divided evenly, or leaves a single picture, which BatchNorm cannot use.
    """
    parts = processes * accumulation_steps
    if batch_size % parts or batch_size // parts < 2:
        near = max(2, round(batch_size / parts)) * parts
        raise InputError(
            f"batch_size {batch_size} over {processes} processes and {accumulation_steps} accumulation steps gives "
            f"{batch_size / parts:g} pictures each; it must be a whole number of at least 2 (try --batch_size {near})."
        )
    return batch_size // parts


def claim_folder(
    stack: ExitStack, settings: Mapping[str, Any], accelerator: Accelerator, say: Callable[..., None]
) -> tuple[RunDir | None, bool]:
    """Take the run's folder until ``stack`` ends, on the main process; say so if it holds the finished run.

    Returns:
        The folder, None on other processes; and whether its run is finished.

    Raises:
        InputError: if it holds another run, or an unfinished one that may not be resumed.
    """
    folder, run = Path(settings["output_dir"]), None
    if accelerator.is_main_process:
        run = stack.enter_context(RunDir(folder, dict(settings), ignore=CARRY_OUT_KEYS))
    finished = run.finished if run else (folder / RESULTS).exists()
    if finished:
        say(f"{folder} holds the finished run of these settings; its weights are in {folder / 'model'}.")
    elif not settings["resume"] and (folder / "checkpoints").exists():
        raise InputError(f"{folder} holds an unfinished run and resume is false; choose another output_dir.")
    return run, finished


def store_of(
    source: Source,
    data: DataConfig,
    accelerator: Accelerator,
    run: RunDir | None,
    *,
    part: str = "",
    shorter_side: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    wide_range: Range | None = None,
) -> PictureStore:
    """Scan and store the pictures once; the main process says what was found and writes ``scan.json``.

    ``part`` says which pictures of the run these are where it has several, and tells their reports apart.
    ``shorter_side`` and ``wide_range`` are those of :func:`tpssl_hf.data.store.open_store`. ``crop_scale`` is the area
    of the crops that training takes at random, as shares of the picture's; None where it takes none.
    """
    with accelerator.local_main_process_first():
        store, report = open_store(
            source,
            image_size=data.image_size,
            cache_scale=data.cache_scale,
            shorter_side=shorter_side,
            wide_range=wide_range,
            cache_budget=int(data.cache_budget * 2**30),
            cache_dir=Path(data.cache_dir) if data.cache_dir else None,
            limit_images=data.limit_images,
            num_workers=data.num_workers,
            progress=accelerator.is_main_process,
            allow_unlabelled=True,
        )
    if crop_scale is not None:
        stored, full = (
            enlarged_share(sizes, data.image_size, crop_scale) for sizes in (store.sizes, store.full_sizes)
        )
        report = replace(report, enlarged_crops=stored, enlarged_crops_at_full_size=full)
    if run:
        report.write(run.path / (f"scan_{part}.json" if part else "scan.json"))
        sys.stdout.write(f"{f'{part} pictures of ' if part else ''}{report.summary()}\n")
    return store


def place(method: nn.Module, model: ModelConfig, accelerator: Accelerator) -> nn.Module:
    """Bring the method to the device in the form it is trained in."""
    if model.sync_batchnorm and accelerator.num_processes > 1:
        method = synchronise_batchnorm(method, accelerator.device)
    method = method.to(accelerator.device).to(memory_format=torch.channels_last)
    if model.compile:
        method.compile()
    return method


class Keeper:
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

    def save(
        self, step: int, extra: Mapping[str, Any], groups: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    ) -> None:
        """Write a checkpoint after ``step`` completed steps, with JSON values ``extra`` and more tensor ``groups``."""
        if self.run is None:
            return
        tensors, optimizer_state = pack_optimizer(self.optimizer)
        state = {**extra, "facts": self.facts, "optimizer": optimizer_state, "log_position": self.run.position()}
        own = {"method": self.method.state_dict(), "optimizer": tensors}
        save_checkpoint(self.folder, step, {**own, **(groups or {})}, state, keep=self.keep)

    def restore(self) -> Checkpoint | None:
        """Load the newest good checkpoint into method and optimizer, and cut the metrics log back to it.

        Raises:
            InputError: if the checkpoint belongs to other data or another start.
        """
        checkpoint = load_latest(self.folder)
        if checkpoint is None:
            if self.run is not None:
                self.run.rewind(0)
            return None
        for name, value in self.facts.items():
            before = checkpoint.state["facts"].get(name)
            if before != value:
                raise InputError(
                    f"{checkpoint.path} was made with {name} {before!r}, now it is {value!r}; "
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
        return checkpoint


def start_tracker(accelerator: Accelerator, config: Mapping[str, Any]) -> Callable[[Mapping[str, Any], int], None]:
    """Start the tracker named in the accelerator, if any, and return how to log to it."""
    if not accelerator.log_with:
        return lambda values, step: None
    accelerator.init_trackers("tpssl_hf", config={k: v for k, v in config.items() if v is not None})
    return lambda values, step: accelerator.log(dict(values), step=step)


def train_behind_bar(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    rate: Callable[[int], float],
    batches: Iterator[Batch],
    loop: LoopSettings,
    *,
    title: str,
    shown: bool,
    start_step: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    """Call :func:`tpssl_hf.engine.train` with a bar that counts pictures; returns the completed steps."""
    parts = loop.accumulation_steps
    bar = tqdm(
        batches,
        desc=title,
        total=loop.max_steps * parts,
        initial=start_step * parts,
        unit="img",
        unit_scale=loop.pictures_per_step // parts,
        disable=not shown,
    )
    taken = iter(bar)  # a name keeps it alive: at its end it would set the bar back
    prepared = accelerator.prepare(method)
    done = train(
        accelerator, prepared, optimizer, rate, taken, loop, start_step=start_step, log=log, save=save, stop=stop
    )
    bar.n = done * parts  # the last batch was taken from it, but not asked for the next
    bar.close()
    return done
