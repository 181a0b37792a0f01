"""Data sets that are already on this machine: folders of pictures or tables, saved data sets, embedded digits."""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from tpssl_hf.errors import InputError

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
)
TABLE_SUFFIXES = (".parquet", ".arrow")
SPLIT_WORDS = (
    "train",
    "test",
    "validation",
    "valid",
    "val",
    "dev",
    "extra",
    "unlabeled",
    "unlabelled",
    "unsupervised",
)
SHARD_NAME = re.compile(r"(?P<split>\w+?)-\d{5}-of-\d{5}(-\w+)?")
SPLIT_NAME = re.compile(rf"(?P<split>{'|'.join(SPLIT_WORDS)})([^a-zA-Z].*)?")
DIGITS_TEST_PICTURES = 300
FOLDER_LABELS = "folder"  # the label column that is not stored anywhere: the name of the sub-folder


def load_digits(split: str) -> tuple[Any, str]:
    """Return scikit-learn's digits and their fingerprint: 1,497 pictures in ``train``, 300 in ``test``.

    The split is stratified and always the same. Grey values 0..16 become 0..255.
    """
    grey, classes = digit_pictures(split, "digits")
    features = datasets.Features(
        image=datasets.Image(decode=False), label=datasets.ClassLabel(names=list("0123456789"))
    )
    columns = {
        "image": [{"bytes": as_png(picture), "path": None} for picture in grey],
        "label": classes.tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features), f"digits-1-{split}"


def digit_pictures(split: str, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split for an embedded data set: (N, 8, 8) uint8 grey, and their classes (N,)."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise InputError(f"{dataset!r} has no split {split!r}: its splits are train, test.")
    digits = load()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=DIGITS_TEST_PICTURES, stratify=digits.target, random_state=0
    )
    rows = np.sort(parts[("train", "test").index(split)])
    return np.round(digits.images[rows] * (255 / 16)).astype(np.uint8), digits.target[rows]


def load_folder(
    folder: Path, split: str, config: str | None, streaming: bool, *, folder_labels: bool = False
) -> tuple[Any, str]:
    """Return the pictures of a split of ``folder``, still encoded, and the fingerprint of its files.

    With ``folder_labels``, a folder of pictures gets a column ``folder`` that holds the class: the sub-folder's name.
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
    return _load_pictures(folder, split, streaming, folder_labels)


def _load_saved(folder: Path, split: str, streaming: bool) -> tuple[Any, str]:
    """Load what ``save_to_disk`` wrote: one data set, which counts as ``train``, or a dictionary of splits."""
    loaded = datasets.load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    chosen = choose_split(splits, split, folder)
    root = folder / split if isinstance(loaded, datasets.DatasetDict) else folder
    fingerprint = fingerprint_files(folder, sorted(path for path in root.rglob("*") if path.is_file()))
    return chosen.to_iterable_dataset() if streaming else chosen, fingerprint


def _find_tables(folder: Path, config: str | None) -> list[Path]:
    """Return the parquet or arrow files of ``folder``, of its ``data/``, or of its only (or named) configuration."""
    if config is None:
        for place in (folder, folder / "data"):
            if tables := _tables_in(place):
                return tables
    places = {place.name: place for place in sorted(folder.iterdir()) if place.is_dir() and _tables_in(place)}
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


def _tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in ``folder``; of the first kind only, since the other would repeat its rows."""
    for suffix in TABLE_SUFFIXES:
        if tables := sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")):
            return tables
    return []


def _load_tables(folder: Path, tables: list[Path], split: str, streaming: bool) -> tuple[Any, str]:
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        match = SHARD_NAME.fullmatch(table.stem) or SPLIT_NAME.fullmatch(table.stem)
        by_split.setdefault(match["split"] if match else "", []).append(table)
    if set(by_split) == {""}:  # no name says which split it is
        by_split = {"train": tables}
    files = choose_split(by_split, split, folder)
    loaded = datasets.load_dataset(
        files[0].suffix[1:], data_files={split: [str(path) for path in files]}, split=split, streaming=streaming
    )
    return loaded, fingerprint_files(folder, files)


def _load_pictures(folder: Path, split: str, streaming: bool, folder_labels: bool) -> tuple[Any, str]:
    """List the picture files below ``folder``; top-level folders are splits if all of them are named like splits."""
    files = sorted(picture_files(folder))
    if not files:
        raise InputError(
            f"Folder {folder.name!r} holds no pictures ({' '.join(sorted(PICTURE_SUFFIXES))}) and no parquet or arrow "
            "files, also not in its sub-folders."
        )
    tops = {path.relative_to(folder).parts[0] for path in files}
    if tops <= set(SPLIT_WORDS):
        by_split = {top: [path for path in files if path.relative_to(folder).parts[0] == top] for top in sorted(tops)}
    else:
        by_split = {"train": files}
    chosen = choose_split(by_split, split, folder)
    columns: dict[str, list[Any]] = {"image": [str(path) for path in chosen]}
    features = datasets.Features(image=datasets.Value("string"))
    if folder_labels:
        names = sorted({path.parent.name for path in files})  # of all splits, so that they number classes alike
        columns[FOLDER_LABELS] = [names.index(path.parent.name) for path in chosen]
        features[FOLDER_LABELS] = datasets.ClassLabel(names=names)
    loaded = datasets.Dataset.from_dict(columns, features=features)
    loaded = loaded.cast_column("image", datasets.Image(decode=False))
    return loaded.to_iterable_dataset() if streaming else loaded, fingerprint_files(folder, chosen)


def picture_files(folder: Path) -> Iterator[Path]:
    """Yield every file below ``folder`` with a picture's suffix, following links to folders but never in a circle."""
    visited = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            names.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(parent, name)


def choose_split(by_split: Any, split: str, folder: Path) -> Any:
    """Return what ``by_split`` holds for ``split``, or say which splits there are."""
    if split not in by_split:
        present = ", ".join(name or "(unnamed)" for name in by_split)
        raise InputError(f"Folder {folder.name!r} has no split {split!r}: its splits are {present}.")
    return by_split[split]


def fingerprint_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash relative names, sizes and times of change: cheap, and the same wherever the folder is mounted."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat() if path.exists() else path.lstat()
        digest.update(f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def as_png(pixels: np.ndarray) -> bytes:
    """Return (H, W) grey or (H, W, 3) RGB uint8 pixels as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
