"""Folders in which images and masks are files: any two folders, or an official layout of a known data set."""

import re
from dataclasses import dataclass
from pathlib import Path

from tpssl_hf.data.folder_layout import choose_split, image_files, split_key, split_kind
from tpssl_hf.data.masks import Masks
from tpssl_hf.data.segmentation_classes import CITYSCAPES, ISIC, VOC
from tpssl_hf.errors import InputError

VOC_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")
ISIC_FOLDER = re.compile(r"ISIC-2017_(?P<split>Training|Validation|Test)(_v2)?_Data")
ISIC_SPLITS = {"Training": "train", "Validation": "validation", "Test": "test"}
LABELED_LIST = "labeled.txt"
UNLABELED_LIST = "unlabeled.txt"


@dataclass(frozen=True)
class Pairs:
    """The files of a split.

    Attributes:
        images: in ascending order.
        labels: the mask of each image, or None.
        masks: how the masks are to be read; None where the layout does not tell.
    """

    images: list[Path]
    labels: list[Path | None]
    masks: Masks | None


def find_official_pairs(folder: Path, split: str) -> Pairs | None:
    """Return the files of a split of Pascal VOC 2012, Cityscapes or ISIC 2017, or None in another layout.

    Raises:
        InputError: if the layout has no such split, or a file of it is missing.
    """
    for place in VOC_PLACES:
        if (folder / place / "ImageSets" / "Segmentation").is_dir():
            return _find_voc(folder / place, split)
    if (folder / "leftImg8bit").is_dir():
        return _find_cityscapes(folder, split)
    isic = {path: match for path in sorted(folder.iterdir()) if (match := ISIC_FOLDER.fullmatch(path.name))}
    return _find_isic(folder, isic, split) if isic else None


def _find_voc(root: Path, split: str) -> Pairs:
    """Find a split of ``ImageSets/Segmentation``; ``trainaug`` is made from SBD's masks if no list says it."""
    lists = {
        path.stem: [Path(line.split()[0]).stem for line in _read_lines(path)]  # some lists hold paths, in pairs
        for path in sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    }
    own, more = root / "SegmentationClass", root / "SegmentationClassAug"
    if more.is_dir() and "trainaug" not in lists:
        stems = {path.stem for path in more.glob("*.png")} | set(lists.get("train", ()))
        lists["trainaug"] = list(stems - set(lists.get("val", ())))
    images = [root / "JPEGImages" / f"{stem}.jpg" for stem in sorted(choose_split(lists, split, root))]
    for image in images:
        if not image.is_file():
            raise InputError(
                f"Split {split!r} of {root.name!r} names {image.stem}, and JPEGImages holds no {image.name}: "
                "unpack the whole archive."
            )
    labels = [_first_file([own / f"{image.stem}.png", more / f"{image.stem}.png"]) for image in images]
    return Pairs(images, labels, VOC)


def _find_cityscapes(folder: Path, split: str) -> Pairs:
    splits = {path.name: path for path in sorted((folder / "leftImg8bit").iterdir()) if path.is_dir()}
    split = split_key(splits, split, folder)
    images = sorted(splits[split].glob("*/*_leftImg8bit.png"))
    labels = []
    for image in images:
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        labels.append(_first_file([folder / "gtFine" / split / image.parent.name / name]))
    return Pairs(images, labels, CITYSCAPES)


def _find_isic(folder: Path, found: dict[Path, re.Match[str]], split: str) -> Pairs:
    places = {ISIC_SPLITS[match["split"]]: path for path, match in found.items()}
    place = choose_split(places, split, folder)
    images = sorted(place.glob("*.jpg"))  # its PNG files are superpixels
    truth = folder / place.name.replace("_Data", "_Part1_GroundTruth")
    return Pairs(images, [_first_file([truth / f"{p.stem}_segmentation.png"]) for p in images], ISIC)


def _first_file(candidates: list[Path]) -> Path | None:
    return next((path for path in candidates if path.is_file()), None)


def find_pairs(folder: Path, split: str, images_name: str, masks_name: str) -> Pairs | None:
    """Return the files of two folders, matched by their names without suffix; or None if there are no such folders.

    The two folders lie in ``folder``, which then is ``train``, or in sub-folders that are named like splits. Beside
    them, ``labeled.txt`` may name the images whose masks are used and ``unlabeled.txt`` those whose masks are
    not, one a line; without either list every mask is used.

    Raises:
        InputError: if there is no such split, a name is not unique, or a mask or line of a list has no image.
    """
    splits = [path for path in sorted(folder.iterdir()) if path.is_dir() and split_kind(path.name)]
    places = {"train": folder, **{path.name: path for path in splits}}
    places = {name: place for name, place in places.items() if (place / images_name).is_dir()}
    if not places:
        return None
    root = choose_split(places, split, folder)
    if not (root / masks_name).is_dir():
        raise InputError(
            f"Folder {root.name!r} holds {images_name!r} and no {masks_name!r}: put the masks there, each named "
            "like its image, or name their folder with `mask_column`."
        )
    images, masks = _by_stem(root / images_name), _by_stem(root / masks_name)
    for stem, mask in masks.items():
        if stem not in images:
            raise InputError(
                f"Mask {mask.relative_to(folder)} has no image {stem!r} in {images_name!r}: give every mask the "
                "name of its image, or remove it."
            )
    used = _choose_labeled(root, images, masks)
    return Pairs(list(images.values()), [masks.get(stem) if stem in used else None for stem in images], None)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Return the images below ``folder`` by their path without suffix, in ascending order of it."""
    found: dict[str, Path] = {}
    for path in sorted(image_files(folder)):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise InputError(
                f"Folder {folder.name!r} holds both {found[stem].name} and {path.name}, and names without suffix "
                "match images to masks: rename or remove one."
            )
        found[stem] = path
    return dict(sorted(found.items()))


def _choose_labeled(root: Path, images: dict[str, Path], masks: dict[str, Path]) -> set[str]:
    """Return the names of the images whose masks may be used."""
    lists = {name: _read_lines(root / name) for name in (LABELED_LIST, UNLABELED_LIST) if (root / name).is_file()}
    for name, stems in lists.items():
        for stem in stems:
            if stem not in images or (name == LABELED_LIST and stem not in masks):
                kind = "mask" if stem in images else "image"
                raise InputError(f"{name} names {stem!r}, which has no {kind}: list names without suffix, one a line.")
    labeled, unlabeled = set(lists.get(LABELED_LIST, masks)), set(lists.get(UNLABELED_LIST, ()))
    if LABELED_LIST in lists and (both := sorted(labeled & unlabeled)):
        raise InputError(f"{both[0]!r} is in {LABELED_LIST} and in {UNLABELED_LIST}: leave it in one of them.")
    return labeled - unlabeled


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"List {path.name} cannot be read ({error}): give a text file, one name a line.") from error
    return [line.strip() for line in lines if line.strip()]
