"""What do fast_convolutions save in a network's forward and backward pass on a CPU?

    python benchmarks/cpu_convolutions.py --backbones resnet18,tf_efficientnet_lite0 --sizes 64,224

Passes with and without them alternate in one process, and the least CPU time of each counts: other programs can only
add to it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from tpssl_hf.process import prepare_process, run_cli

if __name__ == "__main__":  # before torch is imported: OpenMP reads its settings once
    sys.stdout.write(prepare_process([argument.replace("--threads", "--cpu_threads") for argument in sys.argv]) + "\n")

import timm
import torch
from common import machine, whole_numbers
from torch import nn

from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.cpu_convolutions import fast_convolutions

CPU = torch.device("cpu")
BATCH = {64: 64, 224: 8}


def main() -> None:
    """Time each network, or layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="resnet18,tf_efficientnet_lite0")
    parser.add_argument("--sizes", type=whole_numbers, default=[64, 224])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; chosen for the machine when not given")
    parser.add_argument(
        "--output_stride", type=int, help="as segmenters have it, 16 or 8; the network's own by default"
    )
    arguments = parser.parse_args()
    options = {} if arguments.output_stride is None else {"output_stride": arguments.output_stride}
    print(machine())
    print("| network | px | precision | images/CPU-s, torch's | fast | times as fast |\n|---|---|---|---|---|---|")
    for name in arguments.backbones.split(","):
        for size in arguments.sizes:
            network = timm.create_model(name, num_classes=0, **options).train()
            freeze_statistics(network)  # as from pretrained weights
            compare(f"{name} | {size}", network, size, BATCH.get(size, 16), arguments.rounds)


def compare(title: str, network: nn.Module, size: int, batch: int, rounds: int) -> None:
    """Print a row for each precision."""
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    for precision in ("fp32", "bf16"):
        ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "torch": nullcontext,
            "fast": lambda: fast_convolutions(CPU),
        }
        least = dict.fromkeys(ways, float("inf"))
        for turn in range(rounds + 1):  # the first one allocates memory
            for name, way in ways.items():
                began = time.process_time()
                with way():
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                        features = network(images)
                    features.float().square().mean().backward()
                taken = time.process_time() - began
                least[name] = min(least[name], taken) if turn else least[name]
                network.zero_grad(set_to_none=True)
        rates = {name: batch / seconds for name, seconds in least.items()}
        gain = rates["fast"] / rates["torch"]
        print(f"| {title} | {precision} | {rates['torch']:.0f} | {rates['fast']:.0f} | {gain:.2f} |", flush=True)


if __name__ == "__main__":
    run_cli(main)
