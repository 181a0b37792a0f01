"""Runs of the recipe that die, or wait to be stopped, at an exact point.

As a script it is a process that imports the recipe once and then forks one child per run, because importing takes far
longer than such a run. It reads one request a line and answers with one line. It computes nothing itself, so that no
thread exists when it forks.
"""

import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "target_pretrain.py"
CLASSIFY = ROOT / "recipes" / "ssl_classify.py"
SEGMENT = ROOT / "recipes" / "ssl_segment.py"
WAIT = 120.0  # seconds after which a run is taken to hang


@dataclass(frozen=True)
class Fault:
    """What happens to a run: at call number ``call`` of ``point``, counting calls whose first argument has ``match``.

    ``kill`` is SIGKILL; ``tear`` lets half of the data through first; ``wait`` makes the file ``paused`` beside the
    log and goes on once there is a file ``go``.
    """

    point: str
    call: int
    do: Literal["kill", "tear", "wait"] = "kill"
    match: str = ""


class Runs:
    """The forking process, seen from the test."""

    def __init__(self, recipe: Path = RECIPE) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
        }
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
            environment.pop(name, None)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(recipe)],
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

    def start(self, arguments: list[str], log: Path, *faults: Fault, environment: dict[str, str] | None = None) -> int:
        """Start the recipe with ``arguments``, output in ``log``; returns the process id."""
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {"arguments": arguments, "log": str(log), "faults": [asdict(fault) for fault in faults]}
        return int(self._ask({**request, "environment": environment or {}}))

    def wait(self, pid: int, seconds: float = WAIT) -> int:
        """Return the exit code of a run, negative for the signal that killed it; a run that hangs is killed."""
        answer = self._ask({"wait": pid, "seconds": seconds})
        assert answer is not None, f"the run was still alive after {seconds:.0f} s"
        return int(answer)

    def run(self, arguments: list[str], log: Path, *faults: Fault, environment: dict[str, str] | None = None) -> int:
        """Start the recipe and return its exit code."""
        return self.wait(self.start(arguments, log, *faults, environment=environment))

    def start_group(self, arguments: list[str], logs: list[Path], faults: dict[int, Fault] | None = None) -> list[int]:
        """Start one process per log as one group, as a launcher does, with a fault in some of them by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        world |= {"WORLD_SIZE": str(len(logs)), "LOCAL_WORLD_SIZE": str(len(logs))}
        return [
            self.start(
                arguments,
                log,
                *([faults[rank]] if faults and rank in faults else []),
                environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, log in enumerate(logs)
        ]

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def wait_for(path: Path) -> None:
    end = time.monotonic() + WAIT
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


# From here on: the forking process.

# What torch and the recipe import only when they need it; before the fork it costs once.
IMPORTED_LATE = ("torch._dynamo", "torch.distributed.nn.functional", "torch.nn.parallel.distributed")


def load_recipe(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def points(recipe: Any) -> dict[str, tuple[Any, str, Literal["before", "after"]]]:
    """Where a run can be hit: name -> owner, attribute, and whether before or after the call."""
    from tpssl_hf import checkpoint, launch
    from tpssl_hf.methods.pretrain.anchor import _SquaredDistance
    from tpssl_hf.methods.pretrain.byol import BYOL
    from tpssl_hf.optim import LARS
    from tpssl_hf.rundir import RunDir

    return {
        "forward": (BYOL, "forward", "after"),
        "backward": (_SquaredDistance, "backward", "before"),  # called by autograd
        "optimizer": (LARS, "step", "before"),  # and then once the first tensors have moved
        "teacher": (BYOL, "after_step", "after"),
        "log": (RunDir, "append", "before"),
        "write": (checkpoint, "_write", "before"),
        "rename": (checkpoint, "_move_into_place", "before"),
        "replace": (os, "replace", "after"),
        "saved": (launch, "save_checkpoint", "after"),
        "curves": (recipe, "draw_curves", "before"),
        "results": (RunDir, "write_json", "before"),
    }


def inject(fault: Fault, recipe: Any, log: Path) -> None:
    owner, name, when = points(recipe)[fault.point]
    original = getattr(owner, name)
    calls = 0

    def hit(*args: Any) -> None:
        nonlocal calls
        calls += fault.match in str(args[0])
        if calls != fault.call or fault.match not in str(args[0]):
            return
        if fault.do == "wait":
            log.with_suffix(".paused").touch()
            wait_for(log.with_suffix(".go"))
            return
        if fault.do == "tear":
            tear(fault.point, *args)
        if fault.point == "optimizer":
            die_after("_foreach_sub_")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def patched(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            hit(*args)
        result = original(*args, **kwargs)
        if when == "after":
            hit(*args)
        return result

    setattr(owner, name, staticmethod(patched) if fault.point == "backward" else patched)


def die_after(name: str) -> None:
    """Let torch's function ``name`` be the last thing this process does."""
    import torch

    original = getattr(torch, name)

    def last(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(torch, name, last)


def tear(point: str, *args: Any) -> None:
    """Do half of a write to a file."""
    if point == "write":
        path, data = args
        path.write_bytes(data[: len(data) // 2])
    else:
        run, entry = args
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(json.dumps(dict(entry)).encode()[:40])


def run_child(request: dict[str, Any], recipe: Any) -> int:
    log = Path(request["log"])
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(request["environment"])
    sys.argv = [recipe.__file__, *request["arguments"]]
    try:
        for fault in request["faults"]:
            inject(Fault(**fault), recipe, log)
        recipe.leave(recipe.main)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 1


def wait_child(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def serve() -> None:
    recipe = load_recipe(Path(sys.argv[1]))
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    for name in (
        "draw_views",
        "draw_curves",
        "draw_pseudo_labels",
        "draw_predictions",
    ):  # half of the time of such a run
        setattr(recipe, name, lambda path, *_, **__: path.touch())
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    threads = [name for name in threads if name != "jemalloc_bg_thd"]  # pyarrow's, which knows about forks
    assert len(threads) == 1, f"threads would be lost in the children: {threads}"
    gc.collect()
    gc.freeze()  # or each child walks through, and so copies, all of what is shared
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: Any = wait_child(request["wait"], request["seconds"])
        elif (answer := os.fork()) == 0:
            code = 1
            try:
                code = run_child(request, recipe)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # tidying up so many modules takes seconds


if __name__ == "__main__":
    serve()
