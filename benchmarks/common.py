"""What the benchmarks share: images to work on, this project's pretraining step, and CPU time.

It imports torch, so scripts settle their threads before they import it.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.shared import RunConfig
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.data.streams import ImageStream
from tpssl_hf.methods.base import Batch, Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.training.accelerator import make_accelerator
from tpssl_hf.training.loop import LoopSettings, batches_on_device, training_steps
from tpssl_hf.training.optim import build_optimizer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ANCHOR_WEIGHT = 1e-2  # the paper's: a run from pretrained weights, which costs more than one from random weights
RATE = 0.05


def write_images(folder: Path, count: int, side: int, quality: int | None = None) -> None:
    """Write ``count`` square images of ``side`` pixels, smooth colors under noise; PNG, or JPEG of ``quality``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = (smooth + generator.integers(-16, 17, (side, side, 1))).clip(0, 255).astype(np.uint8)
        if quality is None:
            Image.fromarray(pixels).save(folder / f"{number:06}.png")
        else:
            Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=quality)


def write_shards(place: Path, count: int, side: int, shards: int = 4) -> Path:
    """Write ``count`` JPEG images of ``side`` pixels into parquet shards, their bytes included; return the folder."""
    write_images(place / "files", count, side, quality=90)
    (place / "shards").mkdir()
    files = sorted((place / "files").iterdir())
    for number in range(shards):
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files[number::shards]]
        table = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
        table.to_parquet(str(place / "shards" / f"train-{number:05}-of-{shards:05}.parquet"))
    return place / "shards"


@contextmanager
def images(dataset: str | None, image_size: int, count: int = 2_000, side: int = 32) -> Iterator[ImageCache]:
    """Open at most ``count`` images of ``dataset``, or of a folder made for the purpose, in a temporary cache."""
    with TemporaryDirectory() as place:
        if dataset is None:
            write_images(Path(place) / "made", count, side)
        yield load_image_cache(
            load_source(dataset or str(Path(place) / "made")),
            image_size=image_size,
            cache_budget=2**33,
            num_workers=2,
            progress=False,
            cache_dir=Path(place) / "cache",
            limit_images=count,
            allow_unlabeled=True,
        )[0]


@dataclass
class OurStep:
    """Target pretraining as the recipe does it, in the precision the recipe picks."""

    accelerator: Accelerator
    method: nn.Module
    prepared: nn.Module
    optimizer: torch.optim.Optimizer
    stream: ImageStream
    transforms: Views
    batch_size: int
    done: int = 0

    def batches(self) -> Iterator[Batch]:
        """Return batches as the recipe takes them, from the next step on, read ahead in a thread."""
        return batches_on_device({"images": self.stream}, self.transforms, self.done, self.accelerator.device)

    def views(self, loaded: Any) -> Batch:
        """Return the augmented batch of ``loaded`` images."""
        return {name: transform(loaded) for name, transform in self.transforms.items()}

    def run(self, steps: int, batches: Iterator[Batch]) -> None:
        """Make ``steps`` steps of the engine."""
        end = self.done + steps
        loop = LoopSettings(end, self.batch_size, log_every=10**9, save_every=10**9)
        for step in training_steps(
            self.accelerator, self.prepared, self.optimizer, lambda step: RATE, batches, loop, start_step=self.done
        ):
            self.done = step.done


def our_step(
    store: ImageCache,
    image_size: int,
    batch_size: int,
    *,
    backbone: str = "resnet18",
    optimizer: str = "lars",
    build: Callable[[nn.Module, Any], nn.Module] | None = None,
    compile_mode: str | None = None,
    device: str | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> OurStep:
    """Put BYOL together as the recipe does.

    Args:
        store: the images.
        image_size: side of the views.
        batch_size: images per step.
        backbone: a timm name; its weights are random.
        optimizer: lars | sgd | adamw.
        build: (backbone, config) -> method; BYOL by default.
        compile_mode: mode of ``torch.compile``, or None for none.
        device: where to compute if not where the recipe would.
        precision: auto is the recipe's choice.
    """
    accelerator = Accelerator(cpu=True) if device == "cpu" else make_accelerator(RunConfig(precision=precision))
    spec = PRETRAIN["byol"]
    network, _ = load_backbone(backbone, init="random")
    method = Anchor((build or spec.build)(network, spec.config()), ANCHOR_WEIGHT)
    method = method.to(accelerator.device, memory_format=torch.channels_last)
    if compile_mode is not None:
        method.compile(mode=compile_mode)
    return OurStep(
        accelerator,
        method,
        accelerator.prepare(method),
        build_optimizer(optimizer, method, weight_decay=1e-6, momentum=0.9),
        ImageStream(store, batch_size=batch_size, seed=0),
        spec.views(ViewSettings(image_size, MEAN, STD, seed=0), spec.config()),
        batch_size,
    )


def cpu_seconds() -> float:
    """Return the CPU time so far of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of CPU time, children included, and of wall time that ``run`` takes."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    run()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def whole_numbers(text: str) -> list[int]:
    """Read a list like ``64,224``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 64,224") from error


def machine() -> str:
    """Describe the CPU, the threads and torch in one line."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else "unknown CPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{len(names)} cores {name}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"
