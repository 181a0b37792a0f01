"""Apply a finished model to any number of images, in parts that survive a kill."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.tasks.predict.accept import split_predictions
from tpssl_hf.tasks.predict.answers import Answers, Classification, Columns, Embedding
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig
from tpssl_hf.tasks.predict.expect import score_of_run, thresholds_to_expect, what_to_expect
from tpssl_hf.tasks.predict.exports.predicted import Predicted
from tpssl_hf.tasks.predict.exports.write import formats_named, write_exports
from tpssl_hf.tasks.predict.labels_of_run import UnknownLabels
from tpssl_hf.tasks.predict.model import FinishedModel, load_model
from tpssl_hf.tasks.predict.nearest import LabeledImages
from tpssl_hf.tasks.predict.read import ImageReader, PreparedImage
from tpssl_hf.tasks.predict.segment import Segmentation
from tpssl_hf.tasks.predict.several_labels import SeveralLabels, refuse_keys
from tpssl_hf.tasks.predict.write import (
    IMAGES_KEY,
    MODEL_KEY,
    SKIPPED,
    Parts,
    default_folder,
    open_output,
    refuse_overlap,
    short_name,
)
from tpssl_hf.training.run_dir import RESULTS

FILES = {"predict": Classification.name, "embed": Embedding.name}
BATCH_PIXELS = 2**24  # of a batch of images that keep their own sizes: a few photos of full size at a time


@dataclass(frozen=True)
class PredictResult:
    """What a finished model made of images.

    Attributes:
        folder: with ``predictions.parquet`` and ``.csv``, ``masks/`` or ``embeddings.parquet``, and ``skipped.csv``.
        path: the parquet file.
        images: how many images have an answer.
        skipped: how many could not be read.
    """

    folder: Path
    path: Path
    images: int
    skipped: int

    def table(self) -> datasets.Dataset:
        """Return the answers, one row per image that could be read, in the order of the data set."""
        if not self.images:  # the reader of parquet files wants a row
            return datasets.Dataset(pq.read_table(self.path))
        return datasets.Dataset.from_parquet(str(self.path))


def predict(config: PredictConfig, *, say: Callable[[str], Any] = tqdm.write, progress: bool = True) -> PredictResult:
    """Label images with a finished classifier, or write the masks of a finished segmenter.

    Args:
        config: every key.
        say: called with each sentence for people.
        progress: whether to show a bar.

    Raises:
        InputError: for a model or images that cannot be used, and an output folder of other keys.
    """
    _check(config)
    if config.accept is not None and not 0 < config.accept < 1:
        raise InputError(f"accept is {config.accept:g}; give an accuracy above 0 and below 1, such as 0.95.")
    model = load_model(config.model, config.device)
    if model.kind == "backbone":
        raise InputError(
            f"model {config.model!r} is a backbone and knows no classes; use embed for its features, or finetune a "
            "classifier on it first."
        )
    if model.kind == "segmenter" and config.accept is not None:
        raise InputError("accept is for classifiers, and this model is a segmenter; leave it out.")
    if model.thresholds is not None:
        refuse_keys(config)
    formats = formats_named(config.export, segmenter=model.kind == "segmenter")
    reader = ImageReader(config)

    def answers(folder: Path) -> Answers:
        if model.thresholds is not None:
            return SeveralLabels(model)
        if model.kind == "classifier":
            return Classification(model, config.top_k, _labeled_images(model, config, say))
        return Segmentation(
            model, folder, reader.names.to_pylist(), overlays=config.overlays, num_workers=config.num_workers
        )

    def conclude(folder: Path) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if model.kind == "segmenter":
            facts = score_of_run(model, say)
        elif model.thresholds is not None:
            facts = thresholds_to_expect(model, say)
        else:
            facts = what_to_expect(folder, model, say)
        if config.accept is not None:
            known = model.calibration if isinstance(model.calibration, Calibration) else None
            facts["accept"] = split_predictions(folder, known, config.accept, say)
        table = folder / f"{Classification.name}.parquet"
        predicted = Predicted(table, reader.source, model.class_names, short_name(config.model))
        write_exports(predicted, formats, facts.get("accept"), say)
        return facts

    return _apply(_Job("predict", config, model, reader, answers, conclude, say, progress))


def _labeled_images(model: FinishedModel, config: PredictConfig, say: Callable[[str], Any]) -> LabeledImages | None:
    try:
        return LabeledImages(model, config.num_workers)
    except UnknownLabels as reason:
        say(f"no column of the nearest labeled image: {reason}")
    return None


def embed(config: EmbedConfig, *, say: Callable[[str], Any] = tqdm.write, progress: bool = True) -> PredictResult:
    """Write the features of images by a finished backbone, or by that of a classifier or segmenter.

    Args:
        config: every key.
        say: called with each sentence for people.
        progress: whether to show a bar.

    Raises:
        InputError: as :func:`predict` does.
    """
    _check(config)
    model = load_model(config.model, config.device)
    reader = ImageReader(config)
    return _apply(_Job("embed", config, model, reader, lambda _: Embedding(model), lambda _: {}, say, progress))


def _check(config: EmbedConfig) -> None:
    for name in ("batch_size", "num_workers", "save_every", "top_k"):
        if getattr(config, name, 1) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; give a number from 1.")


@dataclass(frozen=True)
class _Job:
    """What is to be applied to what.

    Attributes:
        task: predict or embed.
        config: every key.
        model: that is applied.
        reader: of the images.
        make_answers: output folder -> what turns images into columns; not called for a finished folder.
        conclude: output folder -> what is said of all answers together, for ``results.json``.
        say: called with each sentence for people.
        progress: whether to show a bar.
    """

    task: str
    config: EmbedConfig
    model: FinishedModel
    reader: ImageReader
    make_answers: Callable[[Path], Answers]
    conclude: Callable[[Path], dict[str, Any]]
    say: Callable[[str], Any]
    progress: bool

    def record(self) -> dict[str, Any]:
        """Return every key, and the fingerprints of images and model."""
        record = {"task": self.task, **asdict(self.config)}
        record |= {IMAGES_KEY: self.reader.source.fingerprint, MODEL_KEY: self.model.fingerprint}
        return record | {"output_dir": self.config.output_dir or default_folder(record)}


def _apply(job: _Job) -> PredictResult:
    record, config, reader, say = job.record(), job.config, job.reader, job.say
    folder = Path(record["output_dir"]).expanduser()
    refuse_overlap(folder, reader.source.folder)
    with open_output(folder, record) as run:
        path = folder / f"{FILES[job.task]}.parquet"
        if run.finished and path.is_file():
            results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            say(f"{path} is finished already, from the same images and model; delete the folder to make it anew.")
            run.write_json(RESULTS, results | job.conclude(folder))
            return PredictResult(folder, path, results["images"], results["skipped"])
        answers = job.make_answers(folder)
        parts = Parts(folder, len(reader.rows), config.save_every, answers)
        done = len(reader.rows) - sum(parts.sizes[number] for number in parts.missing)
        if done:
            say(f"continuing after {done:,} of {len(reader.rows):,} images")
        with tqdm(
            total=len(reader.rows), initial=done, desc=job.task, unit=" images", disable=not job.progress
        ) as bar:
            _write_missing(parts, config, job.model, reader, answers, bar)
        answered, skipped = parts.join()
        results = {"task": job.task, "images": answered, "skipped": skipped, "config": record}
        run.write_json(RESULTS, results | job.conclude(folder))
        parts.remove()
    say(f"{path}: {answered:,} images" + (f"; {skipped:,} could not be read, see {SKIPPED}" if skipped else ""))
    return PredictResult(folder, path, answered, skipped)


def _write_missing(
    parts: Parts, config: EmbedConfig, model: FinishedModel, reader: ImageReader, answers: Answers, bar: Any
) -> None:
    """Compute the parts that are not there yet; batches never reach over two of them, so each is always the same."""
    starts = np.concatenate([[0], np.cumsum(parts.sizes)]).astype(int)
    rows = [reader.rows[starts[number] : starts[number + 1]] for number in parts.missing]
    if not rows:
        return
    chosen, ahead = np.concatenate(rows), 2 * config.batch_size
    # closed whatever happens: threads that wait for room would never end
    with closing(reader.read(chosen, model.prepare, ahead=ahead, keep_pixels=answers.keep_pixels)) as images:
        for number in parts.missing:
            batches: list[dict[str, Any]] = []
            skipped: list[PreparedImage] = []
            for batch in _batches(islice(images, parts.sizes[number]), config.batch_size, model):
                readable = [image for image in batch if image.inputs is not None]
                skipped += [image for image in batch if image.inputs is None]
                for part, columns in _answered(answers, readable) if readable else ():
                    if columns is None:
                        skipped += part
                    else:
                        names = {"row": [image.row for image in part], "file": [image.file for image in part]}
                        batches.append(names | columns)
                bar.update(len(batch))
            parts.write(number, batches, [_reason(image) for image in skipped])


def _batches(images: Iterator[PreparedImage], size: int, model: FinishedModel) -> Iterator[list[PreparedImage]]:
    """Gather consecutive images of one size, unreadable ones among them, to at most ``size`` readable ones."""
    batch: list[PreparedImage] = []
    readable: list[PreparedImage] = []
    for image in images:
        if image.inputs is not None:
            pixels = image.inputs.shape[1] * image.inputs.shape[2]
            if readable and (
                len(readable) == size
                or (readable[0].inputs is not None and readable[0].inputs.shape != image.inputs.shape)
                or (model.input_size_varies and pixels * (len(readable) + 1) > BATCH_PIXELS)
            ):
                yield batch
                batch, readable = [], []
            readable.append(image)
        batch.append(image)
    if batch:
        yield batch


@torch.inference_mode()
def _answered(
    answers: Answers, images: Sequence[PreparedImage]
) -> list[tuple[Sequence[PreparedImage], Columns | None]]:
    """Return parts of a batch with their columns: halves where it does not fit the device, None where one does not."""
    try:
        return [(images, answers.answer(images))]
    except torch.OutOfMemoryError:
        if len(images) == 1:
            return [(images, None)]
    half = len(images) // 2  # outside of the handler, which would keep the tensors alive
    return [*_answered(answers, images[:half]), *_answered(answers, images[half:])]


def _reason(image: PreparedImage) -> dict[str, Any]:
    reason = image.reason or "does not fit the device's memory"
    return {"row": image.row, "file": image.file, "reason": reason}
