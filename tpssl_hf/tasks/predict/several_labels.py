"""Predictions of a classifier whose images may have several labels: which, and the probability of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.answers import SIZES, Classification, Columns, sizes, stacked
from tpssl_hf.tasks.predict.config import PredictConfig
from tpssl_hf.tasks.predict.model import FinishedModel
from tpssl_hf.tasks.predict.read import PreparedImage

BETWEEN = ";"  # the names of an image's labels
ONLY_FOR_ONE = {  # keys of what needs one label an image, and what they do
    "accept": "promises an accuracy",
    "export": "writes one class an image",
    "push_to_hub": "publishes one class an image",
}


def refuse_keys(config: PredictConfig) -> None:
    """Refuse keys that need one label an image.

    Raises:
        InputError: naming the first.
    """
    for name, does in ONLY_FOR_ONE.items():
        if getattr(config, name) is not None:
            raise InputError(
                f"{name} {does}, and images have several labels in this model; leave it out, and read "
                f"{Classification.name}.csv."
            )


class SeveralLabels:
    """The labels whose probability reaches their threshold, and the calibrated probability of every label.

    Labels are decided by probabilities as the network gives them, which is what a model's thresholds are for. A
    temperature would move both alike and changes no decision.

    Args:
        model: a classifier with thresholds.
    """

    name = Classification.name
    keep_pixels = False

    def __init__(self, model: FinishedModel) -> None:
        assert model.thresholds is not None
        self._model, self._thresholds = model, np.array(model.thresholds)
        self._temperature = (model.calibration and model.calibration.temperature) or 1.0
        self._confidences = [f"confidence_{name}" for name in model.class_names]
        columns = [("labels", pa.string()), *((name, pa.float32()) for name in self._confidences)]
        self.schema = pa.unify_schemas([pa.schema(columns), SIZES])
        self.csv_columns: Sequence[str] = ["labels", *self._confidences]

    def answer(self, images: Sequence[PreparedImage]) -> Columns:
        """See the class; an image without any of the labels has an empty text."""
        logits = self._model.network(stacked(images, self._model)).float()
        given = logits.sigmoid().cpu().numpy().astype(np.float64) >= self._thresholds
        probabilities = (logits / self._temperature).sigmoid().cpu().numpy()
        names = np.array(self._model.class_names, dtype=object)
        return {
            "labels": [BETWEEN.join(names[row]) for row in given],
            **dict(zip(self._confidences, probabilities.T, strict=True)),
            **sizes(images),
        }

    def csv_values(self, row: dict[str, Any]) -> list[Any]:
        """Return the row as it is."""
        return [row[name] for name in self.csv_columns]
