"""A disk that is full at some moment of a run."""

import json
import re
import shutil
from pathlib import Path

from forked_runs import Fault, Forks
from small_runs import Outcome

from tortures.counts import Count
from tortures.kills import STEPS, Task, trouble_of
from tpssl_hf.training.checkpoint import load_latest

MOMENTS: dict[str, Fault] = {
    "config": Fault("fsync", 1, "full", ".config.yaml"),
    "pixels of the cache": Fault("pixels", 5, "full"),
    "index of the cache": Fault("index", 1, "full"),
    "fsync of the cache": Fault("fsync", 1, "full", ".partial/"),
    "name of the cache": Fault("folder", 1, "full", ".partial"),
    "first log line": Fault("log", 1, "full"),
    "fourth log line": Fault("log", 4, "full"),
    "fsync of the log": Fault("position", 2, "full"),
    "first tensors": Fault("write", 1, "full", "method"),
    "second tensors": Fault("write", 2, "full", "optimizer"),
    "state": Fault("write", 2, "full", "state"),
    "manifest": Fault("write", 3, "full", "MANIFEST"),
    "fsync of tensors": Fault("fsync", 2, "full", "method.safetensors"),
    "fsync of the manifest": Fault("fsync", 2, "full", "MANIFEST"),
    "name of a checkpoint": Fault("rename", 2, "full"),
    "removal of an old one": Fault("replacing", 1, "full", "/step_2"),
    "curves": Fault("curves", 1, "full"),
    "fsync of the export": Fault("fsync", 1, "full", "/.model-"),
    "name of the export": Fault("folder", 1, "full", "/.model-"),
    "results": Fault("fsync", 1, "full", ".results.json"),
}


def fill(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Let the disk be full once (ENOSPC) in runs of a pretraining, and let them go on when it is not."""
    count = Count("a full disk", "a sentence, exit not 0, checkpoints usable, then bit-identical without leftovers")
    task = Task(forks, "pretrain", place)
    assert task.finish(place / "whole") is None
    whole = Outcome(place / "whole", STEPS)
    for number, (moment, fault) in enumerate(list(MOMENTS.items())[:limit]):
        folder = place / f"{number}"
        log = folder.with_suffix(".log")
        code = task.runs.run(task.arguments(folder), log, fault)
        said = log.read_text()
        log.unlink()
        if code <= 0 or "Traceback" in said or not re.search(r"^error: .*No space left", said, re.MULTILINE):
            count.add(moment, f"ended with {code}: {json.dumps(said[-400:])}")
            continue
        load_latest(folder / "checkpoints")
        count.add(moment, task.finish(folder) or trouble_of(folder, whole))
        shutil.rmtree(folder)
    return [count]
