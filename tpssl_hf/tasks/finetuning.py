"""Semi-supervised finetuning, the same for classification and segmentation (paper §III-A, Eq. 4)."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from tpssl_hf.config.parser import flat
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method, Views
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.label_seeds import run_each_label_seed
from tpssl_hf.tasks.segment.config import SegmentArgs
from tpssl_hf.training.accelerator import describe, start_tracker
from tpssl_hf.training.checkpoint_manager import CheckpointManager, open_run_dir
from tpssl_hf.training.loop import (
    LoopSettings,
    Step,
    Stream,
    agreed,
    batches_on_device,
    training_steps,
    with_progress_bar,
)
from tpssl_hf.training.memory_need import too_large
from tpssl_hf.training.provenance import PAPER
from tpssl_hf.training.run_dir import RunDir, StopSignals

ArgsType = TypeVar("ArgsType", ClassifyArgs, SegmentArgs)


@dataclass(frozen=True, kw_only=True)
class FinetuningRun(ABC, Generic[ArgsType]):
    """Everything one run is made of, set up before its first step; a task adds its data, scores and images.

    Attributes:
        args: of the run.
        accelerator: devices, processes, precision.
        dataset_name: name of the images, without a private path.
        origin: where the weights of the backbone come from.
        statistics_frozen: whether the backbone's BatchNorm keeps its running statistics.
        streams: stream name -> the images of this process.
        transforms: stream name -> what makes views of them; the names decide which streams are read.
        method: the learner, on its device.
        optimizer: over its weights.
        epoch_steps: steps of an epoch, None where epochs are not counted.
        max_steps: steps of the run.
        learning_rate: of each step.
    """

    args: ArgsType
    accelerator: Accelerator
    dataset_name: str
    origin: WeightsSource
    statistics_frozen: bool
    streams: Mapping[str, Stream]
    transforms: Views
    method: Method
    optimizer: torch.optim.Optimizer
    epoch_steps: int | None = None
    max_steps: int
    learning_rate: Callable[[int], float]

    @property
    def subject(self) -> str:
        """What is trained on what, for people."""
        return f"{self.args.task.method}, {self.args.model.backbone} on {self.dataset_name}"

    @property
    def images_per_step(self) -> int:
        """Labeled and unlabeled images of one step of all processes."""
        ratio = self.args.optim.unlabeled_ratio if "unlabeled" in self.transforms else 0
        return self.args.optim.batch_size * (1 + ratio)

    @property
    @abstractmethod
    def shown_size(self) -> tuple[int, int]:
        """Height and width of the images that are learned from."""

    def too_large(self) -> str:
        """Say that a step does not fit in memory; nothing where it fits, or activations are recomputed."""
        if self.args.model.gradient_checkpointing or self.max_steps == 0:
            return ""
        return too_large(self.method.deployed, self.shown_size, self.images_per_step, self.accelerator)

    def first_images(self, stream: str, count: int = 8) -> ImageBatch:
        """Return the first images of a stream, to be shown."""
        batches = self.streams[stream].batches(0)
        images: ImageBatch = next(batches)[:count].to(self.accelerator.device)
        batches.close()
        return images

    def facts(self, seconds: float) -> dict[str, Any]:
        """Return what ``results.json`` says of every run, beside its data and scores."""
        return {
            "method": self.args.task.method,
            "backbone": self.args.model.backbone,
            "init": self.origin.as_dict(),
            "backbone_statistics_frozen": self.statistics_frozen,
            "seed": self.args.run.seed,
            "steps": self.max_steps,
            "seconds": seconds,
            "machine": describe(self.accelerator),
            "config": flat(self.args),
        }

    @abstractmethod
    def data_facts(self) -> dict[str, str]:
        """Return what must be the same of the data when the run is resumed."""

    @abstractmethod
    def announce(self) -> list[str]:
        """Return what is said before the first step, a line each."""

    @abstractmethod
    def draw_first_views(self, path: Path) -> None:
        """Write the image of some images and their views."""

    def observe(self, step: int) -> dict[str, Any]:
        """Return what the log has beside losses after ``step`` completed steps; on the main process only."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint must keep beside weights and optimizer, as tensors and JSON values."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Give back what :meth:`state` returned."""


def provenance(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what travels with the weights, of what ``results.json`` says."""
    kept = ("recipe", "method", "dataset", "labels", "init", "seed", "steps", "metrics", "versions")
    return {**{name: results[name] for name in kept}, "paper": PAPER}


RunType = TypeVar("RunType", bound=FinetuningRun[Any])


@dataclass(frozen=True)
class FinetuningTask(Generic[ArgsType, RunType]):
    """What a task gives the spine.

    Attributes:
        prepare: (arguments, accelerator, the run's folder on the main process) -> everything the run is made of.
        save_results: (run, its folder, its seconds) -> summary for people; scores the deployed network once and
            writes images, model/ and results.json.
        metric: the score that is averaged over label seeds.
        after_training: (run, its folder on the main process, signals) -> seconds of what all processes do between
            the last step and the results; None where a signal stopped it.
    """

    prepare: Callable[[ArgsType, Accelerator, RunDir | None], RunType]
    save_results: Callable[[RunType, RunDir, float], str]
    metric: str
    after_training: Callable[[RunType, RunDir | None, StopSignals], float | None] = lambda run, run_dir, signals: 0.0


def finetune(args: ArgsType, accelerator: Accelerator, task: FinetuningTask[ArgsType, RunType]) -> int:
    """Make, or finish, one run, or one for each label seed; returns the exit code."""
    with StopSignals() as signals:
        accelerator.print(describe(accelerator))
        return run_each_label_seed(
            args, accelerator, lambda one: run_once(one, accelerator, task, signals), task.metric
        )


def run_once(
    args: ArgsType, accelerator: Accelerator, task: FinetuningTask[ArgsType, RunType], signals: StopSignals
) -> int:
    """Make, or finish, the run of one label seed; returns the exit code."""
    with ExitStack() as stack:
        run_dir, finished = open_run_dir(stack, args, accelerator)
        if finished:
            return 0
        run = task.prepare(args, accelerator, run_dir)
        if sentence := run.too_large():
            raise InputError(sentence)
        accelerator.print("\n".join(run.announce()))
        done, seconds = train(run, run_dir, signals)
        if done < run.max_steps:
            accelerator.print(f"stopped after step {done} of {run.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        more = task.after_training(run, run_dir, signals)
        if more is None:
            accelerator.print("stopped after training; the same command continues with what comes after it")
            return signals.exit_code or 143
        if run_dir:
            accelerator.print(task.save_results(run, run_dir, seconds + more))
    return 0


def train(run: FinetuningRun[Any], run_dir: RunDir | None, signals: StopSignals) -> tuple[int, float]:
    """Train from the start or from the newest checkpoint; returns the completed steps and their seconds."""
    accelerator, options, began = run.accelerator, run.args.run, time.perf_counter()
    checkpoints = CheckpointManager(
        accelerator,
        run_dir,
        Path(options.output_dir) / "checkpoints",
        run.method,
        run.optimizer,
        {**run.data_facts(), "origin": run.origin.as_dict()},
        options.keep_checkpoints,
    )
    done, seconds_before = begin(run, run_dir, checkpoints)
    seconds, track = seconds_before, start_tracker(accelerator, flat(run.args))
    for step in steps_of(run, done, shown=run_dir is not None):
        done = step.done
        if step.losses is not None:
            entries = {**step.losses, **(run.observe(done) if run_dir else {})}
            if run_dir:
                epoch = {"epoch": done / run.epoch_steps} if run.epoch_steps else {}
                run_dir.append({"step": done, **epoch, **entries})
            track({name: value for name, value in entries.items() if isinstance(value, float)}, done)
        stopping = step.may_stop and agreed(accelerator, bool(signals.requested))
        if stopping or step.save_due:
            seconds = seconds_before + time.perf_counter() - began
            tensors, values = run.state()
            checkpoints.save(done, {"seconds": seconds, "task": values}, {"task": tensors})
        if stopping:
            break
    return done, seconds


def begin(run: FinetuningRun[Any], run_dir: RunDir | None, checkpoints: CheckpointManager) -> tuple[int, float]:
    """Restore the newest checkpoint, or draw the views; returns the completed steps and their seconds."""
    checkpoint, say = checkpoints.restore(), run.accelerator.print
    if checkpoint:
        run.load_state(checkpoint.tensors.get("task", {}), checkpoint.state["task"])
        say(f"resuming after step {checkpoint.step} of {run.max_steps}")
        return checkpoint.step, checkpoint.state["seconds"]
    if run_dir:
        run.draw_first_views(run_dir.path / "augmentations.png")
        say(f"{run_dir.path / 'augmentations.png'} shows the views: look at it before you wait")
    return 0, 0.0


def steps_of(run: FinetuningRun[Any], start_step: int, *, shown: bool, title: str = "") -> Iterable[Step]:
    """Return the steps from ``start_step`` on, with a progress bar if ``shown``, and what its title ends with."""
    options, accelerator = run.args.run, run.accelerator
    loop = LoopSettings(
        run.max_steps,
        run.images_per_step,
        log_every=options.log_every,
        save_every=options.save_every,
        seed=options.seed,
        max_gradient_norm=run.args.optim.max_gradient_norm or None,
    )
    steps = training_steps(
        accelerator,
        accelerator.prepare(run.method),
        run.optimizer,
        run.learning_rate,
        batches_on_device(run.streams, run.transforms, start_step, accelerator.device),
        loop,
        start_step=start_step,
    )
    title = f"{run.args.task.method} on {run.dataset_name} {title}".rstrip()
    return with_progress_bar(steps, loop, title=title, shown=shown, start_step=start_step)
