"""The images of semi-supervised finetuning: labeled, unlabeled, held out, and those the score is taken on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tpssl_hf.augment.classify_views import CROP_SCALE
from tpssl_hf.config.shared import DataConfig
from tpssl_hf.data.conversion import Range
from tpssl_hf.data.folder_layout import MissingSplit
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import choose_labels, refuse_test_images, write_labels
from tpssl_hf.data.label_values import few
from tpssl_hf.data.labeled import Labeled, hold_out, hold_out_share
from tpssl_hf.data.multilabel_splits import is_known
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.data.sources import Source, lists_of_labels, load_source
from tpssl_hf.data.wanted_labels import gives_several
from tpssl_hf.errors import InputError
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.tasks.classify.config import ClassifyArgs, ClassifyConfig
from tpssl_hf.training.open_data import open_image_cache, open_source
from tpssl_hf.training.run_dir import RunDir

LEAST_TO_HOLD_OUT = 10  # labels of each class from which on some are held out where there are no test images
VALIDATION_PARTS = 5  # of which one is held out


@dataclass(frozen=True)
class Split:
    """Images with labels that a network predicts.

    Attributes:
        store: the images.
        indices: (N,) int64, which of them.
        labels: (N,) int64, class numbers; or (N, K) int64 of several labels an image.
        name: of the split they are.
    """

    store: ImageCache
    indices: np.ndarray
    labels: np.ndarray
    name: str = "train"


@dataclass(frozen=True)
class FinetuningData:
    """All images of a run.

    Attributes:
        source: what ``store`` was read from.
        store: the images that labeled ones are chosen from.
        labeled: those to train on with labels.
        validation: those held out of them, or None.
        unlabeled: images to train on without labels; the same store unless other images were named.
        truth: (N,) int64 true labels of ``unlabeled``, -1 for unknown, for hindsight only; None where none is known.
        test: images the score is taken on, or None.
        notes: what is to be known about labels and score, a sentence each.
    """

    source: Source
    store: ImageCache
    labeled: Labeled
    validation: Split | None
    unlabeled: ImageCache
    truth: Tensor | None
    test: Split | None
    notes: tuple[str, ...] = ()


def open_data(args: ClassifyArgs, accelerator: Accelerator, run: RunDir | None) -> FinetuningData:
    """Open all images, choose the labels and write ``labels.json``.

    Raises:
        InputError: for anything about images or labels that does not fit together, before the first step.
    """
    choice, data = args.task, args.data
    if data.streaming:
        raise InputError("labels are chosen by number, which streamed images have not; leave streaming off.")
    source = open_source(data, several_labels=True)
    if (reason := refused_for_several(args)) and gives_several(str(choice.labels), source):
        raise InputError(reason)
    crop_scale = CROP_SCALE if choice.crop == "rrc" else None
    store = open_image_cache(source, data, accelerator, run, crop_scale=crop_scale)
    labeled = choose_labels(
        str(choice.labels), store, source, mode=choice.label_mode, seed=choice.label_seed, several=True
    )
    test = _open_test(choice, data, labeled, store.wide_range, accelerator, run)
    if test:
        refuse_test_images(store, labeled.indices, test.store)
    unlabeled, truth = store, _known_truth(store, source, labeled)
    if choice.unlabeled_dataset:
        other = load_source(choice.unlabeled_dataset, split=choice.unlabeled_split)
        unlabeled = open_image_cache(
            other, data, accelerator, run, part="unlabeled", crop_scale=crop_scale, wide_range=store.wide_range
        )
        truth = _known_truth(unlabeled, other, labeled)
    if run:
        write_labels(run.path / "labels.json", labeled, store, source)
    notes = [f"labels: {labeled.counts(len(store))}", *labeled.notes]
    labeled, held = _hold_out(choice, labeled, test, source, notes)
    validation = Split(store, held.indices, held.labels) if held else None
    return FinetuningData(source, store, labeled, validation, unlabeled, truth, test, tuple(notes))


def refused_for_several(args: ClassifyArgs) -> str | None:
    """Say which key does not go with several labels an image; None if all do."""
    able = [name for name, spec in CLASSIFY.items() if spec.several_labels]
    if args.task.method not in able:
        return (
            f"the images have several labels each, which the learners {', '.join(able)} take and {args.task.method} "
            "does not; give one of them as --method, or one label an image."
        )
    if args.task.labeled_sampling != "images":
        return (
            "labeled_sampling classes takes images of each class in turn, and here an image has several labels; leave "
            "it out."
        )
    if (threshold := getattr(args.method, "threshold", 1.0)) <= 0.5:
        return (
            f"threshold {threshold:g} would give a label and deny it at once where images have several; give one "
            "above 0.5."
        )
    return None


def _hold_out(
    choice: ClassifyConfig, labeled: Labeled, test: Split | None, source: Source, notes: list[str]
) -> tuple[Labeled, Labeled | None]:
    """Settle which labels the run is watched by; without a test split, say that there is no score and why."""
    if choice.validation_labels:
        return hold_out(labeled, choice.validation_labels, seed=choice.label_seed)
    if test or choice.test_split == "none":
        return labeled, None
    none = f"{source.name!r} has no test split, so there is no score"
    name_one = "name test images with --test_dataset and --test_split for one"
    parts = None
    if choice.validation_labels is None:
        parts = hold_out_share(labeled, least=LEAST_TO_HOLD_OUT, parts=VALIDATION_PARTS, seed=choice.label_seed)
    if parts is None:
        few = f", and none held out, which takes {LEAST_TO_HOLD_OUT} of each class"
        notes.append(f"{none}; all labels are trained on{few if choice.validation_labels is None else ''}; {name_one}")
        return labeled, None
    notes.append(
        f"{none}; {len(parts[1].indices)} of {len(labeled.indices)} labels, a fifth of each class, are held out to "
        f"watch the run by (--validation_labels 0 trains on all); {name_one}"
    )
    return parts


def data_facts(data: FinetuningData) -> dict[str, str]:
    """Return what must be the same when a run is resumed: images, and a digest of which of them are labeled how."""
    digest = hashlib.sha256(data.labeled.indices.tobytes() + data.labeled.labels.tobytes())
    return {
        "dataset": data.store.fingerprint,
        "unlabeled images": data.unlabeled.fingerprint,
        "labels": f"{data.labeled.chosen} ({digest.hexdigest()[:16]})",
    }


def _known_truth(store: ImageCache, source: Source, labeled: Labeled) -> Tensor | None:
    """Return the labels of ``store`` if it has any that number the classes as ``labeled`` does."""
    if store.labels is None or source.class_names not in (None, labeled.class_names):
        return None
    numbers = tuple(str(number) for number in range(len(labeled.class_names)))
    if source.class_names is None and labeled.class_names[0].isdecimal() and labeled.class_names != numbers:
        return None
    known = store.labels[store.labels != UNLABELED]
    if len(known) == 0 or known.max() >= len(labeled.class_names):
        return None
    return torch.from_numpy(store.labels)


def _open_test(
    choice: ClassifyConfig,
    data: DataConfig,
    labeled: Labeled,
    wide_range: Range | None,
    accelerator: Accelerator,
    run: RunDir | None,
) -> Split | None:
    """Open the images the score is taken on and number their classes as the training labels do.

    None without a score: declined, or no split was named and the data set has none called ``test``.
    """
    if choice.test_split == "none":
        return None
    try:
        source, split = _test_source(choice, data)
    except InputError as error:
        if isinstance(error, MissingSplit) and not choice.test_split and not choice.test_dataset:
            return None
        raise InputError(
            f"the test images could not be opened: {error} Name them with --test_dataset and --test_split, or say "
            "--test_split none to go without a score."
        ) from error
    limited = replace(data, limit_images=choice.limit_test_images)
    store = open_image_cache(source, limited, accelerator, run, part="test", wide_range=wide_range)
    if labeled.several:
        return Split(store, np.arange(len(store)), _several_of_test(store, source, labeled.class_names, split), split)
    if store.labels is None or (store.labels == UNLABELED).any():
        raise InputError(
            f"the test images ({source.name!r}, split {split!r}) need a label each, and not all have "
            "one; name others with --test_dataset and --test_split, or say --test_split none."
        )
    return Split(store, np.arange(len(store)), _renumbered(store.labels, source, labeled.class_names), split)


def _test_source(choice: ClassifyConfig, data: DataConfig) -> tuple[Source, str]:
    """Find the test images, and the split they are: where none is named, ``test``, or all of one plain folder."""
    columns: dict[str, Any] = {"image_column": data.image_column, "label_column": data.label_column}
    columns["several_labels"] = True
    named, split = choice.test_dataset or data.dataset, choice.test_split or "test"
    try:
        return load_source(named, split=split, dataset_config=data.dataset_config, **columns), split
    except MissingSplit as error:
        if not error.has_no_splits or not choice.test_dataset or choice.test_split:
            raise
    return load_source(named, split="train", **columns), "all"


def _several_of_test(store: ImageCache, source: Source, names: tuple[str, ...], split: str) -> np.ndarray:
    """Return the labels (N, K) of the test images in the order of ``names``, -1 for those their data set lacks."""
    found = lists_of_labels(source, store.rows) if source.label_lists else None
    if found is None or not is_known(found[0]).all():
        raise InputError(
            f"the test images ({source.name!r}, split {split!r}) need a list of labels each, as training images have "
            "several, and not all have one; name others with --test_dataset and --test_split, or say --test_split "
            "none."
        )
    own, own_names = found
    if strange := [name for name in own_names if name not in names]:
        raise InputError(
            f"the test images have the label {strange[0]!r}, which no training image has; those have {few(names)}."
        )
    labels = np.full((len(own), len(names)), UNLABELED, dtype=np.int64)
    labels[:, [names.index(name) for name in own_names]] = own
    return labels


def _renumbered(labels: np.ndarray, source: Source, names: tuple[str, ...]) -> np.ndarray:
    """Number the test classes as ``names`` does."""
    own = source.class_names or tuple(str(number) for number in range(int(labels.max()) + 1))
    if strange := [own[number] for number in np.unique(labels).tolist() if own[number] not in names]:
        raise InputError(
            f"the test images have the class {strange[0]!r}, which no label names; the labels name "
            f"{', '.join(names[:10])}."
        )
    number_of = np.array([names.index(name) if name in names else UNLABELED for name in own], dtype=np.int64)
    renumbered: np.ndarray = number_of[labels]
    return renumbered


def with_labels(
    transform: Callable[[ImageBatch], dict[str, Tensor]], labeled: Labeled, count: int, device: torch.device
) -> Callable[[ImageBatch], dict[str, Tensor]]:
    """Add ``labels``, (B,) or (B, K) int64, to what ``transform`` makes of labeled images of a store of ``count``."""
    table = torch.full((count, *labeled.labels.shape[1:]), UNLABELED, dtype=torch.int64)
    table[torch.from_numpy(labeled.indices)] = torch.from_numpy(labeled.labels)
    table = table.to(device)
    return lambda images: {**transform(images), "labels": table[images.index]}
