"""Write the features of images by a finished backbone, or by that of a finished classifier or segmenter.

    tpssl-hf embed outputs/mine path/to/images
    python recipes/predict.py embed outputs/mine path/to/images   # the same without installing

The folder --output_dir then holds embeddings.parquet, and skipped.csv with the images that could not be read. Started
again with the same keys, an unfinished run continues where it was. docs/predict.md says what the columns are.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
from collections.abc import Sequence
from os import PathLike
from typing import Any

import datasets

from tpssl_hf.commands.predict import Model, keywords, named_words, until_stopped
from tpssl_hf.config.parser import parse_args
from tpssl_hf.tasks.predict import run
from tpssl_hf.tasks.predict.config import EmbedArgs


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the model and say where the features are; returns the exit code."""
    given = named_words(sys.argv[1:] if arguments is None else arguments)
    config = parse_args(EmbedArgs, given, description=__doc__ or "").embed
    return until_stopped(lambda: run.embed(config))


def embed(model: Model, dataset: str | PathLike[str], **keys: Any) -> datasets.Dataset:
    """Compute the features of images by a finished backbone, or by that of a finished classifier or segmenter.

    Args:
        model: a finished run, its folder, its ``model/`` folder, or a Hub id with an optional ``@revision``.
        dataset: a folder of images, parquet or arrow files, a saved data set, or a Hub id.
        **keys: every other key of ``tpssl-hf embed``, such as ``split``, ``batch_size`` or ``output_dir``.

    Returns:
        One row per image that could be read: ``row``, ``file`` and ``embedding``, float32. The same table is in
        ``output_dir``; the same call again reads it, or continues it.

    Raises:
        InputError: as :func:`tpssl_hf.commands.predict.predict` does.
    """
    return run.embed(parse_args(EmbedArgs, keywords(model, dataset, keys)).embed).table()
