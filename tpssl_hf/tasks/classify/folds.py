"""Finetuning again without some of the labels, to be asked about them: what cross-validation trains."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tpssl_hf.data.labeled import part_of
from tpssl_hf.tasks.classify.data import Split
from tpssl_hf.tasks.classify.run import ClassifyRun, assemble, probabilities
from tpssl_hf.tasks.classify.selection import Folds
from tpssl_hf.tasks.finetuning import steps_of
from tpssl_hf.training.loop import agreed
from tpssl_hf.training.nonfinite_guard import NonFiniteStepsError
from tpssl_hf.training.run_dir import CHECKPOINTS, RunDir, StopSignals

FILE = f"{CHECKPOINTS}/folds.json"  # beside the checkpoints that it belongs to
ROWS, ANSWERS = "rows", "log_probabilities"
SMALLEST = 1e-30  # probability that is told from 0


def train_folds(run: ClassifyRun, run_dir: RunDir | None, signals: StopSignals) -> float | None:
    """Finetune from the same start once for each fold, with the labels of the other folds; all processes take part.

    The log-probabilities of the held-out labels are kept after each fold, so that an interrupted run goes on with the
    next one. Finished networks are not touched.

    Returns:
        Seconds of all folds; None where a signal stopped them.
    """
    folds = run.folds
    if folds is None or folds.steps == 0:  # a head that is fitted in seconds is compared without
        return 0.0
    done = read_folds(Path(run.args.run.output_dir))
    for number in range(len(done), folds.count):
        began = time.perf_counter()
        answers = _train_fold(run, folds, number, run_dir, signals)
        if answers is None:
            return None
        rows = run.data.store.rows[run.data.labeled.indices[folds.numbers == number]].tolist()
        done.append({ROWS: rows, ANSWERS: answers.round(6).tolist(), "seconds": time.perf_counter() - began})
        if run_dir:
            run_dir.write_json(FILE, done)
        run.accelerator.free_memory()
    return float(sum(fold["seconds"] for fold in done))


def read_folds(folder: Path) -> list[dict[str, Any]]:
    """Return ``rows``, ``log_probabilities`` and ``seconds`` of the folds that are done."""
    file = folder / FILE
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return found


def answers_of_folds(folder: Path, folds: Folds) -> np.ndarray:
    """Return the log-probabilities (N, K) of each label while it was held out, NaN where a fold failed."""
    done = [np.array(fold[ANSWERS], dtype=np.float64) for fold in read_folds(folder)]  # null becomes NaN
    answers = np.full((len(folds.numbers), done[0].shape[1]), np.nan)
    for number, found in enumerate(done):
        answers[folds.numbers == number] = found
    return answers


def _train_fold(
    run: ClassifyRun, folds: Folds, number: int, run_dir: RunDir | None, signals: StopSignals
) -> np.ndarray | None:
    """Return the log-probabilities (n, K) of a fold, n = 0 on other processes; None where a signal stopped it."""
    labeled, held = run.data.labeled, np.flatnonzero(folds.numbers == number)
    kept = part_of(labeled, np.flatnonzero(folds.numbers != number))
    args = replace(run.args, optim=replace(run.args.optim, max_steps=folds.steps))
    fold = assemble(args, run.accelerator, replace(run.data, labeled=kept))
    title = f"without fold {number + 1} of {folds.count}"
    try:
        for step in steps_of(fold, 0, shown=run_dir is not None, title=title):
            if step.may_stop and agreed(run.accelerator, bool(signals.requested)):
                return None
    except NonFiniteStepsError:  # whoever fails knows no label; what was finetuned with all labels did not
        return np.full((len(held), len(labeled.class_names)), np.nan)
    if run_dir is None:
        return np.zeros((0, len(labeled.class_names)))
    split = Split(run.data.store, labeled.indices[held], labeled.labels[held])
    answers: np.ndarray = np.log(np.maximum(probabilities(fold, fold.method.deployed, split), SMALLEST))
    return answers
