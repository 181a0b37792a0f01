"""How fast are folders of photographs made ready, beside a plain Pillow loop?

    python benchmarks/photographs.py --images 24 --rounds 3

Makes JPEG photographs of 12 megapixels (random clouds with grain, quality 90) in a temporary folder, then alternates
between our pass over them, which checks, decodes, shrinks and writes the cache, and a loop that opens, converts and
resizes them to the same size with Pillow. Both on one thread; CPU time of the same round is compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.models.shrinking import reduced_size

HEIGHT, WIDTH, IMAGE_SIZE, SCALE = 3000, 4000, 224, 2.5


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios, ours, plains = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "images", arguments.images, (WIDTH, HEIGHT))
        for number in range(arguments.rounds):
            ours.append(cpu_seconds(lambda number=number: scanned(folder / "images", folder / f"cache_{number}")))
            plains.append(cpu_seconds(lambda: plain(folder / "images")))
            ratios.append(plains[-1] / ours[-1])
    print("| loop | images per CPU second | plain CPU time / ours (min..max) |\n|---|---|---|")
    print(f"| plain Pillow | {arguments.images / statistics.median(plains):.1f} | 1 |")
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
    print(f"| tpssl_hf: check, decode, shrink, write | {arguments.images / statistics.median(ours):.1f} | {ratio} |")


def photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write JPEG files of ``size``, width and height."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        clouds = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(size)
        grain = random.integers(-12, 13, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(clouds, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


def scanned(images: Path, cache: Path) -> None:
    """Make a folder ready as training does."""
    load_image_cache(
        load_source(str(images)),
        image_size=IMAGE_SIZE,
        cache_scale=SCALE,
        cache_dir=cache,
        cache_budget=2**34,
        num_workers=1,
        progress=False,
    )


def plain(images: Path) -> None:
    """Open, convert and resize as one writes it without a library."""
    height, width = reduced_size(HEIGHT, WIDTH, int(IMAGE_SIZE * SCALE))
    for path in sorted(images.iterdir()):
        with Image.open(path) as image:
            np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def cpu_seconds(call: Callable[[], None]) -> float:
    """Return the CPU seconds of a call in this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
