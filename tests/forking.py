"""The process from which those of forked_runs.py are forked, one for each request.

It imports the recipes once, reads one request a line and answers with one line. It computes next to nothing itself, so
that no thread exists when it forks.
"""

import errno
import functools
import gc
import importlib.util
import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Literal

from failing_disk import FailingDisk
from forked_runs import CLASSIFY, RECIPE, SEGMENT, Fault, wait_for

# What torch, the recipes and the tests import only when they need it; before the fork it costs once.
IMPORTED_LATE = ("torch._dynamo", "torch.distributed.nn.functional", "torch.nn.parallel.distributed")
IMPORTED_LATE += ("sklearn.datasets", "sklearn.model_selection", "pytest")
DRAWN = ("draw_views", "draw_curves", "draw_pseudo_labels", "draw_predictions")  # half of the time of such a run


def load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def points(recipe: Any) -> dict[str, tuple[Any, str, Literal["before", "after"]]]:
    """Where a run can be hit: name -> owner, attribute, and whether before or after the call."""
    from accelerate import Accelerator

    from tpssl_hf.data import image_cache_writer
    from tpssl_hf.evaluation import features
    from tpssl_hf.files import atomic
    from tpssl_hf.methods.pretrain.anchor import _SquaredDistance
    from tpssl_hf.methods.pretrain.byol import BYOL
    from tpssl_hf.tasks.classify import report as classified
    from tpssl_hf.tasks.pretrain import report as adapted
    from tpssl_hf.tasks.segment import report as segmented
    from tpssl_hf.training import checkpoint, checkpoint_manager
    from tpssl_hf.training.nonfinite_guard import NonFiniteGuard
    from tpssl_hf.training.optim import LARS
    from tpssl_hf.training.run_dir import RunDir

    reports = {"target_pretrain": adapted, "ssl_classify": classified, "ssl_segment": segmented}
    return {
        "decode": (image_cache_writer, "decode_row", "before"),
        "pixels": (image_cache_writer._PixelFile, "append", "before"),
        "index": (image_cache_writer, "_write_store", "before"),
        "folder": (atomic, "swap_folder", "before"),
        "forward": (BYOL, "forward", "after"),
        "any_forward": (NonFiniteGuard, "remember_buffers", "after"),  # and then once one layer has been computed
        "backward": (_SquaredDistance, "backward", "before"),  # called by autograd
        "any_backward": (Accelerator, "backward", "before"),  # and then from within
        "checked": (NonFiniteGuard, "check", "before"),
        "shown": (features, "eval_view", "after"),
        "optimizer": (LARS, "step", "before"),  # and then once the first tensors have moved
        "after_step": (NonFiniteGuard, "after_step", "before"),
        "stepped": (NonFiniteGuard, "after_step", "after"),
        "teacher": (BYOL, "after_step", "after"),
        "log": (RunDir, "append", "before"),
        "logged": (RunDir, "append", "after"),
        "position": (RunDir, "position", "before"),
        "write": (checkpoint, "_write", "before"),
        "fsync": (os, "fsync", "before"),
        "fsynced": (os, "fsync", "after"),
        "rename": (checkpoint, "swap_folder", "before"),
        "replacing": (os, "replace", "before"),
        "replace": (os, "replace", "after"),
        "saved": (checkpoint_manager, "save_checkpoint", "after"),
        "curves": (reports[recipe.__name__], "draw_curves", "before"),
        "results": (RunDir, "write_json", "before"),
    }


def inject(fault: Fault, recipe: Any, log: Path) -> None:
    if fault.point == "disk":
        FailingDisk(fault.match, fault.call, fault.do, log.with_suffix(".calls")).attach()
        return
    owner, name, when = points(recipe)[fault.point]
    original = getattr(owner, name)
    calls, spoilt = 0, False

    def hit(*args: Any) -> None:
        nonlocal calls, spoilt
        matches = fault.match in (name_of_open_file(args[0]) if isinstance(args[0], int) else str(args[0]))
        calls += matches
        if calls != fault.call or not matches:
            return
        if fault.do == "nan":
            os.write(1, b"no numbers from here\n")
            spoilt = True
            return
        if fault.do == "wait":
            log.with_suffix(".paused").touch()
            wait_for(log.with_suffix(".go"))
            return
        if fault.do.startswith("E"):
            number = getattr(errno, fault.do)
            raise OSError(number, os.strerror(number))
        if fault.do == "tear":
            tear(fault.point, *args)
        die(fault.point, *args)

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal spoilt
        if when == "before":
            hit(*args)
        result = original(*args, **kwargs)
        if when == "after":
            hit(*args)
        if spoilt:
            spoilt = False
            return result * math.nan
        return result

    setattr(owner, name, staticmethod(patched) if fault.point == "backward" else patched)


def name_of_open_file(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def die(point: str, *args: Any) -> None:
    """End this process now, or a moment later within what it is about to do."""
    from torch.nn import functional

    from tpssl_hf.training.optim import LARS

    if point == "optimizer":
        die_after(LARS, "_step_of_one")
    elif point == "any_forward":
        die_after(functional, "conv2d")
    elif point == "any_backward":
        node = args[1].grad_fn
        for _ in range(3):
            node = node.next_functions[0][0] or node
        node.register_prehook(lambda gradients: os.kill(os.getpid(), signal.SIGKILL))
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def die_after(owner: Any, name: str) -> None:
    """Let the function ``name`` be the last thing this process does."""
    original = getattr(owner, name)

    def last(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, last)


def tear(point: str, *args: Any) -> None:
    """Do half of a write to a file."""
    if point == "write":
        path, data = args
        path.write_bytes(data[: len(data) // 2])
    else:
        run, entry = args
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(json.dumps(dict(entry)).encode()[:40])


def smooth(layer: Any, values: Any) -> Any:
    """A ReLU without its kink.

    What two processes round otherwise than one decides, differently on each kind of CPU, which way a ReLU falls whose
    input is next to zero; a gradient that is there or not is no difference of rounding any more.
    """
    from torch.nn import functional

    return functional.silu(values)


def run_child(request: dict[str, Any], recipes: dict[str, Any]) -> int:
    log = Path(request["log"])
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(request["environment"])
    try:
        import torch

        torch.nn.ReLU.forward = smooth
        if "function" in request:
            torch.set_num_threads(1)
            getattr(load_file(Path(request["file"])), request["function"])(*request["arguments"])
            return 0
        recipe = recipes[request["recipe"]]
        sys.argv = [recipe.__file__, *request["arguments"]]
        for fault in request["faults"]:
            inject(Fault(**fault), recipe, log)
        recipe.run_cli(recipe.main)
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


def prepare() -> dict[str, Any]:
    """Import the recipes, and leave out or do once what every run would do alike."""
    recipes = {str(path): load_file(path) for path in (RECIPE, CLASSIFY, SEGMENT)}
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    from tpssl_hf.data import sources
    from tpssl_hf.tasks import published_path

    published_path.IMAGES = 2  # which other libraries are asked about, one after the other
    tasks = [
        f"tpssl_hf.tasks.{task}.{part}" for task in ("pretrain", "classify", "segment") for part in ("run", "report")
    ]
    for module in map(importlib.import_module, tasks):
        for name in set(DRAWN) & set(vars(module)):
            setattr(module, name, lambda path, *_, **__: path.touch())
    for name, load in sources.EMBEDDED_LOADERS.items():
        sources.EMBEDDED_LOADERS[name] = functools.cache(load)
    return recipes


def make_data(name: str) -> None:
    """Make an embedded data set, unless it is there already."""
    from tpssl_hf.data import sources

    for split in ("train", "test"):
        sources.EMBEDDED_LOADERS[name](split)


def serve() -> None:
    recipes = prepare()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    threads = [name for name in threads if name != "jemalloc_bg_thd"]  # pyarrow's, which knows about forks
    assert len(threads) == 1, f"threads would be lost in the children: {threads}"
    gc.collect()
    gc.freeze()  # or each child walks through, and so copies, all of what is shared
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("data"):
            make_data(request["data"])
        if "wait" in request:
            answer: Any = wait_child(request["wait"], request["seconds"])
        elif (answer := os.fork()) == 0:
            code = 1
            try:
                code = run_child(request, recipes)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # tidying up so many modules takes seconds


if __name__ == "__main__":
    serve()
