"""How a folder of images is understood: which files are read, which folders are splits and which are classes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpssl_hf.data.label_values import few, plain
from tpssl_hf.errors import InputError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
    + (".heic", ".heif", ".hif", ".jxl")  # by plug-ins, or else named as what cannot be read
)
UNREAD_SUFFIXES = frozenset(
    (".heics", ".avifs", ".jxr", ".wdp", ".bpg", ".j2k", ".jpf", ".jpx", ".jpm")
    + (".svg", ".svgz", ".pdf", ".eps", ".ai", ".psd", ".psb", ".xcf", ".djvu", ".wmf", ".emf", ".ico", ".icns")
    + (".tga", ".pcx", ".sgi", ".exr", ".hdr", ".pfm", ".pam", ".apng", ".dib", ".mpo", ".dds", ".qoi", ".flif")
    + (".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef")
    + (".srw", ".x3f", ".3fr", ".iiq", ".rwl", ".dcm", ".dicom", ".nii", ".mha", ".mhd", ".nrrd", ".fits", ".fit")
    + (".svs", ".ndpi", ".czi", ".mrxs", ".scn", ".npy", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg")
)
OTHER_SUFFIXES = frozenset((".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".xml", ".yaml", ".yml", ".html", ".py"))
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF", b"\x00\x00\x00\x0cjP")
JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__"})
SPLIT_KINDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "extra": "extra",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
    "unsupervised": "unlabeled",
}
SPLIT_WORDS = tuple(SPLIT_KINDS)
MOST_STRAYS = 0.05  # of all images


@dataclass(frozen=True)
class Layout:
    """The images of a split of a folder.

    Attributes:
        images: their files, in ascending order.
        classes: number of the class of each, None for an unlabeled one; empty where folders are not classes.
        class_names: names in the order of the class numbers.
        left_out: files, below the folder, that look like images and are not read.
        notes: how the folder was understood, a sentence each.
    """

    images: list[Path]
    classes: list[int | None]
    class_names: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def split_kind(name: str) -> str | None:
    """Return which split a folder or file of this name is, in any case; None for another name."""
    return SPLIT_KINDS.get(name.casefold())


def split_key(by_split: Mapping[str, Any], split: str, folder: Path) -> str:
    """Return the key of ``by_split`` that means ``split``, or say which splits there are.

    Raises:
        MissingSplit: if there is none.
        InputError: if there are several.
    """
    if split in by_split:
        return split
    same = [name for name in by_split if name.casefold() == split.casefold()]
    same = same or [name for name in by_split if split_kind(name) == split_kind(split) is not None]
    if len(same) == 1:
        return same[0]
    if same:
        raise InputError(f"Folder {folder.name!r} has the splits {few(same)}: which is {split!r}? Name it exactly.")
    present = few([name or "(unnamed)" for name in by_split])
    raise MissingSplit(f"Folder {folder.name!r} has no split {split!r}: its splits are {present}.")


class MissingSplit(InputError):
    """A data set that is there has no split of the name that was asked for.

    Attributes:
        has_no_splits: whether it is one folder of images, all of which count as ``train``.
    """

    has_no_splits = False


def choose_split(by_split: Mapping[str, Any], split: str, folder: Path) -> Any:
    """Return what ``by_split`` holds for ``split``, see :func:`split_key`."""
    return by_split[split_key(by_split, split, folder)]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's own: hidden, or left by a system."""
    return name.startswith(".") or name in JUNK_FOLDERS


def image_files(folder: Path) -> Iterator[Path]:
    """Yield every file below ``folder`` with an image's suffix, following links to folders but never in a circle."""
    return (path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES and _is_text(path))


def look_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files below ``folder``, and those that look like images and are not read; both sorted."""
    images, unread = [], []
    for path in _files_below(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and _is_text(path):
            images.append(path)
        elif _looks_like_image(path):
            unread.append(path)
    return sorted(images), sorted(unread)


def _files_below(folder: Path) -> Iterator[Path]:
    visited = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            names.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not is_hidden(name))
        yield from (Path(parent, name) for name in files if not is_hidden(name))


def _is_text(path: Path) -> bool:
    """Return whether a name is text: names in an old encoding cannot be stored in a table."""
    return str(path).encode("utf-8", "ignore").decode() == str(path)


def _looks_like_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return True
    if suffix in OTHER_SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(SIGNATURES[:3]) or (not suffix and (head.startswith(SIGNATURES) or head[4:8] == b"ftyp"))


def find_layout(folder: Path, split: str, *, class_folders: bool) -> Layout:
    """Say which images below ``folder`` belong to ``split`` and, if asked, to which class.

    Top-level folders are splits if all of them are named like splits, in any case. A class is a folder at the first
    level below the split, however deep its images lie in it; images above the class folders are unlabeled, and so
    are those of a folder called ``unlabeled``.

    Raises:
        InputError: without images, without the split, or where folders can be understood in two ways.
    """
    images, unread = look_below(folder)
    left_out = tuple(_shown(path, folder) for path in unread)
    if not images:
        beside = f"; {len(unread):,} files look like images and are not read: {few(left_out, 5)}" if unread else ""
        raise InputError(
            f"Folder {folder.name!r} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))}) and no parquet or arrow "
            f"files, also not in its sub-folders{beside}."
        )
    parts = {path: path.relative_to(folder).parts for path in images}
    tops = sorted({own[0] for own in parts.values() if len(own) > 1})
    has_splits = _are_splits(tops, images, parts, folder)
    notes: list[str] = []
    by_split = {"train": images}
    if has_splits:
        by_split = {top: [path for path in images if parts[path][0] == top] for top in tops}
        if strays := [own[0] for own in parts.values() if len(own) == 1]:
            notes.append(f"{len(strays):,} images beside the folders {few(tops)} are left out: {few(strays, 5)}")
    try:
        key = split_key(by_split, split, folder)
    except MissingSplit as error:
        error.has_no_splits = not has_splits
        raise
    if not class_folders:
        return Layout(by_split[key], [], (), left_out, tuple(notes))
    depth, place = (1, f"below the split {key!r}") if has_splits else (0, f"in {folder.name!r}")
    inner = {path: own[depth:] for path, own in parts.items() if len(own) > depth}
    class_of = {path: _class_of(own, parts[path][:depth]) for path, own in inner.items()}
    names = tuple(sorted({name for name in class_of.values() if name is not None}))
    chosen = by_split[key]
    if not names:
        notes.append(f"there are no folders {place} whose names could be classes, so all images are unlabeled")
        return Layout(chosen, [None] * len(chosen), (), left_out, tuple(notes))
    notes += _notes_on_classes(names, {path: inner[path] for path in chosen}, place, folder)
    empty = {plain(own[depth]) for path in unread if len(own := path.relative_to(folder).parts) > depth + 1}
    if lost := sorted(empty - set(names)):
        notes.append(f"no classes, because none of their files is read: {few(lost, 5)}")
    number_of: dict[str | None, int | None] = {None: None}
    number_of |= {name: number for number, name in enumerate(names)}
    return Layout(chosen, [number_of[class_of[path]] for path in chosen], names, left_out, tuple(notes))


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)).encode("utf-8", "replace").decode()


def _are_splits(
    tops: Sequence[str], images: Sequence[Path], parts: Mapping[Path, tuple[str, ...]], folder: Path
) -> bool:
    """Return whether the top-level folders are splits; refuse folders that are both splits and something else."""
    named = [top for top in tops if split_kind(top) is not None]
    strays = [own[0] for own in parts.values() if len(own) == 1]
    if tops and len(named) == len(tops):
        if len(strays) > MOST_STRAYS * len(images):
            raise InputError(
                f"Folder {folder.name!r} holds {len(strays):,} images beside the folders {few(named)}, which are "
                f"named like splits ({few(strays, 3)}): move them into one of these folders, or elsewhere."
            )
        return True
    if len({split_kind(top) for top in named} & {"train", "test", "validation"}) > 1:
        others = [top for top in tops if top not in named]
        raise InputError(
            f"Folder {folder.name!r} holds {few(named)}, which are named like splits, and also {few(others, 5)}: move "
            "either away, so that all are splits or none is."
        )
    return False


def _class_of(inner: Sequence[str], above: Sequence[str]) -> str | None:
    """Return the class of an image by its path below the split; None for an unlabeled one."""
    unlabeled = any(split_kind(name) == "unlabeled" for name in (*above, inner[0]))
    return None if len(inner) == 1 or unlabeled else plain(inner[0])


def _notes_on_classes(
    names: tuple[str, ...], inner: Mapping[Path, Sequence[str]], place: str, folder: Path
) -> list[str]:
    """Say which folders are classes, and what lies above and below them.

    Raises:
        InputError: if the folders below the classes are splits.
    """
    deeper = sorted({own[1] for own in inner.values() if len(own) > 2})
    if len({split_kind(name) for name in deeper} & {"train", "test", "validation"}) > 1:
        raise InputError(
            f"Folder {folder.name!r} has classes ({few(names, 5)}) with splits in them ({few(deeper, 5)}): put the "
            "splits above the classes (train/cat, test/cat), so that test images are not learned from."
        )
    notes = [f"classes are the {len(names):,} folders {place}: {few(names)}"]
    if len(names) == 1:
        hint = f", such as those in {names[0]!r} ({few(deeper, 5)})" if len(deeper) > 1 else ""
        notes = [f"the only folder {place} is {names[0]!r}: give the folder that holds the class folders{hint}"]
    elif deeper:
        notes.append(f"folders in them are no classes, but belong to the one they are in: {few(deeper, 5)}")
    if strays := [own[0] for own in inner.values() if len(own) == 1]:
        notes.append(f"{len(strays):,} images lie above the class folders and are unlabeled: {few(strays, 5)}")
    return notes
