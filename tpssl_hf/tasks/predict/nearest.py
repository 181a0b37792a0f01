"""The labeled image that a classifier finds most alike: what a prediction may be traced to, and checked by."""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from tpssl_hf.tasks.predict.labels_of_run import UnknownLabels, labels_of_run
from tpssl_hf.tasks.predict.model import FinishedModel
from tpssl_hf.tasks.predict.read import PreparedImage

BATCH = 32
MOST_IMAGES = 5000  # labeled ones, which are looked at before the first prediction
SCHEMA = pa.schema(
    [("nearest_file", pa.string()), ("nearest_label", pa.string()), ("nearest_similarity", pa.float32())]
)


class LabeledImages:
    """The images whose labels a classifier was trained with, by its own features.

    Features are computed when they are first asked for.

    Args:
        model: the classifier.
        num_workers: threads that decode images.

    Raises:
        UnknownLabels: if ``model`` is not in the folder of its run, the images are not where they were, or too many.
    """

    def __init__(self, model: FinishedModel, num_workers: int) -> None:
        self._model = model
        found = labels_of_run(model.folder.parent, num_workers)
        self._reader = found.reader
        self._labels = {row: found.classes[label] for row, label in found.labels.items()}
        if len(self._labels) > MOST_IMAGES:
            raise UnknownLabels(
                f"its run has {len(self._labels):,} labeled images, and {MOST_IMAGES:,} are compared at most"
            )

    @cached_property
    def _known(self) -> tuple[list[PreparedImage], Tensor]:
        """Return the labeled images that can be read, and their features (N, D) of length 1."""
        rows = np.array(sorted(self._labels), dtype=np.int64)
        images, features, batch = list[PreparedImage](), list[Tensor](), list[Tensor]()
        for image in self._reader.read(rows, self._model.prepare, ahead=2 * BATCH):
            if image.inputs is not None:
                batch.append(image.inputs)
                images.append(PreparedImage(image.row, image.file))
            if len(batch) == BATCH:
                features.append(self._features(batch))
                batch = []
        if batch:
            features.append(self._features(batch))
        return images, torch.cat(features)

    def _features(self, inputs: list[Tensor]) -> Tensor:
        return F.normalize(self._model.features(torch.stack(inputs).to(self._model.device)), dim=1)

    def columns(self, features: Tensor) -> dict[str, Any]:
        """Return file, label and cosine similarity of the labeled image nearest to each of features (B, D)."""
        images, known = self._known
        similarities, numbers = (F.normalize(features, dim=1) @ known.T).cpu().max(dim=1)
        nearest = [images[number] for number in numbers.tolist()]
        return {
            "nearest_file": [image.file for image in nearest],
            "nearest_label": [self._labels[image.row] for image in nearest],
            "nearest_similarity": similarities.numpy(),
        }
