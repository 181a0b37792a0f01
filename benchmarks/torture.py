"""Kill runs, fill disks, damage files and hand in hostile ones, and count how often the promises hold.

    python benchmarks/torture.py kills random_kills

Each runs small embedded data in one tree of processes in a temporary folder, which it removes. ``--limit`` tries fewer
of each. It ends with 1 if a promise was broken.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the forked runs are the tests' own
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from forked_runs import Forks
from tortures import damage, disk, endurance, images, kills, numbers, races
from tortures.counts import Count

PATIENCE = 1800.0  # seconds for a run beside other programs
TORTURES: dict[str, Callable[[Forks, Path, int | None], Iterable[Count]]] = {
    "kills": kills.named,
    "random_kills": kills.at_random,
    "damage": damage.mutate,
    "hostile": damage.hand_in,
    "images": images.zoo,
    "races": races.race,
    "disk": disk.fill,
    "numbers": numbers.put_in,
    "refusals": disk.refuse,
    "endurance": endurance.last,
    "resumptions": endurance.resumed,
}


def main() -> int:
    """Print a table for each torture asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torture", nargs="+", choices=sorted(TORTURES), help="what to do")
    parser.add_argument("--limit", type=int, help="try only so many of each; minutes of endurance and resumptions")
    args, broken = parser.parse_args(), []
    forks = Forks(PATIENCE)
    try:
        for name in args.torture:
            began = time.perf_counter()
            print(f"\n{name}\n\n| tried | promise | kept |\n| --- | --- | --- |")
            with TemporaryDirectory() as place:
                for count in TORTURES[name](forks, Path(place), args.limit):
                    print(count.row(), flush=True)
                    broken += [f"{count.what}: {sentence}" for sentence in count.broken]
            print(f"\n{time.perf_counter() - began:.0f} s")
    finally:
        forks.close()
    print("".join(f"\nbroken: {sentence}" for sentence in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
