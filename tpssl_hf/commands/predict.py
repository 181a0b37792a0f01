"""Label images with a finished classifier, or write the masks of a finished segmenter.

    tpssl-hf predict outputs/digits_fixmatch path/to/images
    tpssl-hf predict outputs/digits_fixmatch path/to/images --accept 0.95 --export imagefolder,label_studio
    tpssl-hf predict outputs/digits_fixmatch path/to/images --push_to_hub me/labels
    tpssl-hf predict outputs/digit_scenes path/to/images --overlays
    python recipes/predict.py outputs/digits_fixmatch path/to/images   # the same without installing

The folder --output_dir then holds predictions.parquet and predictions.csv, or masks/, and skipped.csv with the images
that could not be read; with --accept what may be taken at that accuracy and what is to be looked at, and with --export
the same for other tools. Started again with the same keys, an unfinished run continues where it was. docs/predict.md
says what the columns are.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any, Protocol

import datasets

from tpssl_hf.config.parser import parse_args, words_as_keys
from tpssl_hf.hub.predictions import check_predictions_target, publish_predictions
from tpssl_hf.tasks.predict import run
from tpssl_hf.tasks.predict.config import PredictArgs, PredictConfig


class FinishedRun(Protocol):
    """A finished run of this package, as the public functions of training return it."""

    @property
    def model_path(self) -> str | PathLike[str]:
        """Folder of its model."""
        ...


Model = str | PathLike[str] | FinishedRun


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the model and say where the answers are; returns the exit code."""
    given = named_words(sys.argv[1:] if arguments is None else arguments)
    config = parse_args(PredictArgs, given, description=__doc__ or "").predict
    return until_stopped(lambda: predicted(config))


def predict(model: Model, dataset: str | PathLike[str], **keys: Any) -> datasets.Dataset:
    """Label images with a finished classifier, or write the masks of a finished segmenter.

    Args:
        model: a finished run, its folder, its ``model/`` folder, or a Hub id with an optional ``@revision``.
        dataset: a folder of images, parquet or arrow files, a saved data set, or a Hub id.
        **keys: every other key of ``tpssl-hf predict``, such as ``split``, ``batch_size`` or ``output_dir``.

    Returns:
        One row per image that could be read: ``row``, ``file``, and ``label``, ``confidence``, ... of a classifier
        (``labels`` and ``confidence_NAME`` of one whose images may have several labels), or
        ``mask`` (path of a PNG), ``confidence`` and ``class_shares`` of a segmenter. The same table is in
        ``output_dir``; the same call again reads it, or continues it.

    Raises:
        InputError: for an unknown key, a model or images that cannot be used, and an ``output_dir`` that holds
            something else.
        PushError: if the Hub did not take what ``push_to_hub`` asked to publish; the table is there all the same.
    """
    result = predicted(parse_args(PredictArgs, keywords(model, dataset, keys)).predict)
    table = result.table()
    if "mask" not in table.column_names:
        return table
    masks = [str(result.folder / mask) for mask in table["mask"]]
    columns = table.column_names
    return table.remove_columns("mask").add_column("mask", masks).select_columns(columns)


def predicted(config: PredictConfig) -> run.PredictResult:
    """Apply the model, and publish the table if asked to; a name that cannot be is refused before the first image."""
    if config.push_to_hub:
        check_predictions_target(config.push_to_hub)
    result = run.predict(config)
    if config.push_to_hub:
        publish_predictions(result.folder, config.push_to_hub, private=config.hub_private_repo)
    return result


def keywords(model: Model, dataset: str | PathLike[str], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keys by name, with a finished run as its model's folder."""
    location = model if isinstance(model, str | PathLike) else model.model_path
    return {"model": fspath(location), "dataset": fspath(dataset), **keys}


def named_words(arguments: Sequence[str]) -> list[str]:
    """Return a command line with its first words, model and images, as keys.

    Raises:
        InputError: for more words than these two.
    """
    return words_as_keys(arguments, ("model", "dataset"), "the model, the folder of images")


def until_stopped(work: Callable[[], run.PredictResult]) -> int:
    """Do the work and print how many images have an answer, and where; returns the exit code, 130 after Ctrl-C."""
    try:
        result = work()
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command continues after the last whole part (--save_every images)\n")
        return 130
    print(f"{result.images:,} images, {result.skipped:,} that could not be read: {result.path}")
    return 0
