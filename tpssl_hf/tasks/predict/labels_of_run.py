"""The labels that a finetuning was given, and their images, by what its folder says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.config import EmbedConfig
from tpssl_hf.tasks.predict.read import ImageReader
from tpssl_hf.training.run_dir import CONFIG

LABELS = "labels.json"


class UnknownLabels(Exception):
    """Why the labeled images of a model are not known; the text ends a sentence."""


@dataclass(frozen=True)
class LabelsOfRun:
    """The labels of a finetuning.

    Attributes:
        reader: of the data set that they belong to, as it was then.
        classes: their names.
        labels: row of the data set -> number of its class.
    """

    reader: ImageReader
    classes: list[str]
    labels: dict[int, int]


def labels_of_run(folder: Path, num_workers: int) -> LabelsOfRun:
    """Open the labels of a run of classification and their images.

    Args:
        folder: of the run.
        num_workers: threads that decode images.

    Raises:
        UnknownLabels: if ``folder`` is none of a run, or the images are not where they were.
    """
    content, config = _read(folder)
    try:
        images = EmbedConfig(
            dataset=config["dataset"],
            split=config["split"],
            dataset_config=config.get("dataset_config"),
            image_column=config.get("image_column"),
            num_workers=num_workers,
        )
        reader, classes = ImageReader(images), list(content["class_names"])
        labels = {int(entry["row"]): int(entry["label"]) for entry in content["labels"]}
        known = content["fingerprint"]
        if labels and not 0 <= max(labels.values()) < len(classes):
            raise IndexError("a name for each class")
    except InputError as error:
        raise UnknownLabels(f"its labeled images cannot be opened: {error}") from error
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UnknownLabels(f"{LABELS} or {CONFIG} of its run lacks {error}") from error
    if known != reader.source.fingerprint:
        raise UnknownLabels(f"the images in {config['dataset']!r} are no longer those that it was trained on")
    return LabelsOfRun(reader, classes, labels)


def _read(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return ``labels.json`` and ``config.yaml`` of a run of classification."""
    if not (folder / LABELS).is_file() or not (folder / CONFIG).is_file():
        raise UnknownLabels(f"there is no {LABELS} of its run beside it")
    try:
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        return dict(labels), dict(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UnknownLabels(f"{LABELS} or {CONFIG} of its run cannot be read") from error
