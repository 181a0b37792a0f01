"""What is to be expected of all predictions of a model together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import pyarrow.parquet as pq

from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.evaluation.multilabel import sigmoid
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration, logit
from tpssl_hf.files.json_file import read_json
from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.model import FinishedModel
from tpssl_hf.training.run_dir import RESULTS

MODEL = "model"  # the folder of a run that its model is in
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
    if not isinstance(model.calibration, Calibration):
        say(f"confidences are not calibrated, and what accuracy to expect is not known: {NOT_KNOWN}")
        return facts
    say(model.calibration.sentence() + ("" if mean is None else f"; mean confidence here {100 * mean:.1f} %"))
    expected = model.calibration.expected_accuracy()
    return facts | {"temperature": model.calibration.temperature, "expected_accuracy": expected}


def thresholds_to_expect(model: FinishedModel, say: Callable[[str], Any]) -> dict[str, Any]:
    """Say whether the confidences of several labels an image are calibrated; returns it for ``results.json``.

    Args:
        model: a classifier with thresholds.
        say: called with each sentence for people.

    Returns:
        ``temperature``, and ``thresholds``: by label, from which confidence on an image is given it.
    """
    found, temperature = model.calibration, None
    if isinstance(found, MultilabelCalibration):
        temperature = found.temperature
        say(found.sentence())
    else:
        say(f"confidences are not calibrated: {NOT_KNOWN}")
    moved = sigmoid(logit(np.array(model.thresholds)) / (temperature or 1.0)).tolist()
    return {"temperature": temperature, "thresholds": dict(zip(model.class_names, moved, strict=True))}


def score_of_run(model: FinishedModel, say: Callable[[str], Any]) -> dict[str, Any]:
    """Say what a segmenter scored on the test images of its run; returns it for ``results.json``.

    Args:
        model: the segmenter, of a run's folder or published with the run's results.
        say: called with each sentence for people.
    """
    place = model.folder.parent if model.folder.name == MODEL else model.folder
    try:
        results = read_json(place / RESULTS)
        if results["recipe"] != "ssl_segment":
            raise KeyError("recipe")
        score = {name: float(results["metrics"][name]) for name in ("mean_iou", "pixel_accuracy")}
        images = int(results["test"]["images"])
    except (OSError, ValueError, KeyError, TypeError):  # other origins have other files of that name, or none
        say("what mean IoU to expect is not known: no score on test images came with the segmenter")
        return {"test_score": None}
    say(
        f"on {images:,} test images of its run the segmenter had a mean IoU of {100 * score['mean_iou']:.1f} %, with "
        f"{100 * score['pixel_accuracy']:.1f} % of the pixels right; expect about that on images like those"
    )
    return {"test_score": {**score, "images": images}}
