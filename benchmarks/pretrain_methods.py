"""What does a step of each pretraining method cost: time, memory, beside BYOL, and beside the same method in lightly?

    python benchmarks/pretrain_methods.py --image_sizes 64 224 --rounds 3 --steps 4

All methods and both sides take turns in every round, over the same made images, with equally many threads; ratios
are of the same round. CPU time is that of the process and its workers. lightly's step is put together from its public
parts in the way of its published examples: its views behind a DataLoader, float32, one optimizer of the kind that ours
takes. PixPro is not in lightly. Peak memory is how far the resident set of a process of its own grows while it builds
the method and makes two steps. On a GPU, times are wall times, memory is the GPU's, and lightly is left out unless
--peer is given.
"""

import sys

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import argparse
import copy
import math
import re
import statistics
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from byol_step import WORKERS, LightlyViews, spread
from common import MEAN, RATE, STD, OurStep, images, machine, timed
from lightly import transforms
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models import utils
from lightly.models.modules import heads
from lightly.utils.lars import LARS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.shared import RunConfig
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.streams import ImageStream
from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.training.accelerator import make_accelerator
from tpssl_hf.training.optim import build_optimizer

BACKBONE = "resnet18"
BATCH = {64: 128, 224: 32}  # any other: 32
QUEUE = 4096
MEMORY_STEPS = 2  # the second is the first with the optimizer's state in memory
Times = tuple[float, float]  # CPU and wall seconds


def settings_of(name: str) -> Any:
    """Return the method's default hyper-parameters, with queues as short as here."""
    config = PRETRAIN[name].config
    return config(**({"queue_size": QUEUE} if "queue_size" in {field.name for field in fields(config)} else {}))


def our_method(name: str, store: ImageCache, image_size: int, batch_size: int, accelerator: Accelerator) -> OurStep:
    """Put a method together as the recipe does for random weights: its optimizer, and an anchor that only measures.

    Raises:
        InputError: if the method does not take this size.
    """
    spec, config = PRETRAIN[name], settings_of(name)
    network, _ = load_backbone(BACKBONE, init="random")
    spec.check(network, config, image_size, batch_size)
    method = Anchor(spec.build(network, config), 0.0)
    method = method.to(accelerator.device, memory_format=torch.channels_last)
    chosen = {key: spec.defaults.get(key, False) for key in ("weight_decay", "momentum", "decay_norm_and_bias")}
    optimizer = build_optimizer(spec.defaults["optimizer"], method, **chosen)
    stream = ImageStream(store, batch_size=batch_size, seed=0)
    views = spec.views(ViewSettings(image_size, MEAN, STD, seed=0), config)
    return OurStep(accelerator, method, accelerator.prepare(method), optimizer, stream, views, batch_size)


def byol_views(size: int, **shared: Any) -> transforms.BYOLTransform:
    """Return lightly's two views of BYOL."""
    kinds = transforms.BYOLView1Transform, transforms.BYOLView2Transform
    return transforms.BYOLTransform(*(kind(size, **shared) for kind in kinds))


def encode(network: nn.Sequential, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (B, N, D) of cells, and projections (B, P) of images and (B, N, P) of cells."""
    backbone, whole, cells = network
    features = backbone.forward_features(view).flatten(2).transpose(1, 2)
    return features, whole(features.mean(dim=1)), cells(features)


# What lightly has: the head of the method, and its views. Colors of SimCLR at half strength, as ours.
PEERS: dict[str, tuple[type[nn.Module], Callable[..., Any]]] = {
    "byol": (heads.BYOLProjectionHead, byol_views),
    "moco": (heads.MoCoProjectionHead, transforms.MoCoV2Transform),
    "simclr": (heads.SimCLRProjectionHead, partial(transforms.SimCLRTransform, cj_strength=0.5)),
    "densecl": (heads.DenseCLProjectionHead, transforms.DenseCLTransform),
}


class Peer(nn.Module):
    """A method put together from lightly's parts; its loss is the method of this class that has its name."""

    def __init__(self, name: str, config: Any) -> None:
        super().__init__()
        backbone = timm.create_model(BACKBONE, num_classes=0)
        features, projected = backbone.num_features, config.projection_features
        hidden = getattr(config, "hidden_features", features)
        parts = [PEERS[name][0](features, hidden, projected) for _ in range(2 if name == "densecl" else 1)]
        self.config, self.loss = config, getattr(self, name)
        self.online = nn.Sequential(backbone, *parts)
        if name == "byol":
            self.predictor = heads.BYOLPredictionHead(projected, hidden, projected)
            self.criterion = NegativeCosineSimilarity()
        else:
            bank = 0 if name == "simclr" else (QUEUE, projected)
            self.criterion, self.dense_criterion = (NTXentLoss(config.temperature, bank) for _ in range(2))
        if name != "simclr":
            self.momentum = config.base_momentum if name == "byol" else config.key_momentum
            self.slow = copy.deepcopy(self.online)
            utils.deactivate_requires_grad(self.slow)

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Move the slow network, if there is one, and return the loss."""
        if hasattr(self, "slow"):
            utils.update_momentum(self.online, self.slow, self.momentum)
        return self.loss(view1, view2)

    def byol(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Both ways, each view by itself."""
        with torch.no_grad():
            target1, target2 = self.slow(view1), self.slow(view2)
        prediction1, prediction2 = self.predictor(self.online(view1)), self.predictor(self.online(view2))
        return 0.5 * (self.criterion(prediction1, target2) + self.criterion(prediction2, target1))

    def moco(self, view1: Tensor, view2: Tensor) -> Tensor:
        """One way; the criterion keeps the keys."""
        with torch.no_grad():
            keys = self.slow(view2)
        return self.criterion(self.online(view1), keys)

    def simclr(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Each view by itself, where ours take one pass; lightly's head ends in a second BatchNorm."""
        return self.criterion(self.online(view1), self.online(view2))

    def densecl(self, view1: Tensor, view2: Tensor) -> Tensor:
        """One way; every matched cell is kept as a key, where ours keeps one key per image."""
        features, whole, cells = encode(self.online, view1)
        with torch.no_grad():
            key_features, key_whole, key_cells = encode(self.slow, view2)
            positives = utils.select_most_similar(features, key_features, key_cells)
        dense = self.dense_criterion(cells.flatten(0, 1), positives.flatten(0, 1))
        return (1 - self.config.dense_weight) * self.criterion(whole, key_whole) + self.config.dense_weight * dense


class PeerStep:
    """A method of lightly at work: views behind a DataLoader, torch's SGD or lightly's LARS."""

    def __init__(self, name: str, store: ImageCache, image_size: int, batch_size: int, device: torch.device) -> None:
        self.device, self.method = device, Peer(name, settings_of(name)).to(device)
        defaults = PRETRAIN[name].defaults
        vectors = defaults.get("decay_norm_and_bias", False)
        groups = utils.get_weight_decay_parameters([self.method], decay_norm=vectors, decay_bias=vectors)
        decays = defaults["weight_decay"], 0.0
        self.optimizer = {"lars": LARS, "sgd": torch.optim.SGD}[defaults["optimizer"]](
            [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)],
            lr=RATE,
            momentum=defaults["momentum"],
        )
        samples = LightlyViews(store, image_size, len(store))
        samples.transform = PEERS[name][1](image_size, normalize={"mean": list(MEAN), "std": list(STD)})
        self.loader = DataLoader(
            samples, batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, multiprocessing_context="fork"
        )

    def learn(self, view1: Tensor, view2: Tensor) -> Tensor:
        """Make one step and return its loss."""
        loss = self.method(view1.to(self.device), view2.to(self.device))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def run(self) -> None:
        """Make one pass over the loader, which starts its workers and ends them, so that their time is counted."""
        for view1, view2 in self.loader:
            loss = self.learn(view1, view2)
        if not math.isfinite(loss):  # on a GPU this waits for it
            raise FloatingPointError(f"lightly's loss is {float(loss)}")


def memory_growth(name: str, image_size: int, batch_size: int) -> float:
    """Return by how many GiB this process, or the GPU's memory, grows while it builds a method and makes steps."""
    accelerator, status = make_accelerator(RunConfig()), Path("/proc/self/status")
    with images(None, image_size, count=MEMORY_STEPS * batch_size) as store:
        Path("/proc/self/clear_refs").write_text("5")  # forget the largest resident set so far
        before = re.search(r"VmRSS:\s*(\d+) kB", status.read_text())
        ours = our_method(name, store, image_size, batch_size, accelerator)
        with closing(ours.batches()) as stream:
            ours.run(MEMORY_STEPS, stream)
        largest = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    on_gpu = accelerator.device.type == "cuda"
    return torch.cuda.max_memory_allocated() / 2**30 if on_gpu else (int(largest[1]) - int(before[1])) / 2**20


def measure(
    image_size: int, batch_size: int, arguments: argparse.Namespace, accelerator: Accelerator
) -> tuple[dict[str, list[Times]], dict[str, list[Times]]]:
    """Return the times of all rounds of our methods, and of lightly's."""
    runs: list[tuple[list[Times], Callable[[], None]]] = []
    ours: dict[str, list[Times]] = {}
    theirs: dict[str, list[Times]] = {}
    with ExitStack() as stack:
        # As many images as a round takes: in every round both sides see each of them once.
        store = stack.enter_context(images(None, image_size, count=batch_size * arguments.steps))
        for name in arguments.methods:
            try:
                step = our_method(name, store, image_size, batch_size, accelerator)
            except InputError as error:
                print(f"\n{name} is left out: {error}")
                continue
            step.run(1, step.batches())
            step.done = 0
            stream = stack.enter_context(closing(step.batches()))
            if name in PEERS and (arguments.peer or accelerator.device.type == "cpu"):
                peer = PeerStep(name, store, image_size, batch_size, accelerator.device)
                peer.learn(*torch.randn(2, batch_size, 3, image_size, image_size))
                runs.append((theirs.setdefault(name, []), peer.run))
            runs.append((ours.setdefault(name, []), partial(step.run, arguments.steps, stream)))
        for _ in range(arguments.rounds):
            for times, run in runs:
                times.append(timed(run))
    return ours, theirs


def compare(image_size: int, batch_size: int, arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """Measure one size and print its table."""
    ours, theirs = measure(image_size, batch_size, arguments, accelerator)
    kind, clock = (1, "wall") if accelerator.device.type == "cuda" else (0, "CPU")
    images, spawn = batch_size * arguments.steps, get_context("spawn")
    print(f"\n{image_size} px, batch {batch_size}, {arguments.rounds} rounds of {arguments.steps} steps\n")
    print(
        f"| method | optimizer | images/s | CPU-s per image | {clock} time / BYOL's (min..max) | peak memory "
        f"| lightly's {clock} time / ours (min..max) |\n|{' --- |' * 7}"
    )
    for name, rounds in ours.items():
        ratios = [
            spread([a[kind] / b[kind] for a, b in zip(above, below, strict=True)]) if above and below else "-"
            for above, below in ((rounds, ours.get("byol")), (theirs.get(name), rounds))
        ]
        with ProcessPoolExecutor(1, spawn) as alone:
            memory = alone.submit(memory_growth, name, image_size, batch_size).result()
        cpu, wall = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(
            f"| {name} | {PRETRAIN[name].defaults['optimizer']} | {images / wall:.1f} | {cpu / images:.4f} "
            f"| {ratios[0]} | {memory:.2f} GiB | {ratios[1]} |",
            flush=True,
        )


def main() -> int:
    """Measure all methods at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batch_size", type=int, nargs="+", help="one per size; 128 at 64 px, else 32 if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--methods", nargs="+", choices=PRETRAIN, default=list(PRETRAIN))
    parser.add_argument("--threads", type=int, help="CPU threads of both; chosen for the machine when not given")
    parser.add_argument("--peer", action="store_true", help="measure lightly on a GPU, too")
    arguments = parser.parse_args()
    batches = arguments.batch_size or [BATCH.get(size, 32) for size in arguments.image_sizes]
    if len(batches) != len(arguments.image_sizes):
        parser.error("give --batch_size one number per image size")
    warnings.filterwarnings("ignore")
    accelerator = make_accelerator(RunConfig())
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    where = f"{torch.cuda.get_device_name()}; " if accelerator.device.type == "cuda" else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "timm", "lightly"))
    print(f"{where}{machine()}, {versions}; ours {precision}, lightly fp32; {BACKBONE}, queues of {QUEUE}")
    for image_size, batch_size in zip(arguments.image_sizes, batches, strict=True):
        compare(image_size, batch_size, arguments, accelerator)
    return 0


if __name__ == "__main__":
    run_cli(main)
