"""Two hashes of files: what they are, and when they last changed."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

SAMPLED_FILES = 1000  # that are looked into, at most
BLOCK = 4096  # bytes of a file's beginning and of its end


def fingerprint_files(folder: Path, files: Sequence[Path]) -> tuple[str, str]:
    """Hash ``files`` of ``folder`` without reading them all.

    Returns:
        A hash of their names below ``folder``, their sizes and the ends of up to 1,000 of them, which a copy of the
        folder shares, wherever and whenever it was made; and a hash of their times of change. What is kept of a file's
        content needs both, since bytes that are changed in place may be none of those looked at.
    """
    content, times = hashlib.sha256(), hashlib.sha256()
    every = max(1, -(-len(files) // SAMPLED_FILES))
    for number, path in enumerate(files):
        status = path.stat() if path.exists() else path.lstat()
        content.update(f"{path.relative_to(folder)}\0{status.st_size}\n".encode())
        times.update(f"{status.st_mtime_ns}\n".encode())
        if number % every == 0 and stat.S_ISREG(status.st_mode):
            content.update(_ends(path, status.st_size))
    return content.hexdigest()[:32], times.hexdigest()[:32]


def _ends(path: Path, size: int) -> bytes:
    """Return the first and last bytes of a file; none of one that may not be read, which reading it will tell."""
    try:
        with path.open("rb", buffering=0) as file:
            first = file.read(BLOCK)
            file.seek(-min(size, BLOCK), os.SEEK_END)
            return first + file.read(BLOCK)
    except OSError:
        return b""
