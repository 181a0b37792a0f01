"""From what the user wrote after ``--dataset`` to images with masks, both still encoded."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from tpssl_hf.data.fingerprints import fingerprint_files
from tpssl_hf.data.folder_layout import look_below
from tpssl_hf.data.mask_folders import Pairs, find_official_pairs, find_pairs
from tpssl_hf.data.masks import MAX_CLASSES, Color, Masks, binary_masks, numbered_masks
from tpssl_hf.data.registry import DATASETS
from tpssl_hf.data.segmentation_classes import BY_NAME
from tpssl_hf.data.sources import Source, can_hold_images, columns_of, find_image_column, open_dataset
from tpssl_hf.errors import InputError

MASK_NAMES = ("mask", "masks", "label", "labels", "annotation", "segmentation", "semantic_segmentation")
CLASSES_FILE = "classes.txt"
CLASS_LINE = re.compile(r"(?P<name>.*\S)\s+(?P<red>\d{1,3})\s+(?P<green>\d{1,3})\s+(?P<blue>\d{1,3})")


def load_mask_source(
    dataset: str,
    *,
    split: str = "train",
    dataset_config: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    mask_threshold: int | None = None,
    mask_orientation: str | None = None,
) -> Source:
    """Find the images of ``dataset`` and their masks without decoding any.

    Classes are those of an official layout; else ``classes.txt`` in the folder names them, one a line in the order of
    their numbers, each followed by ``red green blue`` where masks are stored in colors; else they are known by the
    name of the data set (``camvid``); else they are the numbers up to the highest that is seen. The value 255 of a
    mask stands for pixels to ignore.

    Args:
        dataset: ``digit_scenes``; a folder in the official layout of Pascal VOC 2012 (splits as in
            ``ImageSets/Segmentation``, with SBD's ``SegmentationClassAug`` also ``trainaug``), Cityscapes or ISIC
            2017; a folder with folders ``images`` and ``masks``, itself or in sub-folders named like splits, matched
            by file names without suffix, where ``labeled.txt`` and ``unlabeled.txt`` may say whose masks are used;
            a folder with parquet or arrow files, or what ``save_to_disk`` wrote; or a Hub id.
        split: which split to read.
        dataset_config: configuration of the data set, where it has several.
        image_column: column, or folder, with the images; found by its type, or ``images``, if None.
        mask_column: column, or folder, with the masks, where an empty cell stands for none; found by its type and
            name, or ``masks``, if None. Either of the two names given, no official layout is looked for.
        mask_threshold: 1..255, for black and white masks: values from this on are class 1, smaller ones class 0.
        mask_orientation: ``image`` or ``stored``, see :class:`tpssl_hf.data.masks.Masks`.

    Raises:
        InputError: if there is no such data set, split, configuration or column, or nothing in it is a mask.
    """
    given = Path(dataset).expanduser()
    folder = given.resolve() if dataset not in DATASETS and given.is_dir() else None
    pairs = _find_files(folder, split, image_column, mask_column) if folder is not None else None
    if pairs is not None and folder is not None:
        loaded, hashes, image_column, mask_column = _load_pairs(folder, pairs, dataset_config)
    else:
        loaded, hashes, folder, image_column, mask_column = _load_columns(
            dataset, split, dataset_config, image_column, mask_column
        )
    masks = replace(_find_masks(dataset, folder, pairs, mask_threshold), orientation=mask_orientation)
    spec = DATASETS.get(dataset)
    return Source(
        dataset=_cast(loaded, image_column, mask_column),
        image_column=image_column,
        label_column=None,
        class_names=masks.class_names,
        name=folder.name if folder is not None else dataset,
        fingerprint=hashes[0],
        flip_is_safe=spec is None or spec.flip_is_safe,
        spec=spec,
        folder=folder,
        mask_column=mask_column,
        masks=masks,
        times=hashes[1],
        left_out=_left_out(folder) if pairs is not None and folder is not None else (),
    )


def _left_out(folder: Path) -> tuple[str, ...]:
    """Return what looks like an image below ``folder`` and is not read."""
    return tuple(str(path.relative_to(folder)) for path in look_below(folder)[1])


def _find_files(folder: Path, split: str, image_folder: str | None, mask_folder: str | None) -> Pairs | None:
    """Return the files of a split if images and masks are files in a layout that is known, else None."""
    if image_folder is None and mask_folder is None and (official := find_official_pairs(folder, split)) is not None:
        return official
    return find_pairs(folder, split, image_folder or "images", mask_folder or "masks")


def _cast(loaded: Any, *columns: str) -> Any:
    """Return a data set whose ``columns`` are read as images that stay encoded."""
    for column in columns:
        loaded = loaded.cast_column(column, datasets.Image(decode=False))
    return loaded


def _load_pairs(folder: Path, pairs: Pairs, config: str | None) -> tuple[Any, tuple[str, str], str, str]:
    """Return a data set of the files, the hashes of those that are used, and its columns of images and masks."""
    if config is not None:
        raise InputError(f"Folder {folder.name!r} has no configuration {config!r}: leave `dataset_config` out.")
    used = [path for path in pairs.labels if path is not None]
    if not used:
        raise InputError(
            f"None of the {len(pairs.images):,} images of {folder.name!r} has a mask: unpack the masks beside "
            "them, or give another split."
        )
    columns = {
        "image": [str(path) for path in pairs.images],
        "mask": [None if path is None else str(path) for path in pairs.labels],
    }
    features = datasets.Features(image=datasets.Value("string"), mask=datasets.Value("string"))
    loaded = datasets.Dataset.from_dict(columns, features=features)
    return loaded, fingerprint_files(folder, [*pairs.images, *used]), "image", "mask"


def _load_columns(
    dataset: str, split: str, config: str | None, image_column: str | None, mask_column: str | None
) -> tuple[Any, tuple[str, str], Path | None, str, str]:
    """Return what :func:`tpssl_hf.data.sources.open_dataset` does, and the columns of images and masks."""
    spec = DATASETS.get(dataset)
    if spec is not None and spec.task != "segmentation":
        known = ", ".join(name for name, entry in DATASETS.items() if entry.task == "segmentation")
        raise InputError(f"{dataset!r} has no masks: give a folder or Hub id of images with masks, or {known}.")
    opened, folder = open_dataset(dataset, split, config)
    loaded, hashes = opened.dataset, (opened.fingerprint, opened.times)
    image_column = find_image_column(loaded.features, image_column or (spec.image_column if spec else None))
    mask_column = mask_column or (spec.label_column if spec else None)
    return loaded, hashes, folder, image_column, _find_mask_column(loaded.features, image_column, mask_column)


def _find_mask_column(features: Any, image_column: str, asked: str | None) -> str:
    """Return the column that holds the masks: the one asked for, else the one whose type or name says so."""
    readable = [name for name in features if name != image_column and can_hold_images(features[name])]
    if asked is not None:
        if asked in readable:
            return asked
        reason = "is the image column" if asked == image_column else "holds no images"
        reason = reason if asked in features else "does not exist"
        raise InputError(f"Mask column {asked!r} {reason}: the columns are {columns_of(features)}.")
    typed = [name for name in readable if isinstance(features[name], datasets.Image)]
    named = [name for name in MASK_NAMES if name in readable]
    for candidates in (typed, [name for name in named if name in typed], named):
        if len(candidates) == 1:
            return candidates[0]
    if not typed and not named:
        raise InputError(
            f"There is no column of masks beside {image_column!r} (the columns are {columns_of(features)}): give a "
            "table with a column of masks, or a folder that holds the folders `images` and `masks`."
        )
    raise InputError(f"Which column holds the masks? Set `mask_column` to one of {columns_of(features)}.")


def _find_masks(dataset: str, folder: Path | None, pairs: Pairs | None, threshold: int | None) -> Masks:
    """Return how the masks are to be read: as asked, as ``classes.txt`` says, or as is known of the data set."""
    listed = _read_classes(folder / CLASSES_FILE) if folder is not None and (folder / CLASSES_FILE).exists() else None
    if threshold is not None:
        names = listed.class_names if listed is not None else None
        if names is not None and len(names) != 2:
            raise InputError(
                f"{CLASSES_FILE} names {len(names)} classes and `mask_threshold` makes two: name two, or leave the "
                "threshold out."
            )
        return binary_masks(threshold, (names[0], names[1])) if names is not None else binary_masks(threshold)
    if pairs is not None and pairs.masks is not None:
        return pairs.masks
    if listed is not None:
        return listed
    spec = DATASETS.get(dataset)
    if spec is not None:
        return numbered_masks(spec.class_names)
    name = folder.name if folder is not None else dataset.rsplit("/", 1)[-1]
    return BY_NAME.get(name.lower()) or numbered_masks(None)


def _read_classes(path: Path) -> Masks:
    """Read class names, one a line, and their colors where every line ends in three numbers."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{CLASSES_FILE} cannot be read ({error}): give a text file, one class name a line."
        ) from error
    found = [match for line in lines if (match := CLASS_LINE.fullmatch(line))]
    names = lines if len(found) < len(lines) else [match["name"] for match in found]
    palette: list[Color] = [(int(m["red"]), int(m["green"]), int(m["blue"])) for m in found]
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise InputError(
            f"{CLASSES_FILE} names {len(names)} classes, {len(set(names))} of them different: name each of 2 to "
            f"{MAX_CLASSES} classes once, one a line."
        )
    if not found:
        return numbered_masks(names)
    wrong = [line for line, match in zip(lines, map(CLASS_LINE.fullmatch, lines), strict=True) if not match]
    if wrong or len(set(palette)) < len(palette) or max(map(max, palette)) > 255:
        raise InputError(
            f"{CLASSES_FILE} gives colors to {len(set(palette))} of {len(lines)} classes: write a different color "
            "`red green blue`, each 0 to 255, behind every name or none."
        )
    return numbered_masks(names, palette)
