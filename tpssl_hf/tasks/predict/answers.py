"""Predictions of one image, as they are written: a classifier's labels, or features."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.model import FinishedModel
from tpssl_hf.tasks.predict.nearest import SCHEMA, LabeledImages
from tpssl_hf.tasks.predict.read import PreparedImage

Columns = dict[str, Any]  # name of a column -> its values, one for each image of a batch
SIZES = pa.schema([("width", pa.int32()), ("height", pa.int32())])


class Answers(Protocol):
    """Turns batches of prepared images into columns of the result.

    Attributes:
        name: of the result's files.
        schema: of these columns.
        csv_columns: of a row in the table for people, see :meth:`csv_values`; empty if there is none.
        keep_pixels: whether it needs the decoded pixels.
    """

    name: str
    schema: pa.Schema
    csv_columns: Sequence[str]
    keep_pixels: bool

    def answer(self, images: Sequence[PreparedImage]) -> Columns:
        """Return the columns of a batch of images of one size."""
        ...

    def csv_values(self, row: dict[str, Any]) -> Sequence[Any]:
        """Return a row of the result without lists, in the order of ``csv_columns``."""
        ...


class Classification:
    """The most probable classes with their probabilities, the confidence of the classifier, the nearest labeled image.

    Args:
        model: a classifier.
        top_k: classes kept for each image.
        labeled: the labeled images it was trained with, or None if they are not known.
    """

    name = "predictions"
    keep_pixels = False

    def __init__(self, model: FinishedModel, top_k: int, labeled: LabeledImages | None = None) -> None:
        self._model, self._labeled = model, labeled
        self._temperature = (model.calibration and model.calibration.temperature) or 1.0
        self._top_k = min(top_k, len(model.class_names))
        single = pa.schema(
            [
                ("label", pa.string()),
                ("confidence", pa.float32()),
                ("second_label", pa.string()),
                ("margin", pa.float32()),
                ("entropy", pa.float32()),
            ]
        )
        lists = pa.schema([("top_labels", pa.list_(pa.string())), ("top_probabilities", pa.list_(pa.float32()))])
        flat = pa.unify_schemas([single, SCHEMA]) if labeled else single
        self.schema = pa.unify_schemas([flat, lists, SIZES])
        self._single = flat.names
        others = [f"{name}_{rank}" for rank in range(2, self._top_k + 1) for name in ("label", "confidence")]
        self.csv_columns: Sequence[str] = [*self._single, *others]

    def answer(self, images: Sequence[PreparedImage]) -> Columns:
        """See the class; ``margin`` is to the second class, ``entropy`` in nats, all of calibrated probabilities."""
        logits, nearest = self._look(stacked(images, self._model))
        logits = logits / self._temperature
        probabilities = logits.softmax(dim=1)
        entropy = -(probabilities * logits.log_softmax(dim=1)).sum(dim=1)
        ordered, classes = probabilities.cpu().sort(dim=1, descending=True, stable=True)
        class_names = self._model.class_names
        names = [[class_names[number] for number in row] for row in classes[:, : self._top_k].tolist()]
        return {
            **nearest,
            **sizes(images),
            "label": [row[0] for row in names],
            "confidence": ordered[:, 0].numpy(),
            "second_label": [class_names[number] for number in classes[:, 1].tolist()],
            "margin": (ordered[:, 0] - ordered[:, 1]).numpy(),
            "entropy": entropy.cpu().numpy(),
            "top_labels": names,
            "top_probabilities": list(ordered[:, : self._top_k].numpy()),
        }

    def _look(self, inputs: torch.Tensor) -> tuple[torch.Tensor, Columns]:
        """Return logits (B, K) of normalized images, and the columns of the nearest labeled ones."""
        if self._labeled is None:
            return self._model.network(inputs).float(), {}
        logits, features = self._model.logits_and_features(inputs)
        return logits, self._labeled.columns(features)

    def csv_values(self, row: dict[str, Any]) -> list[Any]:
        """Spread the classes after the first over columns of their own."""
        ranked = zip(row["top_labels"][1:], row["top_probabilities"][1:], strict=True)
        return [row[name] for name in self._single] + [value for pair in ranked for value in pair]


class Embedding:
    """Features: what a classifier reads, or would read, of an image."""

    name = "embeddings"
    csv_columns: Sequence[str] = ()
    keep_pixels = False

    def __init__(self, model: FinishedModel) -> None:
        self._model = model
        with torch.inference_mode():
            sample = model.prepare(np.zeros((32, 32, 3), dtype=np.uint8))
            features = model.features(sample[None].to(model.device))
        if features.ndim != 2:
            raise InputError(
                f"this model gives features of shape {tuple(features.shape[1:])} and no vector per image; give one "
                "that pools them."
            )
        self._type = pa.list_(pa.float32(), features.shape[1])
        self.schema = pa.schema([("embedding", self._type)])

    def answer(self, images: Sequence[PreparedImage]) -> Columns:
        """See the class."""
        values = self._model.features(stacked(images, self._model)).cpu().contiguous().numpy()
        return {"embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=self._type)}

    def csv_values(self, row: dict[str, Any]) -> tuple[()]:
        """Return nothing: embeddings are no table for people."""
        return ()


def sizes(images: Sequence[PreparedImage]) -> Columns:
    """Return width and height of the images themselves, as they are seen: turned as EXIF says."""
    return {"width": [image.size[1] for image in images], "height": [image.size[0] for image in images]}


def stacked(images: Sequence[PreparedImage], model: FinishedModel) -> torch.Tensor:
    """Return the batch (B, 3, h, w) on the model's device."""
    return torch.stack([image.inputs for image in images if image.inputs is not None]).to(model.device)
