"""Selective prediction: which predictions may be taken as they are, and which are to be looked at."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tpssl_hf.evaluation.calibration import Calibration, Selection, choose_threshold, labels_to_promise
from tpssl_hf.files.atomic import replacing_file
from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.expect import NOT_KNOWN

ACCEPTED, TO_REVIEW = "accepted.csv", "to_review.csv"
COLUMNS = ["row", "file", "label", "confidence", "second_label", "margin"]


def split_predictions(
    folder: Path, calibration: Calibration | None, accuracy: float, say: Callable[[str], Any]
) -> dict[str, Any]:
    """Write ``accepted.csv`` and ``to_review.csv``, the latter with the least confident first, and say what they hold.

    Nothing is accepted where the held-out labels do not suffice to promise the accuracy.

    Args:
        folder: of the results.
        calibration: the held-out labels of the classifier, or None.
        accuracy: above 0 and below 1, of what is accepted.
        say: called with each sentence for people.

    Returns:
        The entry ``accept`` of ``results.json``: ``accuracy`` that was asked for, ``accepted`` and ``to_review``
        predictions, and of the chosen :class:`Selection` all, or nothing.
    """
    selection = None
    if calibration is not None:
        confidences, right = np.array(calibration.confidences), np.array(calibration.right)
        selection = choose_threshold(confidences, right, accuracy)
    table = pq.read_table(folder / f"{Classification.name}.parquet", columns=COLUMNS)
    taken = is_accepted(table, selection.threshold if selection else None)
    accepted, others = table.filter(pa.array(taken)), table.filter(pa.array(~taken))
    for name, part in ((ACCEPTED, accepted), (TO_REVIEW, others.sort_by("confidence"))):
        with replacing_file(folder / name) as path:
            pyarrow.csv.write_csv(part, path)
    say(_sentence(calibration, selection, accuracy, len(accepted), len(others)))
    chosen = {f"held_out_{name}": value for name, value in asdict(selection).items()} if selection else {}
    threshold = {"threshold": chosen.pop("held_out_threshold", None)}
    return {"accuracy": accuracy, "accepted": len(accepted), "to_review": len(others), **threshold, **chosen}


def is_accepted(table: pa.Table, threshold: float | None) -> np.ndarray:
    """Return which rows of a table of predictions are as confident as the threshold, (N,) bool; none for None."""
    confidences = table["confidence"].to_numpy()
    taken: np.ndarray = confidences >= (np.inf if threshold is None else threshold)
    return taken


def _sentence(
    calibration: Calibration | None, selection: Selection | None, accuracy: float, accepted: int, others: int
) -> str:
    if calibration is None:
        return f"no prediction is accepted: {NOT_KNOWN}; {TO_REVIEW} has all {others:,}, least confident first"
    labels = f"{len(calibration.right)} {calibration.held_out}"
    if selection is None:
        return (
            f"no prediction is accepted: the {labels} do not suffice to promise an accuracy of {100 * accuracy:g} % "
            f"for any part, which takes {labels_to_promise(accuracy)} answered without an error, or more with some"
        )
    share, right, low = (100 * value for value in (selection.coverage, selection.accuracy, selection.low))
    return (
        f"{ACCEPTED}: {accepted:,} of {accepted + others:,} predictions, with a confidence from "
        f"{selection.threshold:.3g}; of the {labels}, {share:.0f} % are as confident, and "
        f"{right:.1f} % of these right, at 95 % certainty no less than {low:.1f} %; "
        f"{TO_REVIEW}: the other {others:,}, least confident first"
    )
