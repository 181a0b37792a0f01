"""How much of a FixMatch step is data and augmentation, and what does it cost beside a plain torchvision loop?

    python benchmarks/fixmatch_step.py --rounds 3 --steps 2

Rounds alternate between the two in one process tree, with equally many threads. Ratios are of the same round; those of
CPU time (of the process and its workers) are less disturbed by other programs than those of wall time. The plain loop
is what one writes without a library: Pillow images, torchvision transforms and a Pillow RandAugment behind two
DataLoaders. Network and precision are ours; the memory layout is torch's default, and so is Resize, which is bilinear
and costs less than our bicubic. The workers start in every round; what that takes is measured by itself and taken off,
because training starts them once an epoch. Data and augmentation are measured on as many batches without the network;
the views, of unlabeled images, without data and workers.
"""

import sys

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import argparse
import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version

import numpy as np
import timm
import torch
import torch.nn.functional as F
from byol_step import WORKERS, spread
from common import MEAN, RATE, STD, OurStep, images, machine, timed
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from tpssl_hf.augment.classify_views import strong_view, weak_view
from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.shared import ModelConfig, RunConfig
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.labeled import Labeled
from tpssl_hf.data.streams import EndlessStream
from tpssl_hf.errors import InputError
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.streams import UNLABELED_STRONG, UNLABELED_WEAK
from tpssl_hf.models.classifier import load_classifier
from tpssl_hf.tasks.classify.config import FinetuneConfig
from tpssl_hf.tasks.classify.data import with_labels
from tpssl_hf.training.accelerator import make_accelerator, prepare_method
from tpssl_hf.training.loop import batches_on_device
from tpssl_hf.training.optim import build_optimizer

BACKBONE, CLASSES, LABELS = "resnet18", 10, 40
SIDE = 32  # of the images
GRAY = (127, 127, 127)
PARTS = ("start", "whole", "data", "weak", "strong")  # what is timed, in this order
TARGET, TARGET_SIZE = 12, 64  # per cent of our step that data and augmentation may take, and pixels
HEADER = (
    *("loop", "images/s", "CPU-ms per image", "of it data and augmentation", "their share (min..max)"),
    *("weak view, CPU-ms", "strong view, CPU-ms", "CPU time / ours (min..max)", "wall time / ours (min..max)"),
)
Times = dict[str, np.ndarray]  # part -> (rounds, 2) seconds of CPU and of wall time


def moved(image: Image.Image, *matrix: float) -> Image.Image:
    """Take the pixel at (x, y) from matrix · (x, y, 1), or gray if that is outside."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)


# Of an image, a magnitude of 0.1 to 0.9 and a sign, in FixMatch's ranges.
OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, magnitude, way: image,
    lambda image, magnitude, way: ImageOps.autocontrast(image),
    lambda image, magnitude, way: ImageOps.equalize(image),
    lambda image, magnitude, way: ImageOps.posterize(image, 4 + int(4 * magnitude)),
    lambda image, magnitude, way: ImageOps.solarize(image, 256 - int(256 * magnitude)),
    lambda image, magnitude, way: ImageEnhance.Brightness(image).enhance(0.05 + 0.9 * magnitude),
    lambda image, magnitude, way: ImageEnhance.Contrast(image).enhance(0.05 + 0.9 * magnitude),
    lambda image, magnitude, way: ImageEnhance.Color(image).enhance(0.05 + 0.9 * magnitude),
    lambda image, magnitude, way: ImageEnhance.Sharpness(image).enhance(0.05 + 0.9 * magnitude),
    lambda image, magnitude, way: image.rotate(way * 30 * magnitude, fillcolor=GRAY),
    lambda image, magnitude, way: moved(image, 1, way * 0.3 * magnitude, 0, 0, 1, 0),
    lambda image, magnitude, way: moved(image, 1, 0, 0, way * 0.3 * magnitude, 1, 0),
    lambda image, magnitude, way: moved(image, 1, 0, way * 0.3 * magnitude * image.width, 0, 1, 0),
    lambda image, magnitude, way: moved(image, 1, 0, 0, 0, 1, way * 0.3 * magnitude * image.height),
)


def distorted(image: Image.Image) -> Image.Image:
    """Apply two operations, each half of the time."""
    for operation in random.choices(OPERATIONS, k=2):
        if random.random() < 0.5:
            image = operation(image, random.randint(1, 9) / 10, random.choice((-1, 1)))
    return image


def cut_out(image: Image.Image) -> Image.Image:
    """Paint a gray square of half the side, centered anywhere in the image."""
    half = image.width // 4
    left, top = random.randrange(image.width) - half, random.randrange(image.height) - half
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, left + 2 * half - 1, top + 2 * half - 1), fill=GRAY)
    return image


class PlainImages(Dataset):
    """Pillow images in memory with labels, seen through one or more transforms."""

    def __init__(self, images: list[Image.Image], labels: list[int], views: list[transforms.Compose]) -> None:
        self.images, self.labels, self.views = images, labels, views

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        """Return the views (3, S, S) of one image, and its label."""
        return [view(self.images[index]) for view in self.views], self.labels[index]


class PlainFixMatch:
    """FixMatch the way one writes it down."""

    def __init__(self, store: ImageCache, arguments: argparse.Namespace, bf16: bool) -> None:
        self.steps, self.bf16, tune = arguments.steps, bf16, FinetuneConfig()
        self.sizes = arguments.batch_size, arguments.batch_size * arguments.unlabeled_ratio
        crop = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(SIDE, padding=4, padding_mode="reflect")]
        finish = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        resize = transforms.Resize(arguments.image_size)
        weak = transforms.Compose([*crop, resize, *finish])
        strong = transforms.Compose([*crop, distorted, cut_out, resize, *finish])
        images = [Image.fromarray(pixels.numpy()) for pixels in store.gather(np.arange(len(store)), 0).pixels]
        labels = [number % CLASSES for number in range(len(images))]
        self.samples = PlainImages(images[:LABELS], labels, [weak]), PlainImages(images, labels, [weak, strong])
        self.network = timm.create_model(BACKBONE, num_classes=CLASSES)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), RATE, tune.momentum, weight_decay=tune.weight_decay, nesterov=tune.nesterov
        )
        self.parts = {"start": partial(self.data, 0), "whole": self.whole, "data": partial(self.data, self.steps)}
        self.parts |= {"weak": partial(self.make, weak), "strong": partial(self.make, strong)}

    def batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield the batches of so many steps; workers start and end with it, so that their time is counted."""
        loader = partial(DataLoader, num_workers=WORKERS, multiprocessing_context="fork")
        loaders = [
            loader(samples, size, sampler=RandomSampler(samples, True, size * steps) if steps else [])
            for samples, size in zip(self.samples, self.sizes, strict=True)
        ]
        for ((labeled,), labels), ((weak, strong), _) in zip(*loaders, strict=True):
            yield labeled, labels, weak, strong

    def learn(self, labeled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> Tensor:
        """Make one step and return its loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.network(torch.cat([labeled, weak, strong])).float()
        logits, weak_logits, strong_logits = logits.split([len(labeled), len(weak), len(strong)])
        confidence, guesses = weak_logits.detach().softmax(dim=1).max(dim=1)
        masked = F.cross_entropy(strong_logits, guesses, reduction="none") * (confidence >= 0.95).float()
        loss = F.cross_entropy(logits, labels) + masked.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.mul_(0.999).add_(parameter, alpha=0.001)
            for average, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
                average.copy_(buffer)
        return loss.detach()

    def whole(self) -> None:
        """Make the steps of one round."""
        for batch in self.batches(self.steps):
            loss = self.learn(*batch)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the plain loop's loss is {float(loss)}")

    def data(self, steps: int) -> None:
        """Make the batches of so many steps only."""
        for _ in self.batches(steps):
            pass

    def make(self, view: Callable[[Image.Image], Tensor]) -> None:
        """Make one view of all unlabeled images of a round, in this process."""
        images = self.samples[1].images
        for number in range(self.sizes[1] * self.steps):
            view(images[number % len(images)])


class OurFixMatch:
    """FixMatch put together as the recipe does it, in the precision the recipe picks."""

    def __init__(self, store: ImageCache, arguments: argparse.Namespace) -> None:
        accelerator = make_accelerator(RunConfig(precision=arguments.precision))
        spec, tune = CLASSIFY["fixmatch"], FinetuneConfig()
        if accelerator.device.type != "cpu":
            raise InputError("this measures CPU time; hide the GPU by CUDA_VISIBLE_DEVICES= before the command.")
        self.bf16, self.steps, size = accelerator.mixed_precision == "bf16", arguments.steps, arguments.image_size
        classifier, _ = load_classifier(BACKBONE, init="random", classes=CLASSES, image_size=size)
        method = prepare_method(spec.build(classifier, spec.config(), len(store)), ModelConfig(), accelerator, "auto")
        chosen = {key: getattr(tune, key) for key in ("weight_decay", "momentum", "decay_norm_and_bias", "nesterov")}
        optimizer = build_optimizer(tune.optimizer, method, **chosen)
        self.settings = ViewSettings(size, MEAN, STD, seed=0, work_size=min(SIDE, size))
        numbers = np.arange(LABELS)
        labels = Labeled(numbers, numbers % CLASSES, tuple(map(str, range(CLASSES))), f"the first {LABELS}")
        self.views = dict(spec.views(self.settings, spec.config()))
        self.views["labeled"] = with_labels(self.views["labeled"], labels, len(store), accelerator.device)
        labeled = EndlessStream(store, batch_size=arguments.batch_size, seed=0, indices=numbers)
        unlabeled = EndlessStream(store, batch_size=arguments.batch_size * arguments.unlabeled_ratio, seed=0)
        self.streams = {"labeled": labeled, "unlabeled": unlabeled}
        self.batches = batches_on_device(self.streams, self.views, 0, accelerator.device)
        prepared, count = accelerator.prepare(method), arguments.batch_size * (1 + arguments.unlabeled_ratio)
        self.loop = OurStep(accelerator, method, prepared, optimizer, unlabeled, self.views, count)
        self.images = [unlabeled.batch(number) for number in range(self.steps)]
        self.parts = {"start": lambda: None, "whole": self.whole, "data": self.data}
        self.parts["weak"] = partial(self.make, weak_view, UNLABELED_WEAK)
        self.parts["strong"] = partial(self.make, strong_view, UNLABELED_STRONG)

    def whole(self) -> None:
        """Make the steps of one round."""
        self.loop.run(self.steps, self.batches)

    def data(self) -> None:
        """Make the batches of the round's steps once more."""
        for number in range(self.loop.done - self.steps, self.loop.done):
            for name, view in self.views.items():
                view(self.streams[name].batch(number))

    def make(self, view: Callable[[ImageBatch, ViewSettings, int], Tensor], number: int) -> None:
        """Make one view of all unlabeled images of a round."""
        for loaded in self.images:
            view(loaded, self.settings, number)


def measure(plain: PlainFixMatch, ours: OurFixMatch, rounds: int) -> tuple[Times, Times]:
    """Return the times of the plain loop and of ours; the first without the start of its workers."""
    kept = [[[timed(side.parts[part]) for side in (plain, ours)] for part in PARTS] for _ in range(rounds)]
    theirs, mine = ({part: np.array(kept)[:, row, side] for row, part in enumerate(PARTS)} for side in (0, 1))
    return theirs | {part: theirs[part] - theirs["start"] for part in ("whole", "data")}, mine


def report(kept: tuple[Times, Times], arguments: argparse.Namespace) -> None:
    """Print the table, and our share of data and augmentation beside its target."""
    unlabeled = arguments.batch_size * arguments.unlabeled_ratio * arguments.steps
    count = arguments.batch_size * arguments.steps + unlabeled
    print(f"\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for name, times in zip(("plain", "tpssl_hf"), kept, strict=True):
        _, whole, data, weak, strong = (1e3 * np.median(times[part][:, 0]) for part in PARTS)
        shares = 100 * times["data"][:, 0] / times["whole"][:, 0]
        cpu, wall = (spread(list(column)) for column in (times["whole"] / kept[1]["whole"]).T)
        print(
            f"| {name} | {count / np.median(times['whole'][:, 1]):.1f} | {whole / count:.2f} | {data / count:.3f} "
            f"| {spread(list(shares), 1)} % | {weak / unlabeled:.3f} | {strong / unlabeled:.3f} | {cpu} | {wall} |"
        )
    print(f"\nStarting the plain loop's workers took {1e3 * np.median(kept[0]['start'][:, 0]):.0f} CPU-ms per round.")
    if arguments.image_size == TARGET_SIZE:
        verdict = "met" if np.median(shares) <= TARGET else "missed"
        print(f"Target: data and augmentation take at most {TARGET} % of our step's CPU time. {verdict.capitalize()}.")


def main() -> int:
    """Compare at one size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=TARGET_SIZE)
    parser.add_argument("--batch_size", type=int, default=64, help="labeled images per step")
    parser.add_argument("--unlabeled_ratio", type=int, default=7, help="unlabeled images per labeled one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both")
    parser.add_argument("--threads", type=int, help="CPU threads of both; chosen for the machine when not given")
    arguments = parser.parse_args()
    if arguments.image_size < SIDE:
        parser.error(f"--image_size is below the {SIDE} px of the images")
    warnings.filterwarnings("ignore")
    with images(None, arguments.image_size, side=SIDE) as store:
        ours = OurFixMatch(store, arguments)
        plain = PlainFixMatch(store, arguments, ours.bf16)
        versions = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "pillow", "timm"))
        print(
            f"{machine()}, {versions}; both {'bf16' if ours.bf16 else 'fp32'}; {BACKBONE}\n\n"
            f"{arguments.image_size} px from {SIDE}, {arguments.batch_size} labeled images per step, "
            f"{arguments.unlabeled_ratio} unlabeled to each; {arguments.rounds} rounds of {arguments.steps} steps",
            flush=True,
        )
        with closing(ours.batches):
            ours.loop.run(1, ours.batches)
            plain.learn(*next(plain.batches(1)))
            kept = measure(plain, ours, arguments.rounds)
    report(kept, arguments)
    return 0


if __name__ == "__main__":
    run_cli(main)
