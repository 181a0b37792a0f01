"""How fast does target pretraining run on a GPU, and what holds it up?

    python benchmarks/gpu_adapt.py --steps 50

Measures BYOL from stored images through pinned memory and augmentation on the device, against the same step on views
that already lie there, for every network, size, way of compiling and way of feeding BatchNorm. "joint" runs both views
through each network at once; it is measured here only, because it changes what BatchNorm sees. Steps between two log
lines must not make the host wait for the device: torch is told to raise an error if one does.
Without a GPU it exits with code 2; --device cpu --steps 1 runs the same code where there is none.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator
from itertools import cycle, islice, product

import torch
from common import images, machine, our_step, whole_numbers

from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import negative_cosine
from tpssl_hf.methods.base import Batch, Losses
from tpssl_hf.methods.pretrain.byol import BYOL
from tpssl_hf.process import run_cli

MODES = {"eager": None, "compile": "default", "graphs": "reduce-overhead"}
BATCH = {64: 1024, 96: 512, 224: 256}
WARM_UP = 5
PAPER_IMAGES = 300 * 50_000  # 300 epochs of CIFAR-10


class JointBYOL(BYOL):
    """BYOL with both views in one batch, so that BatchNorm sees them mixed."""

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        """Return the batch alone: it goes both ways at once."""
        return (batch,)

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` alone."""
        views = torch.cat((batch["images"]["view1"], batch["images"]["view2"]))
        predictions = self.predictor(self.projector(self.backbone(views)))
        with torch.no_grad():
            targets = self.target_projector(self.target_backbone(views))
        return {"loss": negative_cosine(predictions, targets.roll(len(targets) // 2, 0))}


FEEDS = {"separate": BYOL, "joint": JointBYOL}


def without_waiting(batches: Iterator[Batch], steps: int, device: torch.device) -> Iterator[Batch]:
    """Yield ``steps`` batches, with an error for whatever waits for the device from the first until the last."""
    for number, batch in enumerate(islice(batches, steps)):
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if number < steps - 1 else "default")
        yield batch


def finish(device: torch.device) -> float:
    """Wait for the device and return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(backbone: str, image_size: int, mode: str, feed: str, arguments: argparse.Namespace) -> str:
    """Return one row of the table."""
    batch, steps = arguments.batch or BATCH.get(image_size, 256), arguments.steps
    with images(arguments.dataset, image_size, count=max(2_000, 2 * batch)) as store:
        step = our_step(
            store,
            image_size,
            batch,
            backbone=backbone,
            build=FEEDS[feed],
            compile_mode=MODES[mode],
            device=arguments.device,
        )
        device, stream = step.accelerator.device, step.batches()
        ready = cycle([next(stream), next(stream)])
        step.run(min(steps, WARM_UP), stream)
        rates: dict[str, list[float]] = {"real": [], "ready": []}
        for _ in range(arguments.rounds):
            for name, batches in (("real", stream), ("ready", ready)):
                before = finish(device)
                step.run(steps, without_waiting(batches, steps, device))
                rates[name].append(batch * steps / (finish(device) - before))
        stream.close()
    real, ready_rate = (statistics.median(rates[name]) for name in ("real", "ready"))
    share = statistics.median(100 * a / b for a, b in zip(rates["real"], rates["ready"], strict=True))
    hours = f"{PAPER_IMAGES / real / 3600:.1f} h" if device.type == "cuda" else "-"
    return (
        f"| {backbone} | {image_size} | {batch} | {mode} | {feed} | {real:,.0f} | {ready_rate:,.0f} | {share:.0f} % "
        f"| {hours} |"
    )


def main() -> int:
    """Measure every combination that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="steps per round")
    parser.add_argument("--batch", type=int, help="1024 at 64 px, 512 at 96, 256 at 224 when not given")
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sizes", type=whole_numbers, default=[64, 96, 224])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--feeds", nargs="+", choices=FEEDS, default=list(FEEDS))
    parser.add_argument("--dataset", help="folder or name of a data set; made images of 32 px by default")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise InputError("this benchmark needs a CUDA device; --device cpu --steps 1 runs its code without one.")
    warnings.filterwarnings("ignore")
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "dry run on the CPU, not a measurement"
    print(f"{where}; {machine()}\n")
    print("| network | px | batch | mode | BatchNorm | images/s | on ready views | share | 300 epochs of CIFAR-10 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for choice in product(arguments.backbones, arguments.sizes, arguments.modes, arguments.feeds):
        print(measure(*choice, arguments), flush=True)
        torch.compiler.reset()
    return 0


if __name__ == "__main__":
    run_cli(main)
