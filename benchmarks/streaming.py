"""How fast is a training step that streams parquet shards, beside one whose images are decoded beforehand?

    python benchmarks/streaming.py --backbone resnet18 --side 96 --threads 1

Shards of JPEG images are made in a temporary folder. BYOL then makes rounds of steps, by turns on images that are
streamed from the shards and on the same images from the cache, in one process; the bar is 90 % of the cached rate.
"""

import argparse
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import datasets
from common import images, machine, our_step, timed, write_shards

from tpssl_hf.data.sources import load_source
from tpssl_hf.data.streams import StreamingImages
from tpssl_hf.training.loop import batches_on_device


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=96, help="of the stored images, in pixels")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="steps per round")
    parser.add_argument("--threads", type=int, help="CPU threads; chosen for the machine when not given")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    with TemporaryDirectory() as place:
        shards = write_shards(Path(place), arguments.images, arguments.side)
        compare(str(shards), arguments)
    return 0


def compare(shards: str, arguments: argparse.Namespace) -> None:
    """Print rates of both, by the clock and by the CPU, and their ratio in each round."""
    size, batch = arguments.image_size, arguments.batch_size
    with images(shards, size, arguments.images) as store:
        step = our_step(store, size, batch, backbone=arguments.backbone)
        streamed = StreamingImages(
            load_source(shards, streaming=True), image_size=size, batch_size=batch, seed=0, num_workers=2
        )
        kept_batches = step.batches()
        stream = batches_on_device({"images": streamed}, step.transforms, 0, step.accelerator.device)
        for batches in (kept_batches, stream):
            step.run(2, batches)  # the first one takes longer
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append([timed(lambda b=b: step.run(arguments.steps, b)) for b in (kept_batches, stream)])
        kept_batches.close()
        stream.close()
    print(machine())
    made = batch * arguments.steps
    print(f"\n{arguments.backbone}, {size} px from JPEG of {arguments.side}, batch {batch}")
    print("\n| images | images/s | CPU-ms per image | rate / cached (min..max) |\n|---|---|---|---|")
    for column, name in enumerate(("cached", "streamed")):
        cpu, wall = ([row[column][kind] for row in rounds] for kind in (0, 1))
        ratios = [row[0][1] / row[column][1] for row in rounds]
        print(
            f"| {name} | {made / statistics.median(wall):.1f} | {1e3 * statistics.median(cpu) / made:.2f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    run_cli(main)
