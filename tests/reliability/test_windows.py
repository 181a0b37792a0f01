"""What Windows lacks is neither imported nor called: shown on Linux in a process that has it taken away."""

import builtins
import os
import pkgutil
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_runs import Forks
from PIL import Image

from tpssl_hf.training.run_dir import RunDir

ROOMS = ("files", "config", "data", "models", "training", "tasks")
MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "termios")
FUNCTIONS = ("register_at_fork", "sched_getaffinity", "fork", "pread", "preadv", "pwrite", "O_DIRECTORY")


def import_without_posix() -> None:
    """Import the package anew, and refuse it what Windows lacks; to be called in a process that ends afterwards."""
    imported = builtins.__import__

    def refuse(name: str, importer: Mapping[str, Any] | None = None, *rest: Any, **others: Any) -> Any:
        own = str((importer or {}).get("__name__"))
        if name.partition(".")[0] in MODULES and own.startswith("tpssl_hf"):
            raise ModuleNotFoundError(f"{own} imports {name}")
        return imported(name, importer, *rest, **others)

    for name in [name for name in sys.modules if name.partition(".")[0] == "tpssl_hf"]:
        del sys.modules[name]
    builtins.__import__ = refuse
    for name in FUNCTIONS:
        delattr(os, name)
    for room in ROOMS:
        for module in pkgutil.walk_packages(import_module(f"tpssl_hf.{room}").__path__, f"tpssl_hf.{room}."):
            import_module(module.name)


def work_without_posix(place: str) -> None:
    """Take a run folder, refuse it to another, save and load a checkpoint, and read an image cache."""
    import_without_posix()
    from tpssl_hf.data.image_cache import load_image_cache
    from tpssl_hf.data.sources import load_source
    from tpssl_hf.errors import InputError
    from tpssl_hf.training.checkpoint import load_latest, save_checkpoint
    from tpssl_hf.training.run_dir import RunDir

    folder = Path(place)
    with RunDir(folder / "run", {"a": 1}) as run:
        with pytest.raises(InputError, match=f'"pid": {os.getpid()}'), RunDir(folder / "run", {"a": 1}):
            pass
        save_checkpoint(run.path / "checkpoints", 1, {"model": {"weight": torch.ones(3)}}, {})
        checkpoint = load_latest(run.path / "checkpoints")
        assert checkpoint is not None and checkpoint.step == 1
    Image.new("RGB", (9, 8), (90, 120, 30)).save(folder / "a.png")
    cache, _ = load_image_cache(
        load_source(str(folder)),
        image_size=8,
        cache_budget=10**6,
        num_workers=1,
        progress=False,
        cache_dir=folder / "cache",
    )
    assert cache.is_cached and cache.gather(np.array([0]), 0).pixels.unique().tolist() == [30, 90, 120]


def test_the_package_works_without_what_windows_lacks(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    forks.call(__file__, "work_without_posix", tmp_path, [str(tmp_path / "images")])


def test_where_open_files_cannot_be_removed_the_lock_is_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, *_: object) -> None:
        raise PermissionError(f"{path} is open")

    run = RunDir(tmp_path, {"a": 1})
    run.__enter__()
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "unlink", unlink)  # another run has taken it meanwhile
        run.__exit__()
    with RunDir(tmp_path, {"a": 1}):
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()
