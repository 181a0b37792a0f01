"""How fast does `tpssl-hf predict` label a folder of photographs, and what does a kill in the middle cost?

    python benchmarks/predict_folder.py outputs/classifier --images 10000

Makes JPEG photographs of 640 x 480 (random clouds with grain, quality 90; every 500th is the same) in a temporary
folder and labels them by the model of a finished run: at once; again with ``--accept``, which computes nothing anew;
and, in another folder, killed when half of the images are done, then continued by the same command, whose predictions
are compared with the first.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from photographs import photographs

WIDTH, HEIGHT, DIFFERENT = 640, 480, 500
RECIPE = Path(__file__).parent.parent / "recipes/predict.py"


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of all its threads.
        peak: largest resident set, GiB.
    """

    seconds: float
    cpu_seconds: float
    peak: float

    def row(self, what: str, images: int) -> str:
        """Return a row of the table."""
        speed = f"{images / self.cpu_seconds:.0f}, {images / self.seconds:.0f}" if images else "-"
        return f"| {what} | {speed} | {self.seconds:.0f} | {self.cpu_seconds:.0f} | {self.peak:.2f} GiB |"


def run(command: list[str], log: Path, kill_at: Path | None = None) -> Cost:
    """Run a command to its end, or kill it when there is a file ``kill_at``."""
    start = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while kill_at is not None and process.poll() is None and not kill_at.exists():
            time.sleep(0.05)
        if kill_at is not None and process.returncode is None:
            process.send_signal(signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code != (0 if kill_at is None else -signal.SIGKILL):
        sys.exit(f"exit code {code}: {log.read_text()[-2000:]}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)


def main() -> int:
    """Measure, print a table, and return 1 if the continued run predicts otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a finished classification")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--accept", type=float, default=0.7)
    arguments = parser.parse_args()
    count, part = arguments.images, max(1, arguments.images // 10)
    with TemporaryDirectory() as name:
        place = Path(name)
        photographs(place / "images", min(count, DIFFERENT), (WIDTH, HEIGHT))
        for number in range(DIFFERENT, count):
            os.link(place / f"images/{number % DIFFERENT:05}.jpg", place / f"images/{number:05}.jpg")
        size = sum(path.stat().st_size for path in (place / "images").iterdir()) / count
        print(f"{count:,} JPEG of {WIDTH} x {HEIGHT}, {size / 1024:.0f} kB each\n")
        base = [sys.executable, str(RECIPE), arguments.model, str(place / "images"), f"--save_every={part}"]
        whole, killed, accept = place / "whole", place / "killed", f"--accept={arguments.accept}"
        half = killed / "parts" / f"part_{count // part // 2 - 1:05d}.parquet"
        costs = {
            "whole folder": (run([*base, f"--output_dir={whole}"], place / "log"), count),
            f"again, `{accept}`": (run([*base, f"--output_dir={whole}", accept], place / "log"), 0),
            "until killed": (run([*base, f"--output_dir={killed}"], place / "log", kill_at=half), 0),
            "continued": (run([*base, f"--output_dir={killed}"], place / "log"), 0),
        }
        same = (whole / "predictions.csv").read_bytes() == (killed / "predictions.csv").read_bytes()
    print("| run | images per CPU second, per second | seconds | CPU seconds | largest resident set |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(cost.row(what, images) for what, (cost, images) in costs.items()))
    print(f"\npredictions of the continued run: {'the same bytes' if same else '**others**'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
