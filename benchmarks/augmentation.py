"""What do both BYOL views of an image cost, ours in batches and lightly's one by one?

    python benchmarks/augmentation.py --rounds 5 --batch 64

Rounds alternate between the pipelines in one process tree. Ratios are of the CPU time of the process and its
workers in the same round, which other programs on the machine disturb less than wall time, and medians over rounds.
"""

import argparse
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is imported

import numpy as np
import torch
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from tpssl_hf.augment.pretrain_views import BYOL_VIEW_1, BYOL_VIEW_2, ViewSettings, two_views
from tpssl_hf.data.image_batch import ImageBatch

SIZES = ((32, 64), (32, 224), (256, 224))  # of the image and of the views
WORKERS = 2
BATCHES = 4  # in a row, as in training; enough that starting the workers, which nobody asks about, weighs little
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class LightlyViews(Dataset):
    """Images in memory, seen through lightly's transform."""

    def __init__(self, images: list[Image.Image], image_size: int, length: int):
        self.images, self.length = images, length
        self.transform = BYOLTransform(BYOLView1Transform(image_size), BYOLView2Transform(image_size))

    def __len__(self) -> int:
        """Return how many samples one round takes."""
        return self.length

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        """Return both views (3, S, S) of one image."""
        return self.transform(self.images[index % len(self.images)])


def photographs(count: int, side: int) -> list[Image.Image]:
    """Return ``count`` different square cuttings of two photographs, resized to ``side`` pixels."""
    generator = np.random.default_rng(0)
    scenes = [Image.fromarray(scene) for scene in load_sample_images().images]
    cuttings = []
    for number in range(count):
        left, top = int(generator.integers(0, 640 - 400)), int(generator.integers(0, 427 - 400))
        cutting = scenes[number % 2].crop((left, top, left + 400, top + 400))
        cuttings.append(cutting.resize((side, side), Image.Resampling.BICUBIC))
    return cuttings


def pipelines(source: int, image_size: int, batch: int) -> dict[str, Callable[[], None]]:
    """Return by name what makes ``BATCHES`` batches of views of ``image_size`` pixels of ``source`` pixels."""
    originals = photographs(batch, source)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in originals]))
    numbers = torch.arange(batch)
    images = ImageBatch(pixels, torch.full((batch, 2), source), numbers, torch.zeros_like(numbers))
    settings = ViewSettings(image_size, MEAN, STD, seed=0)

    samples = LightlyViews(originals, image_size, batch * BATCHES)

    def ours() -> None:
        for _ in range(BATCHES):
            views = two_views(images, (BYOL_VIEW_1, BYOL_VIEW_2), settings)
        del views

    def in_process() -> None:
        for _ in range(BATCHES):
            views = torch.utils.data.default_collate([samples[index] for index in range(batch)])
        del views

    def behind_workers() -> None:
        for _ in DataLoader(samples, batch_size=batch, num_workers=WORKERS, multiprocessing_context="fork"):
            pass

    return {
        f"lightly, DataLoader with {WORKERS} workers": behind_workers,
        "lightly, in process": in_process,
        "tpssl_hf, batched": ours,
    }


def cpu_seconds() -> float:
    """Return the CPU time so far of this process and of the workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(run: Callable[[], None], views: int) -> tuple[float, float]:
    """Return milliseconds per view of CPU time, children included, and of wall time."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    run()
    return (cpu_seconds() - cpu) * 1e3 / views, (time.perf_counter() - wall) * 1e3 / views


def main() -> None:
    """Measure all pipelines at all sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print("| pipeline | views | CPU-ms per view | wall-ms per view | CPU ratio to lightly with workers (min..max) |")
    print("| --- | --- | --- | --- | --- |")
    for source, image_size in SIZES:
        contenders = pipelines(source, image_size, arguments.batch)
        views = 2 * arguments.batch * BATCHES
        contenders["tpssl_hf, batched"]()
        rounds = [[measure(run, views) for run in contenders.values()] for _ in range(arguments.rounds)]
        for column, name in enumerate(contenders):
            cpu, wall = (statistics.median(row[column][kind] for row in rounds) for kind in (0, 1))
            ratios = [row[0][0] / row[column][0] for row in rounds]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
            print(f"| {name} | {source} -> {image_size} px | {cpu:.3f} | {wall:.3f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
