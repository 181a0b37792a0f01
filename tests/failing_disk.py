"""A disk that refuses one call, or all calls from some moment on, below some folders; for a process of its own."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGING = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate", "truncate")


class FailingDisk:
    """Counts every call that opens a file to write, writes or changes a folder, and lets call number ``at`` fail.

    Args:
        below: part of the path of what is counted.
        at: which call fails, from 1.
        error: name of the error the system gives. After EROFS every later call fails as well, as it does once a system
            has made a disk read-only; the others fail once.
        calls: file for a line about each call.
    """

    def __init__(self, below: str, at: int, error: str, calls: Path) -> None:
        self.below, self.at, self.error, self.count = below, at, error, 0
        self.calls = os.open(calls, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def attach(self) -> None:
        """Take the place of this process's calls."""
        for name in CHANGING:
            setattr(os, name, self.counted(name, getattr(os, name)))
        opened, opened_by_number = io.open, os.open

        def open_file(file: Any, mode: str = "r", *arguments: Any, **others: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wxa+"):
                return opened(file, mode, *arguments, **others)
            self.note("open", file)
            stream = opened(file, mode, *arguments, **others)
            raw: Any = getattr(getattr(stream, "buffer", stream), "raw", stream)
            write = raw.write
            raw.write = lambda data: (self.note("write", file), write(data))[1]
            return stream

        def open_number(path: Any, flags: int, *arguments: Any, **others: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.note("open", path, **others)
            return opened_by_number(path, flags, *arguments, **others)

        builtins.open = io.open = open_file
        os.open = open_number

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted."""

        def call(path: Any, *arguments: Any, **others: Any) -> Any:
            self.note(name, path, **others)
            return function(path, *arguments, **others)

        return call

    def note(self, name: str, path: Any, *, dir_fd: int | None = None, **others: Any) -> None:
        """Count a call, if it is about something below, and fail it where that is due."""
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
        if dir_fd is not None:
            where = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{where}"
        if self.below not in str(where) or (name == "mkdir" and os.path.isdir(where)):  # which changes nothing
            return
        self.count += 1
        os.write(self.calls, f"{name} {where}\n".encode())
        if self.count == self.at or (self.error == "EROFS" and 0 < self.at < self.count):
            number = getattr(errno, self.error)
            raise OSError(number, os.strerror(number), str(where))
