"""Write a file or a folder under a temporary name beside it, then rename: readers see the old one or the new one.

Only one process may write to a path at a time, unless it names a temporary file of its own.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPLACED = ".replaced-"  # prefix of the name under which a folder waits while a new one takes its place
TEMPORARY = ".tmp"  # ends the hidden name of what is being written


@contextmanager
def replacing_file(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; the file takes the place of ``path`` if the block ends without an exception.

    Args:
        path: The file to write.
        temporary: The temporary path, in the same folder; ``.NAME.tmp`` if None.
    """
    temporary = temporary or path.with_name(f".{path.name}{TEMPORARY}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already unless the write failed


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one piece."""
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing_folder(folder: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a path at which to make a folder, which takes the place of ``folder`` if the block ends without exception.

    Args:
        folder: The folder to write.
        temporary: The temporary path, beside it; a hidden one that nobody else uses if None.
    """
    temporary = temporary or folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        yield temporary
        swap_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already unless the write failed


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes have left directly in ``folder``, in which nobody else may be writing."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def swap_folder(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder``. One that is there already waits as ``.replaced-NAME`` until that is done."""
    replaced = folder.with_name(REPLACED + folder.name)
    if folder.exists():
        if replaced.exists():  # left by a kill
            shutil.rmtree(replaced)
        os.replace(folder, replaced)  # a folder cannot be renamed onto a filled one
    os.replace(temporary, folder)
    sync_folder(folder.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def write_new_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a file that must not exist yet, for a folder that is renamed when all of it is on the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "r+b") as file:  # Windows syncs nothing that is open for reading only
        os.fsync(file.fileno())


def sync_files(folder: Path) -> None:
    """Wait until the files directly in a folder are on the disk, so that a folder that is renamed then is whole."""
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
