"""Two runs that are started in one folder at the same instant."""

import os
import time
from pathlib import Path

from forked_runs import Forks

from tortures.counts import Count
from tpssl_hf.errors import InputError
from tpssl_hf.training.run_dir import RunDir

HELD, REFUSED, OTHER = 0, 2, 1
LONGEST = 20.0  # seconds that a folder is kept


def claim(folder: Path, at: float) -> int:
    """Take a folder at a given time and keep it until there is a file ``go``; returns how that ended."""
    while time.monotonic() < at:
        pass
    try:
        with RunDir(folder, {"seed": 0}):
            while not (folder / "go").exists() and time.monotonic() < at + LONGEST:
                time.sleep(0.01)
        return HELD
    except InputError:
        return REFUSED


def start(folder: Path, at: float) -> int:
    """Fork a process that takes a folder; returns its id."""
    if (pid := os.fork()) == 0:
        code = OTHER
        try:
            code = claim(folder, at)
        finally:
            os._exit(code)
    return pid


def wait_for_one(pids: list[int]) -> tuple[int, int]:
    """Wait until one of some children ends; returns its id and status."""
    while True:
        for pid in pids:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return ended, status
        time.sleep(0.005)


def race(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Let two processes take the same folder, every second time one that a killed run has left locked."""
    count = Count("two runs started in one folder at the same instant", "one runs, the other is refused")
    for number in range(limit or 50):
        folder = place / f"{number}"
        if number % 2:
            folder.mkdir()
            (folder / "run.lock").write_text(' {"pid": 1}')
        at = time.monotonic() + 0.05
        pids = [start(folder, at) for _ in range(2)]
        first, status = wait_for_one(pids)
        (folder / "go").touch()
        pids.remove(first)
        codes = sorted(os.waitstatus_to_exitcode(one) for one in (status, os.waitpid(pids[0], 0)[1]))
        count.add(f"{number}", None if codes == [HELD, REFUSED] else f"ended with {codes}")
    return [count]
