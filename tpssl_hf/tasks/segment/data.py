"""The images of semi-supervised segmentation: with masks, without, and those the score is taken on."""

import hashlib
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator

from tpssl_hf.config.shared import DataConfig
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import refuse_test_images
from tpssl_hf.data.mask_sources import load_mask_source
from tpssl_hf.data.mask_splits import ChosenMasks, choose_masks, write_masks
from tpssl_hf.data.masks import Color
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.segment.config import MaskDataConfig, SegmentArgs, SegmentConfig
from tpssl_hf.training.open_data import open_image_cache
from tpssl_hf.training.run_dir import RunDir


@dataclass(frozen=True)
class EvaluationImages:
    """Images with masks that a network predicts.

    Attributes:
        store: the images.
        indices: (N,) int64, which of them.
    """

    store: ImageCache
    indices: np.ndarray


@dataclass(frozen=True)
class SegmentingData:
    """All images of a run.

    Attributes:
        source: what ``store`` was read from.
        store: all images to learn from.
        class_names: names in the order of the class numbers.
        palette: RGB color in which to show each class.
        labeled: those learned from with their masks.
        unlabeled: (U,) int64, numbers of those learned from without masks.
        test: images the score is taken on, or None.
    """

    source: Source
    store: ImageCache
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    labeled: ChosenMasks
    unlabeled: np.ndarray
    test: EvaluationImages | None


def open_masks(args: SegmentArgs, accelerator: Accelerator, run: RunDir | None) -> SegmentingData:
    """Open all images, choose whose masks are used and write ``labels.json``.

    Raises:
        InputError: for anything about images or masks that does not fit together, before the first step.
    """
    choice, data = args.task, args.data
    source = _source_of(data, data.dataset, data.split)
    store = _store_of(source, data, data.limit_images, accelerator, run)
    assert store.class_names is not None and store.palette is not None
    labeled = choose_masks(str(choice.labels), store, source, seed=choice.label_seed)
    unlabeled = np.arange(len(store))
    if choice.exclude_labeled:
        unlabeled = np.setdiff1d(unlabeled, labeled.indices)
    test = _open_test(choice, data, store, accelerator, run)
    if test:
        refuse_test_images(store, labeled.indices, test.store)
    if run:
        write_masks(run.path / "labels.json", labeled, store, source)
    return SegmentingData(source, store, store.class_names, tuple(store.palette), labeled, unlabeled, test)


def data_facts(data: SegmentingData) -> dict[str, str]:
    """Return what must be the same when a run is resumed: the images, and a digest of whose masks are used."""
    digest = hashlib.sha256(data.labeled.indices.tobytes())
    return {
        "dataset": data.store.fingerprint,
        "labels": f"{data.labeled.chosen} ({digest.hexdigest()[:16]})",
    }


def _source_of(data: MaskDataConfig, dataset: str, split: str) -> Source:
    return load_mask_source(
        dataset,
        split=split,
        dataset_config=data.dataset_config,
        image_column=data.image_column,
        mask_column=data.mask_column,
        mask_threshold=data.mask_threshold,
        mask_orientation=data.mask_orientation,
    )


def _store_of(
    source: Source,
    data: MaskDataConfig,
    limit: int | None,
    accelerator: Accelerator,
    run: RunDir | None,
    *,
    part: str = "",
    wide_range: Range | None = None,
) -> ImageCache:
    how = DataConfig(
        limit_images=limit, num_workers=data.num_workers, cache_budget=data.cache_budget, cache_dir=data.cache_dir
    )
    return open_image_cache(
        source, how, accelerator, run, part=part, shorter_side=data.shorter_side, wide_range=wide_range
    )


def _open_test(
    choice: SegmentConfig, data: MaskDataConfig, training: ImageCache, accelerator: Accelerator, run: RunDir | None
) -> EvaluationImages | None:
    """Open the images the score is taken on, whose classes must be those of the training masks."""
    names = training.class_names or ()
    if choice.test_split == "none":
        return None
    try:
        source = _source_of(data, choice.test_dataset or data.dataset, choice.test_split)
    except InputError as error:
        raise InputError(
            f"the test images could not be opened: {error} Name them with --test_dataset and --test_split, or say "
            "--test_split none to go without a score."
        ) from error
    limit, wide_range = choice.limit_test_images, training.wide_range
    store = _store_of(source, data, limit, accelerator, run, part="test", wide_range=wide_range)
    found = store.class_names or ()
    if found != names and (source.class_names is not None or not set(found) <= set(names)):
        strange = next((name for name in found if name not in names), None)
        raise InputError(
            f"the classes of the test masks ({len(found)}{f', with {strange!r}' if strange else ''}) are not the "
            f"{len(names)} of the training masks; list the same names in the same order in a file classes.txt beside "
            "either."
        )
    return EvaluationImages(store, np.flatnonzero(store.has_mask))
