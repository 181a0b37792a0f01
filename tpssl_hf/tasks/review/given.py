"""Labels that a finetuning was given and may be wrong: networks that had not seen them answered otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpssl_hf.tasks.classify.folds import ANSWERS, ROWS, read_folds
from tpssl_hf.tasks.predict.labels_of_run import LABELS, LabelsOfRun, UnknownLabels, labels_of_run

MOST = 500  # labels that are shown; the rest of a worse list is better labeled anew


@dataclass(frozen=True)
class Suspects:
    """Given labels that were not found while they were held out, the least probable first.

    Attributes:
        rows: (M,) int64 of their data set.
        confidences: (M,) probability of the given label, in [0, 1].
        answers: (M,) int64, the class that was answered instead.
        answer_confidences: (M,) its probability.
        asked: labels that were held out.
        found: how many of them were not found, of which M at most are here.
    """

    rows: np.ndarray
    confidences: np.ndarray
    answers: np.ndarray
    answer_confidences: np.ndarray
    asked: int
    found: int


def open_given(model: str, num_workers: int) -> tuple[LabelsOfRun, Suspects]:
    """Return the labels that a model was finetuned with, and which of them may be wrong.

    Args:
        model: as predict was given it; the folder of a run or its ``model/``.
        num_workers: threads that decode images.

    Raises:
        UnknownLabels: if they, or the answers of its cross-validation, are not known.
    """
    folder = Path(model).expanduser()
    run = folder if (folder / LABELS).is_file() else folder.parent
    given = labels_of_run(run, num_workers)
    return given, find_suspects(given.labels, *answers_of_run(run, given))


def answers_of_run(run: Path, given: LabelsOfRun) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (N,) of labels that were held out in turn, and the log-probabilities (N, K) answered then.

    Raises:
        UnknownLabels: if there are none, or they are no longer of these labels.
    """
    try:
        folds = read_folds(run)
        if not folds:
            raise UnknownLabels(
                "its run kept no answers to labels held out in turn, as --select best of a learner with steps does"
            )
        rows = np.concatenate([np.array(fold[ROWS], dtype=np.int64) for fold in folds])
        answers = np.concatenate([np.array(fold[ANSWERS], dtype=np.float64) for fold in folds])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownLabels(f"what its cross-validation answered cannot be read ({error})") from error
    if answers.shape != (len(rows), len(given.classes)) or not set(rows.tolist()) <= set(given.labels):
        raise UnknownLabels(f"what its cross-validation answered is not of the labels in {LABELS}")
    return rows, answers


def find_suspects(labels: dict[int, int], rows: np.ndarray, answers: np.ndarray) -> Suspects:
    """Find the labels that were answered otherwise; those of a fold that failed are none.

    Args:
        labels: row -> class number.
        rows: (N,) of the labels that were held out.
        answers: (N, K) log-probabilities, NaN where a fold failed.
    """
    finite = np.isfinite(answers).all(axis=1)
    rows, probabilities = rows[finite], np.exp(answers[finite])
    own = np.array([labels[row] for row in rows.tolist()], dtype=np.int64)
    number = np.arange(len(rows))
    best = probabilities.argmax(axis=1) if len(rows) else own
    wrong = np.flatnonzero(best != own)
    shown = wrong[np.argsort(probabilities[number, own][wrong], kind="stable")][:MOST]
    return Suspects(
        rows[shown],
        probabilities[shown, own[shown]],
        best[shown],
        probabilities[shown, best[shown]],
        asked=len(rows),
        found=len(wrong),
    )


def given_columns(given: LabelsOfRun, suspects: Suspects) -> dict[str, Any]:
    """Return the suspects as columns like those of predictions, and all labels, for the corrected file."""
    names = given.reader.names
    everything = sorted(given.labels)
    return {
        "rows": suspects.rows.tolist(),
        "files": [names[row].as_py() for row in suspects.rows.tolist()],
        "labels": [given.labels[row] for row in suspects.rows.tolist()],
        "confidences": suspects.confidences.round(4).tolist(),
        "others": suspects.answers.tolist(),
        "other_confidences": suspects.answer_confidences.round(4).tolist(),
        "asked": suspects.asked,
        "found": suspects.found,
        "all": {
            "rows": everything,
            "files": [names[row].as_py() for row in everything],
            "labels": [given.labels[row] for row in everything],
        },
    }
