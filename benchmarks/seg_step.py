"""How much of a segmentation step is data and augmentation, and how much memory does each learner take?

    python benchmarks/seg_step.py --rounds 3 --steps 1

Rounds alternate between the learners in one process, each put together as the recipe does it, from random weights,
with its own augmentation and share of unlabeled images. Shares are of the same round: of CPU time (of the process
with its prefetching threads), which other programs disturb less than wall time; on a GPU of wall time, waiting for it
before the clock is read. Data and augmentation are measured on as many batches without the network; what is mixed
inside the step, by predictions, is measured there, on the CPU only. Images and masks are made on the spot; --dataset
takes a folder as the recipe does. Images per second count labeled and unlabeled ones.

Memory is the growth of the resident set in a process of its own, from before images are opened and the network is
built to its peak in the first two steps: weights, optimizer, activations, views and what libraries keep for
themselves, but not the imported modules. On a GPU it is the most that torch has allocated there. --device cuda has not
been tried yet.
"""

import sys

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import argparse
import math
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import machine, timed
from PIL import Image

from tpssl_hf.augment import mixing
from tpssl_hf.config.shared import RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.segment.config import METHODS, parse_segment
from tpssl_hf.tasks.segment.run import SegmentRun, prepare
from tpssl_hf.training.accelerator import make_accelerator
from tpssl_hf.training.loop import LoopSettings, batches_on_device, training_steps

HEIGHT, WIDTH = 120, 160  # of the images made and of the crops
COUNT, CLASSES, LABELS = 64, 6, 16
TARGET = 15  # per cent of a step's CPU time that data, augmentation and mixing may take
HEADER = (
    *("learner", "labeled + unlabeled per step", "images/s", "CPU-ms per image"),
    *(
        "data and augmentation, share of the step (min..max)",
        "mixing inside the step",
        "all three",
        "peak memory, MiB",
    ),
)


def write_scenes(folder: Path) -> None:
    """Write ``images`` and ``masks``: smooth colors under noise, with a box of every class."""
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(COUNT):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        for label in range(1, CLASSES):
            top, left = generator.integers(0, HEIGHT - 40), generator.integers(0, WIDTH - 50)
            pixels[top : top + 40, left : left + 50] = generator.integers(0, 256, 3)
            mask[top : top + 40, left : left + 50] = label
        pixels += generator.integers(-16, 17, (HEIGHT, WIDTH, 1), dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def time_mixing(learner: str) -> list[float]:
    """Let the learner's module add up the CPU seconds it spends in ``augment/mixing.py``; returns where they stand."""
    module, spent = sys.modules[f"tpssl_hf.methods.segment.{learner}"], [0.0]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            result = function(*arguments, **options)
            spent[0] += time.process_time() - began
            return result

        return call

    for name, value in list(vars(module).items()):
        if callable(value) and value.__module__ == mixing.__name__:
            setattr(module, name, watched(value))
    return spent


def job_of(learner: str, arguments: argparse.Namespace) -> SegmentRun:
    """Put the learner together as the recipe does; only its batch size and the crop are not its own."""
    given = {"method": learner, "dataset": arguments.dataset, "cache_dir": arguments.cache_dir, "labels": LABELS}
    given |= {"shorter_side": HEIGHT, "crop_height": HEIGHT, "crop_width": WIDTH, "test_split": "none"}
    given |= {"backbone": arguments.backbone, "output_stride": 16, "batch_size": arguments.batch_size}
    return prepare(parse_segment(given), make_accelerator(RunConfig()), None)


class Steps:
    """One learner's steps, and its batches alone."""

    def __init__(self, learner: str, arguments: argparse.Namespace) -> None:
        self.job, self.mixing, self.done = job_of(learner, arguments), time_mixing(learner), 0
        self.device = self.job.accelerator.device
        if self.device.type != arguments.device:
            raise InputError(f"this would compute on {self.device.type}; --device {arguments.device} is not there.")
        self.prepared = self.job.accelerator.prepare(self.job.method)
        self.batches, self.alone = (
            batches_on_device(self.job.streams, self.job.transforms, 0, self.device) for _ in range(2)
        )

    def whole(self, steps: int) -> None:
        """Make so many steps, at the end of a run as far as schedules go, and wait for them."""
        job, loss = self.job, math.nan
        loop = LoopSettings(self.done + steps, job.images_per_step, log_every=10**9, save_every=10**9)
        for step in training_steps(
            job.accelerator, self.prepared, job.optimizer, job.learning_rate, self.batches, loop, start_step=self.done
        ):
            self.done, loss = step.done, step.losses["loss"] if step.losses else loss
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")

    def data(self, steps: int) -> None:
        """Make the batches of so many steps only."""
        for _ in islice(self.alone, steps):
            pass
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, steps: int) -> tuple[float, ...]:
        """Return the CPU and wall seconds of so many steps, those of their batches, and the CPU seconds of mixing."""
        self.mixing[0] = 0.0
        whole = timed(lambda: self.whole(steps))
        mixed = self.mixing[0]
        return *whole, *timed(lambda: self.data(steps)), mixed


def resident(kind: str) -> float:
    """Return ``VmRSS`` or ``VmHWM`` of this process in MiB."""
    found = re.search(rf"{kind}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**10 if found else math.nan


def memory(learner: str, arguments: argparse.Namespace) -> float:
    """Return the MiB that the learner takes in this process, which has done nothing else."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest value from here on
    steps = Steps(learner, arguments)
    with closing(steps.batches):
        steps.whole(2)
    if steps.device.type == "cuda":
        return torch.cuda.max_memory_allocated(steps.device) / 2**20
    return resident("VmHWM") - before


def memory_of(learner: str, arguments: argparse.Namespace) -> float:
    """Return the same of a process of its own."""
    given = {name: value for name, value in vars(arguments).items() if name != "only_memory_of" and value is not None}
    command = [sys.executable, __file__, f"--only_memory_of={learner}", *(f"--{k}={v}" for k, v in given.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"measuring the memory of {learner} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def compare(arguments: argparse.Namespace) -> None:
    """Measure all learners and print the table."""
    sides = {learner: Steps(learner, arguments) for learner in METHODS.specs}
    precision = next(iter(sides.values())).job.accelerator.mixed_precision.replace("no", "fp32")
    print(
        f"{machine()}; {arguments.device}, {precision}; {arguments.backbone}, output stride 16\n\n{WIDTH} x {HEIGHT} "
        f"px, {arguments.batch_size} labeled images per step; {arguments.rounds} rounds of {arguments.steps} steps"
        f"\n\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}",
        flush=True,
    )
    for side in sides.values():
        side.measure(1)
    kept = np.array([[s.measure(arguments.steps) for s in sides.values()] for _ in range(arguments.rounds)])
    missed = []
    for row, (learner, side) in enumerate(sides.items()):
        side.batches.close()
        side.alone.close()
        cpu, wall, data_cpu, data_wall, mixed = kept[:, row].T
        count, on_gpu = side.job.images_per_step * arguments.steps, side.device.type == "cuda"
        data = 100 * (data_wall / wall if on_gpu else data_cpu / cpu)
        both = data if on_gpu else data + 100 * mixed / cpu
        missed += [learner] if np.median(both) > TARGET else []
        labeled = arguments.batch_size
        print(
            f"| {learner} | {labeled} + {side.job.images_per_step - labeled} | {count / np.median(wall):.1f} "
            f"| {1e3 * np.median(cpu) / count:.1f} | {np.median(data):.1f} ({data.min():.1f}..{data.max():.1f}) % "
            f"| {'not measured' if on_gpu else f'{100 * np.median(mixed / cpu):.1f} %'} | {np.median(both):.1f} % "
            f"| {memory_of(learner, arguments):.0f} |",
            flush=True,
        )
    print(f"\nTarget: at most {TARGET} % for all three. {'Missed by ' + ', '.join(missed) if missed else 'Met'}.")


def main() -> int:
    """Compare, or measure the memory of one learner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder of images and masks; made on the spot when not given")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch_size", type=int, default=4, help="labeled images per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--threads", type=int, help="CPU threads; chosen for the machine when not given")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cache_dir", help=argparse.SUPPRESS)
    parser.add_argument("--only_memory_of", choices=tuple(METHODS.specs), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if arguments.only_memory_of:
        print(memory(arguments.only_memory_of, arguments))
        return 0
    with TemporaryDirectory() as place:
        if arguments.dataset is None:
            write_scenes(Path(place) / "made")
            arguments.dataset = str(Path(place) / "made")
        arguments.cache_dir = arguments.cache_dir or str(Path(place) / "cache")
        compare(arguments)
    return 0


if __name__ == "__main__":
    run_cli(main)
