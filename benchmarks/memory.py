"""How much memory does target pretraining take, and does it grow with the data set?

    python benchmarks/memory.py --steps 4

Runs the recipe itself and reads the largest resident set the system has seen of it. A cached store is allowed its
decoded size and 1.5 GiB; one that is not cached is run with two data sets, one ten times as large as the other.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import write_images

from tpssl_hf.process import run_cli

RECIPE = Path(__file__).parent.parent / "recipes/target_pretrain.py"
IMAGE_SIZE, BATCH, SIDE = 64, 256, 74  # 74 px is what a store for views of 64 px keeps of larger images
ALLOWANCE = 1.5  # GiB


def peak(dataset: Path, place: Path, *, method: str, steps: int, precision: str, budget: float) -> tuple[float, bool]:
    """Return the largest resident set of a run in GiB, and whether its store was cached."""
    command = [sys.executable, str(RECIPE), "--dataset", str(dataset), "--cache_dir", str(place / "cache")]
    options = {
        "output_dir": str(place / "run"),
        "image_size": IMAGE_SIZE,
        "batch_size": BATCH,
        "method": method,
        "max_steps": steps,
        "precision": precision,
        "cache_budget": budget,
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        largest = 0
        while process.poll() is None:
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            largest = max(largest, int(found[1])) if found else largest
            time.sleep(0.05)
    if process.returncode != 0:
        sys.exit((place / "log").read_text()[-2000:])
    return largest / 2**20, any((place / "cache").rglob("pixels.bin"))


def main() -> int:
    """Run the recipe on each data set and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--method", default="byol")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--counts", type=int, nargs=2, default=[2_000, 20_000], help="images of the two data sets")
    arguments = parser.parse_args()
    made = f"{arguments.steps} steps of {arguments.method} in {arguments.precision}"
    print(f"resnet18, {IMAGE_SIZE} px, batch {BATCH}, {made}\n")
    print("| images | decoded size | cached | largest resident set | allowed |\n| --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as root:
        for count in arguments.counts:
            write_images(Path(root) / f"images{count}", count, SIDE, quality=90)
            for cache_budget in (16.0, 0.0001):
                decoded = count * SIDE * SIDE * 3 / 2**30
                with TemporaryDirectory(dir=root) as place:
                    most, cached = peak(
                        Path(root) / f"images{count}",
                        Path(place),
                        method=arguments.method,
                        steps=arguments.steps,
                        precision=arguments.precision,
                        budget=cache_budget,
                    )
                allowed = f"{decoded + ALLOWANCE:.2f} GiB" if cached else f"{ALLOWANCE:.2f} GiB, whatever the count"
                answer = "yes" if cached else "no"
                print(f"| {count:,} | {decoded:.3f} GiB | {answer} | {most:.2f} GiB | {allowed} |", flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
