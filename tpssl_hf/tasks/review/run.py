"""Make the page on which predictions are looked at and corrected."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.config import EmbedConfig
from tpssl_hf.tasks.predict.labels_of_run import LabelsOfRun, UnknownLabels
from tpssl_hf.tasks.predict.read import ImageReader
from tpssl_hf.tasks.predict.write import IMAGES_KEY, MODEL_KEY, short_name
from tpssl_hf.tasks.review.alike import disagree, near_duplicates, prints_of, telling_first
from tpssl_hf.tasks.review.config import ReviewConfig
from tpssl_hf.tasks.review.given import Suspects, given_columns, open_given
from tpssl_hf.tasks.review.page import write_page
from tpssl_hf.tasks.review.table import (
    Predictions,
    class_names,
    key_column,
    link_to_images,
    prediction_columns,
    read_predictions,
)
from tpssl_hf.tasks.review.thumbnails import make_thumbnails, thumbnail_folder

FOLDER = "review"


@dataclass(frozen=True)
class ReviewResult:
    """A page to look at.

    Attributes:
        page: the HTML file.
        images: predictions on it.
        suspects: given labels on it that may be wrong; None where they are not known.
        groups: of predicted images that are near-duplicates.
        disagreeing: of them, those whose given labels differ.
    """

    page: Path
    images: int
    suspects: int | None
    groups: int
    disagreeing: int


def review(config: ReviewConfig, *, say: Callable[[str], Any] = tqdm.write, progress: bool = True) -> ReviewResult:
    """Write ``review/index.html`` in a finished output folder of predict.

    Args:
        config: every key.
        say: called with each sentence for people.
        progress: whether to show bars.

    Raises:
        InputError: for a folder without predictions of a classifier, images that are not where they were, and a folder
            that cannot be written.
    """
    if config.num_workers < 1:
        raise InputError(f"num_workers is {config.num_workers}; give a number from 1.")
    found = read_predictions(config.predictions)
    if not len(found.table):
        raise InputError(f"{config.predictions!r} has no predictions: no image could be read; see its skipped.csv.")
    images = _open_images(found, config)
    folder = found.folder / FOLDER
    given, reason = None, ""
    try:
        given = open_given(found.config["model"], config.num_workers)
    except UnknownLabels as unknown:
        reason = f"Which of the given labels may be wrong is not known: {unknown}."
        say(reason[0].lower() + reason[1:].rstrip("."))
    classes = class_names(given[0].classes if given else (), found.table)

    def section(reader: ImageReader, columns: dict[str, Any], title: str) -> dict[str, Any]:
        name = thumbnail_folder(reader.source, columns["rows"])
        make_thumbnails(
            reader.source,
            columns["rows"],
            folder / name,
            num_workers=config.num_workers,
            title=title,
            progress=progress,
        )
        names = reader.names.to_pylist()
        images_at = link_to_images(reader.source, names[0], folder)
        return columns | {"thumbnails": name, "images": images_at, "column": key_column(names)}

    with _writing(folder):
        predictions = section(images, prediction_columns(found.table, classes), "thumbnails")
        own = _given(given, images, section) if given else None
        labels = given[0].labels if given and own and own["same_images"] else {}
        groups, disagreeing = _groups(folder, predictions, labels, config.num_workers)
        data = {
            "id": _identity(found),
            "title": f"{short_name(found.config['model'])} on {short_name(found.config['dataset'])}",
            "classes": classes,
            "predictions": predictions | {"groups": groups, "disagreeing": disagreeing},
            "given": own,
            "given_unknown": reason,
        }
        page = write_page(folder, data)
    say(f"open {page} in a browser")
    return ReviewResult(page, len(found.table), len(given[1].rows) if given else None, len(groups), disagreeing)


def _groups(
    folder: Path, predictions: Mapping[str, Any], labels: Mapping[int, int], num_workers: int
) -> tuple[list[list[int]], int]:
    """Return groups of near-duplicates among the predicted images, and the given labels of how many differ.

    Args:
        folder: of the page.
        predictions: columns of it.
        labels: row -> class number, of the given labels that are of these images.
        num_workers: threads that read thumbnails.
    """
    there, prints = prints_of(folder / predictions["thumbnails"], len(predictions["rows"]), num_workers)
    groups = [there[group].tolist() for group in near_duplicates(prints)]
    given = [labels.get(row, -1) for row in predictions["rows"]]
    return telling_first(groups, given, predictions["labels"]), sum(disagree(group, given) for group in groups)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); make room or allow it, and start again, it continues."
        ) from error


def _given(
    given: tuple[LabelsOfRun, Suspects],
    images: ImageReader,
    section: Callable[[ImageReader, dict[str, Any], str], dict[str, Any]],
) -> dict[str, Any]:
    reader = given[0].reader
    columns = section(reader, given_columns(*given), "given labels")
    return columns | {"same_images": reader.source.fingerprint == images.source.fingerprint}


def _identity(found: Predictions) -> str:
    """Return what progress is kept under: the same for the same images and model."""
    content = f"{found.config[IMAGES_KEY]} {found.config[MODEL_KEY]}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _open_images(found: Predictions, config: ReviewConfig) -> ImageReader:
    dataset = config.dataset or found.config["dataset"]
    way_out = "name the place where these images are now with --dataset, or run predict again"
    try:
        reader = ImageReader(
            EmbedConfig(
                dataset=dataset,
                split=found.config["split"],
                dataset_config=found.config.get("dataset_config"),
                image_column=found.config.get("image_column"),
            )
        )
    except InputError as error:
        raise InputError(f"the predicted images cannot be opened: {error} ({way_out})") from error
    if reader.source.fingerprint != found.config[IMAGES_KEY]:
        raise InputError(f"the images in {dataset!r} are not those that were predicted; {way_out}.")
    return reader
