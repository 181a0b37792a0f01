"""Data sets that are already on this machine: folders of images or tables, saved data sets, embedded digits."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from tpssl_hf.data.fingerprints import fingerprint_files
from tpssl_hf.data.folder_layout import (
    SPLIT_WORDS,
    MissingSplit,
    choose_split,
    find_layout,
    is_hidden,
    look_below,
    split_key,
)
from tpssl_hf.data.label_values import few
from tpssl_hf.errors import InputError

TABLE_SUFFIXES = (".parquet", ".arrow")
SHARD_NAME = re.compile(r"(?P<split>\w+?)-\d{5}-of-\d{5}(-\w+)?")
SPLIT_NAME = re.compile(rf"(?P<split>{'|'.join(SPLIT_WORDS)})([^a-zA-Z].*)?", re.IGNORECASE)
DIGITS_TEST_IMAGES = 300
FOLDER_LABELS = "folder"  # the label column that is not stored anywhere: the name of the sub-folder


@dataclass(frozen=True)
class Loaded:
    """What was found in a folder.

    Attributes:
        dataset: the images of a split, still encoded.
        fingerprint: of its files, the same for a copy of them.
        times: hash of when they changed.
        left_out: files, below the folder, that look like images and are not read.
        notes: how the folder was understood, a sentence each.
    """

    dataset: Any
    fingerprint: str
    times: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_digits(split: str) -> tuple[Any, str]:
    """Return scikit-learn's digits and their fingerprint: 1,497 images in ``train``, 300 in ``test``.

    The split is stratified and always the same. Gray values 0..16 become 0..255.
    """
    gray, classes = digit_images(split, "digits")
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=list("0123456789"))
    )
    columns = {
        "image": [{"bytes": as_png(image), "path": None} for image in gray],
        "label": classes.tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features), f"digits-1-{split}"


def digit_images(split: str, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split for an embedded data set: (N, 8, 8) uint8 gray, and their classes (N,)."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise MissingSplit(f"{dataset!r} has no split {split!r}: its splits are train, test.")
    digits = load()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=DIGITS_TEST_IMAGES, stratify=digits.target, random_state=0
    )
    rows = np.sort(parts[("train", "test").index(split)])
    return np.round(digits.images[rows] * (255 / 16)).astype(np.uint8), digits.target[rows]


def load_folder(
    folder: Path, split: str, config: str | None, streaming: bool, *, folder_labels: bool = False
) -> Loaded:
    """Return the images of a split of ``folder``, still encoded, and the fingerprint of its files.

    With ``folder_labels``, a folder of images gets a column ``folder`` that holds the class: the sub-folder's name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder.name!r} is a file: give the folder that holds it.")
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _load_saved(folder, split, streaming)
    tables = _find_tables(folder, config)
    if tables:
        return _load_tables(folder, tables, split, streaming)
    if config is not None:
        raise InputError(f"Folder {folder.name!r} has no configuration {config!r}: leave `dataset_config` out.")
    return _load_images(folder, split, streaming, folder_labels)


def _load_saved(folder: Path, split: str, streaming: bool) -> Loaded:
    """Load what ``save_to_disk`` wrote: one data set, which counts as ``train``, or a dictionary of splits."""
    loaded = datasets.load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    key = split_key(splits, split, folder)
    chosen, root = splits[key], folder / key if isinstance(loaded, datasets.DatasetDict) else folder
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return Loaded(chosen.to_iterable_dataset() if streaming else chosen, *fingerprint_files(folder, files))


def _find_tables(folder: Path, config: str | None) -> list[Path]:
    """Return the parquet or arrow files of ``folder``, of its ``data/``, or of its only (or named) configuration."""
    if config is None:
        for place in (folder, folder / "data"):
            if tables := _tables_in(place):
                return tables
    places = {place.name: place for place in sorted(folder.iterdir()) if _holds_tables(place)}
    if not places:
        return []
    if config is None and len(places) > 1:
        raise InputError(
            f"Folder {folder.name!r} has configurations {', '.join(places)}: set `dataset_config` to one."
        )
    name = config or next(iter(places))
    if name not in places:
        raise InputError(f"Folder {folder.name!r} has no configuration {name!r}, it has {', '.join(places)}.")
    return _tables_in(places[name])


def _holds_tables(place: Path) -> bool:
    return place.is_dir() and not is_hidden(place.name) and bool(_tables_in(place))


def _tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in ``folder``; of the first kind only, since the other would repeat its rows."""
    for suffix in TABLE_SUFFIXES:
        if tables := sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")):
            return tables
    return []


def _load_tables(folder: Path, tables: list[Path], split: str, streaming: bool) -> Loaded:
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        match = SHARD_NAME.fullmatch(table.stem) or SPLIT_NAME.fullmatch(table.stem)
        by_split.setdefault(match["split"].lower() if match else "", []).append(table)
    if set(by_split) == {""}:  # no name says which split it is
        by_split = {"train": tables}
    files = choose_split(by_split, split, folder)
    loaded = datasets.load_dataset(
        files[0].suffix[1:], data_files={split: [str(path) for path in files]}, split=split, streaming=streaming
    )
    unnamed = [path.name for path in by_split.get("", ())]
    notes = (f"tables that are named like no split are left out: {few(unnamed)}",) if unnamed else ()
    beside = sorted(str(path.relative_to(folder)) for found in look_below(folder) for path in found)
    return Loaded(loaded, *fingerprint_files(folder, files), tuple(beside), notes)


def _load_images(folder: Path, split: str, streaming: bool, folder_labels: bool) -> Loaded:
    """List the image files of a split of ``folder``, see :func:`tpssl_hf.data.folder_layout.find_layout`."""
    layout = find_layout(folder, split, class_folders=folder_labels)
    columns: dict[str, list[Any]] = {"image": [str(path) for path in layout.images]}
    features = datasets.Features(image=datasets.Value("string"))
    if folder_labels:
        columns[FOLDER_LABELS] = layout.classes
        names = list(layout.class_names)
        features[FOLDER_LABELS] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    loaded = datasets.Dataset.from_dict(columns, features=features)
    loaded = loaded.cast_column("image", datasets.Image(decode=False))
    hashes = fingerprint_files(folder, layout.images)
    return Loaded(loaded.to_iterable_dataset() if streaming else loaded, *hashes, layout.left_out, layout.notes)


def as_png(pixels: np.ndarray) -> bytes:
    """Return (H, W) gray or (H, W, 3) RGB uint8 pixels as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
