"""Does the recipe choose its threads well when every core has something else to do?

    python benchmarks/busy_machine.py --rounds 5 --steps 2

One child process per setting, because settings are read when torch is imported, and one busy process per core. The
children take turns; a child that waits does nothing.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import warnings
from contextlib import ExitStack
from typing import IO, Any

from tpssl_hf.process import prepare_process, run_cli

OURS = "ours"
SETTINGS = {
    OURS: {},
    "1 thread, passive": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "2 threads, spinning": {"OMP_NUM_THREADS": "2"},
}
READ_AT_IMPORT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "KMP_BLOCKTIME")
IMAGE_SIZE, BATCH = 64, 64


def child(setting: str, steps: int) -> None:
    """Make ``steps`` steps for every line on standard input and answer with images per second."""
    if setting == OURS:
        print(prepare_process([]), flush=True)
    else:
        print(setting, flush=True)
    from common import images, our_step, timed

    warnings.filterwarnings("ignore")
    with images(None, IMAGE_SIZE) as store:
        step = our_step(store, IMAGE_SIZE, BATCH)
        stream = step.batches()
        step.run(1, stream)
        for _ in sys.stdin:
            wall = timed(lambda: step.run(steps, stream))[1]
            print(BATCH * steps / wall, flush=True)
        stream.close()


def occupy() -> None:
    """Keep one core busy for ever."""
    while True:
        pass


class Child:
    """A process of this script that measures one setting."""

    def __init__(self, setting: str, steps: int) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in READ_AT_IMPORT}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", setting, "--steps", str(steps)],
            env=environment | SETTINGS[setting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.asks: IO[str] = self.process.stdin  # type: ignore[assignment]
        self.answers: IO[str] = self.process.stdout  # type: ignore[assignment]
        self.chosen = self.answers.readline().strip()

    def measure(self) -> float:
        """Return the images per second of one turn."""
        self.asks.write("\n")
        self.asks.flush()
        return float(self.answers.readline())

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: Any) -> None:
        self.asks.close()
        self.process.wait()


def main() -> int:
    """Let the settings take turns on a busy machine and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--busy", type=int, help="busy processes; one per core by default")
    parser.add_argument("--child", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps)
        return 0
    busy = arguments.busy if arguments.busy is not None else len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name, arguments.steps)) for name in SETTINGS}
        print(f"ours is: {children[OURS].chosen}", flush=True)
        for measured in children.values():  # the first turn waits for the imports; it is not counted
            measured.measure()
        neighbors = [multiprocessing.Process(target=occupy, daemon=True) for _ in range(busy)]
        for neighbor in neighbors:
            neighbor.start()
            stack.callback(neighbor.terminate)
        rounds = [{name: one.measure() for name, one in children.items()} for _ in range(arguments.rounds)]
    print(f"\nBYOL, resnet18, {IMAGE_SIZE} px, batch {BATCH}, {busy} busy processes, {arguments.rounds} rounds\n")
    print("| setting | images/s, median (min..max) | ours / this one, median of rounds (min..max) |")
    print("| --- | --- | --- |")
    for name in SETTINGS:
        rates = [row[name] for row in rounds]
        ratios = [row[OURS] / row[name] for row in rounds]
        rate = f"{statistics.median(rates):.1f} ({min(rates):.1f}..{max(rates):.1f})"
        print(f"| {name} | {rate} | {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) |")
    return 0


if __name__ == "__main__":
    run_cli(main)
