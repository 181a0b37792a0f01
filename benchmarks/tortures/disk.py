"""A disk that is full, failing, read-only or not ours at some moment of a run."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from forked_runs import Fault, Forks
from small_runs import Outcome

from tortures.counts import Count
from tortures.kills import STEPS, Task, trouble_of
from tpssl_hf.training.checkpoint import load_latest

MOMENTS: dict[str, Fault] = {
    "config": Fault("fsync", 1, "ENOSPC", ".config.yaml"),
    "pixels of the cache": Fault("pixels", 5, "ENOSPC"),
    "index of the cache": Fault("index", 1, "ENOSPC"),
    "fsync of the cache": Fault("fsync", 1, "ENOSPC", ".partial/"),
    "name of the cache": Fault("folder", 1, "ENOSPC", ".partial"),
    "first log line": Fault("log", 1, "ENOSPC"),
    "fourth log line": Fault("log", 4, "ENOSPC"),
    "fsync of the log": Fault("position", 2, "ENOSPC"),
    "first tensors": Fault("write", 1, "ENOSPC", "method"),
    "second tensors": Fault("write", 2, "ENOSPC", "optimizer"),
    "state": Fault("write", 2, "ENOSPC", "state"),
    "manifest": Fault("write", 3, "ENOSPC", "MANIFEST"),
    "fsync of tensors": Fault("fsync", 2, "ENOSPC", "method.safetensors"),
    "fsync of the manifest": Fault("fsync", 2, "ENOSPC", "MANIFEST"),
    "name of a checkpoint": Fault("rename", 2, "ENOSPC"),
    "removal of an old one": Fault("replacing", 1, "ENOSPC", "/step_2"),
    "curves": Fault("curves", 1, "ENOSPC"),
    "fsync of the export": Fault("fsync", 1, "ENOSPC", "/.model-"),
    "name of the export": Fault("folder", 1, "ENOSPC", "/.model-"),
    "results": Fault("fsync", 1, "ENOSPC", ".results.json"),
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
        if trouble := no_sentence(code, said) or ("No space left" not in said and f"said {said[-400:]}") or None:
            count.add(moment, trouble)
            continue
        load_latest(folder / "checkpoints")
        count.add(moment, task.finish(folder) or trouble_of(folder, whole))
        shutil.rmtree(folder)
    return [count]


REFUSALS = ("EIO", "EROFS", "EACCES")
TASKS, MOMENTS_EACH = ("pretrain", "classify", "segment"), 20


def refuse(forks: Forks, place: Path, limit: int | None) -> Iterator[Count]:
    """Let the system refuse a call that writes, at moments spread over all such calls, and go on when it does not."""
    for name in TASKS:
        task = Task(forks, name, place / name)
        whole, labels = calls_of(task, place / name / "whole")
        for number, error in enumerate(REFUSALS):
            ended = Count(f"{error}, {name}, at moments of {len(labels)} writing calls", "a sentence, exit not 0")
            kept = Count("the runs that ended so", "checkpoints usable, then bit-identical without leftovers")
            for moment in spread(len(labels), number)[:limit]:
                folder, what = place / name / f"{error}-{moment}", f"{moment}, {labels[moment - 1]}"
                log = folder.with_suffix(".log")
                fault = Fault("disk", moment, error, f"/{name}/{folder.name}")
                code = task.runs.run(task.arguments(folder), log, fault)
                ended.add(what, no_sentence(code, log.read_text()))
                load_latest(folder / "checkpoints")
                kept.add(what, task.finish(folder) or trouble_of(folder, whole))
                shutil.rmtree(folder, ignore_errors=True)
            yield from (ended, kept)


def no_sentence(code: int, said: str) -> str | None:
    """Say what is wrong with how a run ended that should have ended by a sentence."""
    good = code > 0 and "Traceback" not in said and re.search(r"^error: .", said, re.MULTILINE)
    return None if good else f"ended with {code}: {json.dumps(said[-600:])}"


def calls_of(task: Task, folder: Path) -> tuple[Outcome, list[str]]:
    """Run to the end; returns the outcome and what each writing call was about."""
    log = folder.with_suffix(".log")
    assert task.runs.run(task.arguments(folder), log, Fault("disk", 0, "EIO", str(folder))) == 0, log.read_text()
    return Outcome(folder, STEPS), log.with_suffix(".calls").read_text().replace(str(folder), "").splitlines()


def spread(calls: int, shift: int) -> list[int]:
    """Return numbers of calls from the first to the last, others for another ``shift``."""
    return sorted(
        {1 + round((number + shift / len(REFUSALS)) * calls / MOMENTS_EACH) for number in range(MOMENTS_EACH)}
    )
