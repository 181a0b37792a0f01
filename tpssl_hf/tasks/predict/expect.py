"""What is to be expected of all predictions of a classifier together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet as pq

from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.model import FinishedModel

NOT_KNOWN = "no labels were held out of its finetuning (calibration.json beside the weights would hold them)"


def what_to_expect(folder: Path, model: FinishedModel, say: Callable[[str], Any]) -> dict[str, Any]:
    """Say whether confidences are calibrated and what accuracy is to be expected; returns it for ``results.json``.

    Args:
        folder: of the results.
        model: the classifier that made them.
        say: called with each sentence for people.
    """
    confidences = pq.read_table(folder / f"{Classification.name}.parquet", columns=["confidence"])["confidence"]
    mean = pyarrow.compute.mean(confidences).as_py()
    facts: dict[str, Any] = {"temperature": None, "expected_accuracy": None, "mean_confidence": mean}
    if model.calibration is None:
        say(f"confidences are not calibrated, and what accuracy to expect is not known: {NOT_KNOWN}")
        return facts
    say(model.calibration.sentence() + ("" if mean is None else f"; mean confidence here {100 * mean:.1f} %"))
    expected = model.calibration.expected_accuracy()
    return facts | {"temperature": model.calibration.temperature, "expected_accuracy": expected}
