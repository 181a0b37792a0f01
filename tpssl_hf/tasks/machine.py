"""Precision, memory format and threads of a run, chosen for the CPU it begins on."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tpssl_hf.config.parser import read_config_file
from tpssl_hf.config.shared import DataConfig, ModelConfig, RunConfig, TimeConfig
from tpssl_hf.data.sources import refuse_unknown
from tpssl_hf.models.backbone import kind_of
from tpssl_hf.process import cpu_has_bf16, more_threads, say_threads, threads_in_use
from tpssl_hf.tasks.time_budget import parse_duration
from tpssl_hf.training.accelerator import make_accelerator, mixed_precision
from tpssl_hf.training.machine_choice import (
    MOST_IMAGES,
    ROUNDS,
    SECONDS,
    Setting,
    Workload,
    fastest,
    remembered,
    sensible,
    sentence,
    this_machine,
)
from tpssl_hf.training.run_dir import CHECKPOINTS, CONFIG, RESULTS

MOST_SHARE = 0.1  # of a run, that measuring may cost
LEAST_PASSES = 3  # that a training step costs at least: two views, of which one or both are learned from
OVERRULES = "--precision, --memory_format and --cpu_threads overrule it"


class TrainingArgs(Protocol):
    """What the arguments of all trainings have."""

    @property
    def data(self) -> Any:
        """Images, and where they are cached."""

    @property
    def model(self) -> ModelConfig:
        """Backbone."""

    @property
    def optim(self) -> Any:
        """Optimization."""

    @property
    def time(self) -> TimeConfig:
        """Time for the run."""

    @property
    def run(self) -> RunConfig:
        """How the run is carried out."""


@dataclass(frozen=True)
class Shown:
    """What a training shows its network.

    Attributes:
        size: height and width of the images.
        images: of a step of all processes that are computed together; 0 or less where a budget will choose.
        learns: whether any step is made.
    """

    size: tuple[int, int]
    images: int
    learns: bool = True


def for_this_machine(
    args: TrainingArgs, shown: Shown, accelerator: Accelerator, *, before: Callable[[], None] = lambda: None
) -> tuple[RunConfig, Accelerator]:
    """Put in precision, memory format and threads with which this CPU is fast, where ``precision`` is ``auto``.

    A run that has begun keeps what it has, because they change numbers, if only by rounding. On a GPU, for
    ``torch.compile`` and for a run too short for it nothing is measured. The main process decides for all.

    Args:
        args: of the run.
        shown: what its network is shown.
        accelerator: made for them.
        before: refuses what else is not there, before anything is measured.

    Returns:
        ``args.run`` with what was chosen, and the accelerator for it.

    Raises:
        InputError: if the backbone cannot be made, images or weights are not there, or the budget is no duration.
    """
    asked_of_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    if accelerator.device.type != "cpu" or args.run.precision != "auto" or asked_of_launcher:
        return args.run, accelerator
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        kept = _kept(args.run)
        if kept is None:  # a run that has begun may go on, or be finished, without its images
            refuse_unknown(args.data.dataset)
            kind_of(args.model.init)
            before()
        found = list(kept or _chosen(args, shown, accelerator.num_processes))
    chosen, line = broadcast_object_list(found)
    accelerator.print(line)
    if chosen["cpu_threads"] not in (None, torch.get_num_threads()):
        torch.set_num_threads(chosen["cpu_threads"])
        if threads_in_use() is not None:
            say_threads(chosen["cpu_threads"], "measured to be faster")
    run = replace(args.run, **chosen)
    same = mixed_precision(run.precision) == accelerator.mixed_precision
    return run, accelerator if same else make_accelerator(run)


def _kept(run: RunConfig) -> tuple[dict[str, Any], str] | None:
    """Return what the run in the output folder has, and how to say so; None if there is nothing to go on with."""
    folder = Path(run.output_dir)
    marks = (f"{place}{mark}" for place in ("", "label_seed_*/") for mark in (f"{CHECKPOINTS}/step_*", RESULTS))
    if not (folder / CONFIG).exists() or not any(any(folder.glob(mark)) for mark in marks):
        return None
    former = read_config_file(folder / CONFIG)
    kept = {name: former.get(name, value) for name, value in _values(run).items() if value in ("auto", None)}
    precision, layout = (str(kept.get(name, "auto")) for name in ("precision", "memory_format"))
    return _values(run) | kept, f"{folder} keeps precision {precision}, memory format {layout}"


def _chosen(args: TrainingArgs, shown: Shown, processes: int) -> tuple[dict[str, Any], str]:
    """Return what is measured to be fast, and how to say so; what was asked for where nothing is measured."""
    asked, work = _values(args.run), _workload(args.model, shown, processes)
    threads, more = _threads_to_try(args.run)
    settings = sensible(bf16=cpu_has_bf16(), threads=threads, more_threads=more)
    settings = [setting for setting in settings if asked["memory_format"] in ("auto", setting.memory_format)]
    reason = _not_worth_it(args, shown, work, len(settings))
    if reason:
        line = f"{next(iter(settings))}: the default, not measured ({reason})"
        return asked | {"cpu_threads": _cpu_threads(args.run, threads)}, line
    times, new = _timed(args.data, work, settings, processes)
    best: Setting = fastest(times)
    values = asdict(best) | {"cpu_threads": _cpu_threads(args.run, best.threads)}
    del values["threads"]
    return values, f"{sentence(times)}{'' if new else ' (remembered)'}; {OVERRULES}"


def _threads_to_try(run: RunConfig) -> tuple[int, int | None]:
    """Return the default number of threads, and another one that is worth a try, if there is one.

    Where Python called and no command, torch has taken all cores, and OpenMP's settings can no longer be made; of two
    cores that multiply bfloat16 one is the default then as well, see :func:`tpssl_hf.process.prepare_process`.
    """
    threads = torch.get_num_threads()
    if run.cpu_threads:
        return threads, None
    left_to_torch = threads_in_use() is None and "OMP_NUM_THREADS" not in os.environ
    return (1, 2) if left_to_torch and threads == 2 and cpu_has_bf16() else (threads, more_threads())


def _cpu_threads(run: RunConfig, threads: int) -> int | None:
    """Return what ``cpu_threads`` must be for so many threads; as it was where torch has them."""
    return run.cpu_threads if threads == torch.get_num_threads() else threads


def seconds_per_image(data: DataConfig, model: ModelConfig, side: int, processes: int) -> float:
    """Return how long an image of that many pixels a side takes forward and backward, as fast as this CPU can.

    Raises:
        InputError: if the backbone cannot be made.
    """
    settings = sensible(bf16=cpu_has_bf16(), threads=torch.get_num_threads(), more_threads=None)
    times, _ = _timed(data, _workload(model, Shown((side, side), MOST_IMAGES), processes), settings, processes)
    return min(times.values())


def _timed(
    data: DataConfig, work: Workload, settings: list[Setting], processes: int
) -> tuple[dict[Setting, float], bool]:
    root = Path(data.cache_dir or Path(huggingface_hub.constants.HF_HOME) / "tpssl_hf")
    return remembered(root / "speed", f"{this_machine()}, {processes} processes", work, settings)


def _values(run: RunConfig) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("precision", "memory_format", "cpu_threads")}


def _workload(model: ModelConfig, shown: Shown, processes: int) -> Workload:
    """Return what is timed for a run: its backbone, and its images as far as one pass of a process has them."""
    images = shown.images if shown.images > 0 else MOST_IMAGES
    frozen = model.backbone_batchnorm == "frozen" or (model.backbone_batchnorm == "auto" and model.init != "random")
    return Workload(model.backbone, shown.size, max(2, min(MOST_IMAGES, images // processes)), frozen)


def _not_worth_it(args: TrainingArgs, shown: Shown, work: Workload, settings: int) -> str:
    """Say why nothing is measured, or nothing if it is: it must not cost more than a tenth of the run."""
    if settings < 2:
        return "there is no other"
    if args.model.compile:
        return "torch.compile chooses for itself"
    if not shown.learns:
        return "no steps are made"
    if args.time.budget:
        return "the budget is short" if MOST_SHARE * parse_duration(args.time.budget) < SECONDS else ""
    steps = args.optim.max_steps
    if steps is None:  # epochs of images that are not counted yet
        return ""
    costs, allowed = settings * (1 + ROUNDS) * work.images, MOST_SHARE * steps * LEAST_PASSES * shown.images
    return f"{steps} steps are too few for it" if costs > allowed else ""
