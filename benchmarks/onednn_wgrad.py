"""oneDNN's bfloat16 weight gradient of a convolution, with one thread and with several: a report anyone can run.

    python benchmarks/onednn_wgrad.py            # on an idle machine
    python benchmarks/onednn_wgrad.py --busy     # beside a program that keeps a core busy

It needs torch alone, and a CPU with AVX-512 bfloat16. For each convolution of a ResNet-18 at 64 pixels that is slower
so, it prints the milliseconds of the weight gradient with one thread, with all threads, and of the input gradient with
both, which shows that only the weight gradient collapses, and only where a thread has to wait. Times alternate between
the thread counts, and the least of several is shown. ``ONEDNN_VERBOSE=2`` names the implementation.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.grad import conv2d_input, conv2d_weight

# channels in, channels out, kernel, stride, height and width of the input
SHAPES = ((64, 64, 3, 1, 16), (64, 128, 3, 2, 16), (128, 128, 3, 1, 8), (256, 512, 3, 2, 4), (512, 512, 3, 1, 2))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="keep a core busy meanwhile")
    arguments = parser.parse_args()
    neighbor = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if arguments.busy else None
    try:
        print_table(arguments)
    finally:
        if neighbor is not None:
            neighbor.kill()


def print_table(arguments: argparse.Namespace) -> None:
    """Time each convolution and print its row."""
    capable = torch.cpu._is_avx512_bf16_supported()
    print(f"torch {torch.__version__}, oneDNN {torch.backends.mkldnn.is_available()}, AVX-512 bfloat16 {capable}")
    print(f"milliseconds of one call, batch {arguments.batch_size}, contiguous; 1 and {arguments.threads} threads")
    print("| convolution | weight, 1 | weight, all | slower | input, 1 | input, all | slower |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        channels, out, kernel, stride, size = shape
        images = torch.randn(arguments.batch_size, channels, size, size, dtype=torch.bfloat16)
        weight = torch.randn(out, channels, kernel, kernel, dtype=torch.bfloat16)
        gradient = torch.randn(arguments.batch_size, out, size // stride, size // stride, dtype=torch.bfloat16)
        keys = {"stride": stride, "padding": kernel // 2}
        row = [f"{channels} -> {out}, {kernel} x {kernel}, stride {stride}, {size} px"]
        for call in (
            lambda images=images, weight=weight, gradient=gradient, keys=keys: conv2d_weight(
                images, weight.shape, gradient, **keys
            ),
            lambda images=images, weight=weight, gradient=gradient, keys=keys: conv2d_input(
                images.shape, weight, gradient, **keys
            ),
        ):
            one, several = times(call, (1, arguments.threads), arguments.rounds)
            row += [f"{1000 * one:.2f}", f"{1000 * several:.2f}", f"{several / one:.1f}x"]
        print(f"| {' | '.join(row)} |", flush=True)


def times(call: Callable[[], object], threads: tuple[int, ...], rounds: int) -> list[float]:
    """Return the least seconds of a call with each number of threads, taken in turns."""
    least = [float("inf")] * len(threads)
    for _ in range(rounds):
        for place, count in enumerate(threads):
            torch.set_num_threads(count)
            call()
            began = time.perf_counter()
            call()
            least[place] = min(least[place], time.perf_counter() - began)
    return least


if __name__ == "__main__":
    main()
