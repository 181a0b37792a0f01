"""What does a whole step of BYOL cost here and in lightly's way, and where does the time go?

    python benchmarks/byol_step.py --rounds 5 --steps 4

Rounds alternate between the two in one process tree, with equally many threads. Ratios are of the same round; those of
CPU time (of the process and its workers) are less disturbed by other programs than those of wall time. lightly's way
is that of its published example: its views behind a DataLoader, float32, one SGD over all parameters.
"""

import sys

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import argparse
import copy
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from common import MEAN, STD, OurStep, cpu_seconds, images, machine, our_step, timed, whole_numbers
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.methods.base import Batch
from tpssl_hf.process import cpu_has_bf16
from tpssl_hf.training.nonfinite_guard import NonFiniteGuard

WORKERS = 2
BATCH = {64: 64, 224: 16}
STAGES = ("data", "augmentation", "online forward", "target forward", "backward", "guard", "optimizer", "EMA", "rest")
GEMM_SIDE = 2048


class LightlyViews(Dataset):
    """The first images of a store, decoded in memory, seen through lightly's transform."""

    def __init__(self, store: ImageCache, image_size: int, length: int) -> None:
        loaded = store.gather(np.arange(min(length, len(store))), 0)
        self.images = [
            Image.fromarray(pixels[:height, :width].numpy())
            for pixels, (height, width) in zip(loaded.pixels, loaded.sizes.tolist(), strict=True)
        ]
        self.length = length
        normalize = {"mean": list(MEAN), "std": list(STD)}
        self.transform = BYOLTransform(
            BYOLView1Transform(image_size, normalize=normalize), BYOLView2Transform(image_size, normalize=normalize)
        )

    def __len__(self) -> int:
        """Return how many samples one round takes."""
        return self.length

    def __getitem__(self, index: int) -> list[Tensor]:
        """Return both views (3, S, S) of one image."""
        return self.transform(self.images[index % len(self.images)])


class LightlyStep:
    """BYOL put together from lightly's parts, with heads as wide as ours."""

    def __init__(self, store: ImageCache, image_size: int, batch_size: int, steps: int) -> None:
        self.backbone = timm.create_model("resnet18", num_classes=0)
        self.projector = BYOLProjectionHead(self.backbone.num_features, 4096, 256)
        self.predictor = BYOLPredictionHead(256, 4096, 256)
        self.target_backbone, self.target_projector = copy.deepcopy(self.backbone), copy.deepcopy(self.projector)
        deactivate_requires_grad(self.target_backbone)
        deactivate_requires_grad(self.target_projector)
        trained = nn.ModuleList([self.backbone, self.projector, self.predictor])
        self.optimizer = torch.optim.SGD(trained.parameters(), lr=0.06)
        self.criterion = NegativeCosineSimilarity()
        samples = LightlyViews(store, image_size, batch_size * steps)
        self.loader = DataLoader(
            samples, batch_size, shuffle=True, drop_last=True, num_workers=WORKERS, multiprocessing_context="fork"
        )
        self.done = 0

    def run(self) -> None:
        """Make one pass over the loader, which starts its workers and ends them, so that their time is counted."""
        for view1, view2 in self.loader:
            momentum = cosine_schedule(self.done % 1000, 1000, 0.996, 1.0)
            update_momentum(self.backbone, self.target_backbone, momentum)
            update_momentum(self.projector, self.target_projector, momentum)
            loss = 0.5 * (self._one_way(view1, view2) + self._one_way(view2, view1))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1

    def _one_way(self, view: Tensor, other: Tensor) -> Tensor:
        predictions = self.predictor(self.projector(self.backbone(view).flatten(start_dim=1)))
        with torch.no_grad():
            targets = self.target_projector(self.target_backbone(other).flatten(start_dim=1))
        return self.criterion(predictions, targets)


class Stages:
    """CPU time of the stages of our step, taken inside the engine as it runs."""

    def __init__(self, step: OurStep) -> None:
        self.step = step
        self.seconds: Counter[str] = Counter()
        method: Any = step.method.inner
        self.patches = [
            mock.patch.object(owner, name, self._counted(stage, getattr(owner, name)))
            for owner, name, stage in (
                (method.backbone, "forward", "online forward"),
                (method.projector, "forward", "online forward"),
                (method.predictor, "forward", "online forward"),
                (method.target_backbone, "forward", "target forward"),
                (method.target_projector, "forward", "target forward"),
                (step.accelerator, "backward", "backward"),
                (NonFiniteGuard, "remember_buffers", "guard"),
                (NonFiniteGuard, "check", "guard"),
                (NonFiniteGuard, "stop_after_bad_streak", "guard"),
                (step.optimizer, "step", "optimizer"),
                (step.method, "after_step", "EMA"),
            )
        ]

    def _counted(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            before = time.process_time()
            result = function(*arguments, **named)
            self.seconds[stage] += time.process_time() - before
            return result

        return call

    def _batches(self) -> Iterator[Batch]:
        """Yield batches made on the spot, because a thread that works ahead would be counted elsewhere."""
        gather, views = self._counted("data", self.step.stream.batch), self._counted("augmentation", self.step.views)
        for number in count(self.step.done):
            yield views(gather(number))

    def run(self, steps: int) -> dict[str, float]:
        """Make ``steps`` steps and return each stage's share of their CPU time."""
        self.seconds.clear()
        with ExitStack() as stack:
            for patch in self.patches:
                stack.enter_context(patch)
            before = time.process_time()
            self.step.run(steps, self._batches())
            total = time.process_time() - before
        self.seconds["rest"] = total - sum(self.seconds.values())
        return {stage: self.seconds[stage] / total for stage in STAGES}


def gemm_rate(dtype: torch.dtype) -> float:
    """Return GFLOP per CPU second of a square matrix product."""
    left, right = torch.rand(2, GEMM_SIDE, GEMM_SIDE).to(dtype)
    torch.mm(left, right)
    before = cpu_seconds()
    for _ in range(4):
        torch.mm(left, right)
    return 4 * 2 * GEMM_SIDE**3 / 1e9 / (cpu_seconds() - before)


def spread(values: list[float], digits: int = 2) -> str:
    """Write the median and, in brackets, the extremes."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def compare(image_size: int, arguments: argparse.Namespace) -> None:
    """Measure one size and print its three tables."""
    batch, steps = BATCH.get(image_size, 16), arguments.steps
    with images(arguments.dataset, image_size) as store:
        ours = our_step(store, image_size, batch, optimizer=arguments.optimizer, precision=arguments.precision)
        theirs = LightlyStep(store, image_size, batch, steps)
        with FlopCounterMode(display=False) as counter:
            ours.run(1, ours.batches())
        gigaflop = counter.get_total_flops() / 1e9 / batch
        stages, stream = Stages(ours), ours.batches()
        kinds = [torch.float32, torch.bfloat16] if cpu_has_bf16() else [torch.float32]
        rounds, shares, rates = [], [], []
        for _ in range(arguments.rounds):
            rounds.append((timed(theirs.run), timed(lambda: ours.run(steps, stream))))
            shares.append(stages.run(steps))
            rates.append([gemm_rate(kind) for kind in kinds])
        stream.close()
    made, precision = batch * steps, "bf16" if ours.accelerator.mixed_precision == "bf16" else "fp32"
    print(
        f"\n{image_size} px, batch {batch}, {arguments.rounds} rounds of {steps} steps, {gigaflop:.2f} GFLOP per image"
    )
    print("\n| step | images/s | CPU-ms per image | CPU ratio (min..max) | wall ratio (min..max) |")
    print("| --- | --- | --- | --- | --- |")
    for column, name in enumerate(("lightly, fp32", f"tpssl_hf, {precision}, {arguments.optimizer}")):
        cpu, wall = ([row[column][kind] for row in rounds] for kind in (0, 1))
        ratios = [spread([row[0][kind] / row[column][kind] for row in rounds]) for kind in (0, 1)]
        rate, cost = made / statistics.median(wall), statistics.median(cpu) / made * 1e3
        print(f"| {name} | {rate:.1f} | {cost:.1f} | {' | '.join(ratios)} |")
    print(f"\n| {' | '.join(STAGES)} |\n|{' --- |' * len(STAGES)}")
    medians = {stage: statistics.median(100 * share[stage] for share in shares) for stage in STAGES}
    print("| " + " | ".join(f"{medians[stage]:.2f} %" for stage in STAGES) + " |")
    done = [gigaflop * made / row[1][0] for row in rounds]
    print("\n| GFLOP per CPU second | rate | our step's share of it |\n| --- | --- | --- |")
    print(f"| our step, {precision} | {spread(done, 1)} | |")
    for column, kind in enumerate(kinds):
        fractions = [100 * rate / row[column] for rate, row in zip(done, rates, strict=True)]
        print(f"| {kind} product | {spread([row[column] for row in rates], 1)} | {spread(fractions, 0)} % |")
    if not cpu_has_bf16():
        print("\nbf16: not measured, this CPU does not multiply it")
    sys.stdout.flush()


def main() -> int:
    """Compare at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--sizes", type=whole_numbers, default=[64, 224])
    parser.add_argument("--threads", type=int, help="CPU threads of both; chosen for the machine when not given")
    parser.add_argument("--optimizer", choices=("lars", "sgd", "adamw"), default="lars")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of our step")
    parser.add_argument("--dataset", help="folder or name of a data set; 2,000 made images of 32 px by default")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(machine())
    for image_size in arguments.sizes:
        compare(image_size, arguments)
    return 0


if __name__ == "__main__":
    run_cli(main)
