"""Processes for tests: runs of a recipe that die or wait at an exact point, and functions that two do at once.

All are forked from one process (forking.py) that has imported everything, because importing takes far longer than
what they do.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "target_pretrain.py"
CLASSIFY = ROOT / "recipes" / "ssl_classify.py"
SEGMENT = ROOT / "recipes" / "ssl_segment.py"
DATA = {CLASSIFY: "digits", SEGMENT: "digit_scenes"}  # what their tests read, made before the first fork
WAIT = 120.0  # seconds after which a run is taken to hang


@dataclass(frozen=True)
class Fault:
    """What happens to a run: at call number ``call`` of ``point``, counting calls whose first argument has ``match``.

    ``kill`` is SIGKILL; ``tear`` lets half of the data through first; ``wait`` makes the file ``paused`` beside the
    log and goes on once there is a file ``go``; ``nan`` makes what the call returns no numbers; anything else is the
    name of the error that the system gives, ``ENOSPC`` say. The point ``disk`` is every call that writes where
    ``match`` is part of the path, see :class:`failing_disk.FailingDisk`.
    """

    point: str
    call: int
    do: Literal["kill", "tear", "wait", "nan", "ENOSPC", "EIO", "EROFS", "EACCES"] = "kill"
    match: str = ""


class Forks:
    """The forking process, seen from the test.

    Args:
        patience: seconds after which a child is taken to hang.
    """

    def __init__(self, patience: float = WAIT) -> None:
        self._patience = patience
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
        }
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
            environment.pop(name, None)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """End the process and whatever it has forked."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        assert self._server.wait(WAIT) == 0
        assert self._server.stdout is not None
        self._server.stdout.close()

    def start(self, request: dict[str, Any], log: Path, environment: dict[str, str]) -> int:
        """Fork a child that does what ``request`` says, output in ``log``; returns the process id."""
        log.parent.mkdir(parents=True, exist_ok=True)
        return int(self._ask(request | {"log": str(log), "environment": environment}))

    def wait(self, pid: int, seconds: float | None = None) -> int:
        """Return the exit code of a child, negative for the signal that killed it; one that hangs is killed."""
        seconds = self._patience if seconds is None else seconds
        answer = self._ask({"wait": pid, "seconds": seconds})
        assert answer is not None, f"the process was still alive after {seconds:.0f} s"
        return int(answer)

    def call(self, file: str, function: str, folder: Path, *arguments: list[Any], data: str | None = None) -> None:
        """Let processes call ``function`` of the test module ``file``, one for each of ``arguments``, all at once."""
        logs = [folder / f"{function}_{number}.log" for number in range(len(arguments))]
        shared = {"file": file, "function": function, "data": data}
        requests = [{**shared, "arguments": given} for given in arguments]
        pids = [self.start(request, log, {}) for request, log in zip(requests, logs, strict=True)]
        codes = [self.wait(pid) for pid in pids]
        assert not any(codes), "\n".join(log.read_text() for log in logs)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


class Runs:
    """Runs of one recipe, forked from a process that has imported it."""

    def __init__(self, forks: Forks, recipe: Path = RECIPE) -> None:
        self.forks, self.recipe = forks, recipe
        self.wait = forks.wait

    def start(self, arguments: list[str], log: Path, *faults: Fault, environment: dict[str, str] | None = None) -> int:
        """Start the recipe with ``arguments``, output in ``log``; returns the process id."""
        request = {"recipe": str(self.recipe), "arguments": arguments, "faults": [asdict(fault) for fault in faults]}
        request["data"] = DATA.get(self.recipe)
        return self.forks.start(request, log, environment or {})

    def run(self, arguments: list[str], log: Path, *faults: Fault, environment: dict[str, str] | None = None) -> int:
        """Start the recipe and return its exit code."""
        return self.wait(self.start(arguments, log, *faults, environment=environment))

    def start_group(self, arguments: list[str], logs: list[Path], faults: dict[int, Fault] | None = None) -> list[int]:
        """Start one process per log as one group, as a launcher does, with a fault in some of them by rank."""
        given = [[faults[rank]] if faults and rank in faults else [] for rank in range(len(logs))]
        return [
            self.start(arguments, log, *own, environment=world)
            for log, own, world in zip(logs, given, worlds(len(logs)), strict=True)
        ]


def worlds(size: int) -> list[dict[str, str]]:
    """Return what a launcher tells each process of a group through its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def wait_for(path: Path) -> None:
    end = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)
