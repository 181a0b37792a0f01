"""From what the user wrote after ``--dataset`` to a data set whose images are still encoded."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np

from tpssl_hf.data.folder_layout import MissingSplit
from tpssl_hf.data.folders import FOLDER_LABELS, Loaded, load_digits, load_folder
from tpssl_hf.data.label_values import few, number_column
from tpssl_hf.data.masks import Masks
from tpssl_hf.data.multilabel import number_lists
from tpssl_hf.data.registry import DATASETS, EMBEDDED, DatasetSpec
from tpssl_hf.data.scenes import load_digit_scenes
from tpssl_hf.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
EMBEDDED_LOADERS = {"digits": load_digits, "digit_scenes": load_digit_scenes}
IMAGE_NAMES = ("image", "img")
LISTS = (datasets.List, datasets.LargeList)
ENCODED_TYPES = ("string", "large_string", "binary", "large_binary")  # paths, or the bytes of image files


@dataclass(frozen=True)
class Source:
    """A data set of encoded images and what is known about it.

    Attributes:
        dataset: ``datasets.Dataset`` or ``IterableDataset`` whose image column is ``Image(decode=False)``.
        image_column: column that holds the images.
        label_column: column that holds the class numbers, or None.
        label_lists: column that holds a list of labels for each image, or None; looked for if it was asked for.
        class_names: names in the order of the class numbers, or None where they are unknown.
        name: short name for reports and cards: registry name, Hub id or the folder's own name, never a full path.
        fingerprint: of the files; the same for a copy of them, on this machine or another.
        times: hash of when the files changed; for what is kept of their content on this machine.
        flip_is_safe: whether an image means the same when mirrored.
        spec: the registry's entry, or None for the user's own data.
        folder: the local folder the files were found in, or None.
        mask_column: column that holds the encoded masks, null for an image without one; None for data without masks.
        masks: how the masks are to be read, or None.
        left_out: files, below the folder, that look like images and are not read.
        notes: how a folder was understood, a sentence each.
    """

    dataset: Any
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    flip_is_safe: bool
    spec: DatasetSpec | None
    folder: Path | None
    mask_column: str | None = None
    masks: Masks | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label_lists: str | None = None
    times: str = ""


def load_source(
    dataset: str,
    *,
    split: str = "train",
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    several_labels: bool = False,
) -> Source:
    """Find the images of ``dataset`` without decoding any.

    Args:
        dataset: a name of the registry; or an existing folder that holds image files (sub-folders are not classes;
            they are splits only if every image lies in one named like a split), parquet or arrow files
            (``train-*.parquet``, also below ``data/``), or what ``save_to_disk`` wrote; or a Hub id ``owner/name``.
            A folder named like a registry entry is reached as ``./name``.
        split: which split to read.
        dataset_config: configuration of the data set, where it has several.
        image_column: column with the images; found by its type if None.
        label_column: column with the class numbers; the only ``ClassLabel`` column if None; ``folder`` for the names
            of the sub-folders of a folder of images. Labels are optional.
        streaming: read while training instead of downloading and converting everything first.
        several_labels: whether ``label_column`` may hold lists; the only column of lists of ``ClassLabel`` does it if
            None and no column holds a ``ClassLabel``.

    Raises:
        InputError: if there is no such data set, split, configuration or column.
    """
    spec = DATASETS.get(dataset)
    opened, folder = open_dataset(
        dataset, split, dataset_config, streaming=streaming, folder_labels=label_column == FOLDER_LABELS
    )
    loaded = opened.dataset
    image_column = find_image_column(loaded.features, image_column or (spec.image_column if spec else None))
    if spec is not None and spec.task == "classification":
        label_column = label_column or spec.label_column
    label_column = _find_label_column(loaded.features, label_column)
    label_lists = _find_label_lists(loaded.features, label_column) if several_labels else None
    label_column = None if label_lists else label_column
    is_path = isinstance(loaded.features[image_column], datasets.Value)  # to files beside the table, perhaps
    class_names = _class_names(loaded.features, label_column, spec)
    if label_column is not None and class_names is None and not streaming:
        loaded, class_names = _with_class_numbers(loaded, label_column)
    return Source(
        dataset=loaded.cast_column(image_column, datasets.Image(decode=False)),
        image_column=image_column,
        label_column=label_column,
        class_names=class_names,
        name=folder.name if folder is not None else dataset,
        fingerprint=opened.fingerprint,
        flip_is_safe=spec.flip_is_safe if spec is not None else True,
        spec=spec,
        folder=folder,
        left_out=() if is_path else opened.left_out,
        notes=opened.notes,
        label_lists=label_lists,
        times=opened.times,
    )


def refuse_unknown(dataset: str) -> None:
    """Refuse what is no data set by its name alone, without opening it.

    Raises:
        InputError: if it is no name of the registry, nothing on this machine, and no Hub id.
    """
    if not (dataset in DATASETS or Path(dataset).expanduser().exists() or HUB_ID.fullmatch(dataset)):
        raise InputError(
            f"{dataset!r} is not an existing folder: give a folder that exists, a Hub id `owner/name` or one of "
            f"{', '.join(DATASETS)}."
        )


def open_dataset(
    dataset: str, split: str, config: str | None, *, streaming: bool = False, folder_labels: bool = False
) -> tuple[Loaded, Path | None]:
    """Return what ``dataset`` names, as in :func:`load_source`: a split, and its local folder."""
    refuse_unknown(dataset)
    spec = DATASETS.get(dataset)
    folder = None
    if spec is not None and spec.source == EMBEDDED:
        digits, fingerprint = EMBEDDED_LOADERS[dataset](split)
        opened = Loaded(digits.to_iterable_dataset() if streaming else digits, fingerprint)
    elif spec is not None:
        opened = _load_from_hub(spec.source, config or spec.config, split, streaming)
    elif Path(dataset).expanduser().exists():
        folder = Path(dataset).expanduser().resolve()
        opened = load_folder(folder, split, config, streaming, folder_labels=folder_labels)
    else:
        opened = _load_from_hub(dataset, config, split, streaming)
    if spec is not None and Path(dataset).is_dir():
        opened = replace(opened, notes=(*opened.notes, f"a folder {dataset!r} is here too: ./{dataset} would take it"))
    if opened.dataset.features is None:
        raise InputError(f"{dataset!r} does not tell the types of its columns when streamed: turn streaming off.")
    return opened, folder


def _load_from_hub(hub_id: str, config: str | None, split: str, streaming: bool) -> Loaded:
    """Load a split from the Hub or from what was downloaded before, and say in one sentence why that fails."""
    try:
        loaded = datasets.load_dataset(hub_id, config, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:  # whatever the client raises for "no net", "no such ..."
        offline = "; HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else ""
        no_split = str(error).startswith(("Unknown split", "Bad split"))
        raise (MissingSplit if no_split else InputError)(
            f"{hub_id!r} is not an existing folder here, and its split {split!r} could not be loaded from the Hub "
            f"({str(error).strip().splitlines()[0]}{offline}): check the spelling, the network and your access, or "
            "give a folder that exists."
        ) from error
    if streaming:
        return Loaded(loaded, f"stream-{hub_id}-{config}-{split}")
    return Loaded(loaded, str(loaded._fingerprint))


def find_image_column(features: Any, asked: str | None) -> str:
    """Return the column that holds the images: the one asked for, else the one whose type or name says so."""
    readable = [name for name in features if can_hold_images(features[name])]
    if asked is not None:
        if asked in readable:
            return asked
        reason = "holds no images" if asked in features else "does not exist"
        raise InputError(f"Image column {asked!r} {reason}: the columns are {columns_of(features)}.")
    typed = [name for name in features if isinstance(features[name], datasets.Image)]
    named = [name for name in IMAGE_NAMES if name in readable]
    for candidates in (typed, [name for name in named if name in typed], named):
        if len(candidates) == 1:
            return candidates[0]
    raise InputError(f"Which column holds the images? Set `image_column` to one of {columns_of(features)}.")


def can_hold_images(feature: Any) -> bool:
    """Return whether a column of this type can hold encoded images, or paths to them."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ENCODED_TYPES
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _find_label_column(features: Any, asked: str | None) -> str | None:
    """Return the column of class numbers: the one asked for, else the only ``ClassLabel``, else None."""
    if asked is not None:
        if asked in features:
            return asked
        raise InputError(f"Label column {asked!r} does not exist: the columns are {columns_of(features)}.")
    labels = [name for name in features if isinstance(features[name], datasets.ClassLabel)]
    return labels[0] if len(labels) == 1 else None


def _find_label_lists(features: Any, label_column: str | None) -> str | None:
    """Return ``label_column`` if it holds lists; where it is None, the only column of lists of ``ClassLabel``."""
    if label_column is not None:
        return label_column if isinstance(features[label_column], LISTS) else None
    found = class_lists(features)
    single = any(isinstance(feature, datasets.ClassLabel) for feature in features.values())
    return found[0] if len(found) == 1 and not single else None


def class_lists(features: Any) -> list[str]:
    """Return the columns that hold a list of ``ClassLabel`` for each image."""
    lists = {name: feature.feature for name, feature in features.items() if isinstance(feature, LISTS)}
    return [name for name, item in lists.items() if isinstance(item, datasets.ClassLabel)]


def lists_of_labels(source: Source, rows: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels (N, K) of some rows of a source with ``label_lists``, and the names of the K.

    Raises:
        InputError: as :func:`tpssl_hf.data.multilabel.number_lists` does.
    """
    assert source.label_lists is not None
    column = source.dataset.select_columns([source.label_lists]).with_format("arrow")
    labels, names = number_lists(column[:].column(0).to_pylist(), names_of_lists(source), source.label_lists)
    return labels[rows], names


def names_of_lists(source: Source) -> tuple[str, ...] | None:
    """Return the names of the labels in ``label_lists``; None where there is no such column or it names none."""
    item = source.dataset.features[source.label_lists].feature if source.label_lists else None
    return tuple(item.names) if isinstance(item, datasets.ClassLabel) else None


def _class_names(features: Any, label_column: str | None, spec: DatasetSpec | None) -> tuple[str, ...] | None:
    if label_column is None:
        return None
    if spec is not None and spec.class_names is not None:
        return spec.class_names
    feature = features[label_column]
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _with_class_numbers(loaded: Any, column: str) -> tuple[Any, tuple[str, ...] | None]:
    """Number the classes of a label column that does not do so itself, see :func:`number_column`."""
    values = loaded.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    numbers, names = number_column(values, column)
    if numbers == values and names is None:
        return loaded, None
    return loaded.remove_columns([column]).add_column(column, numbers, feature=datasets.Value("int64")), names


def columns_of(features: Any) -> str:
    """Return names and types of columns, for messages."""
    kinds = {name: getattr(feature, "dtype", "") or type(feature).__name__ for name, feature in features.items()}
    kinds |= {name: type(f).__name__ for name, f in features.items() if not isinstance(f, datasets.Value)}
    return few([f"{name} ({kind})" for name, kind in kinds.items()], 20)
