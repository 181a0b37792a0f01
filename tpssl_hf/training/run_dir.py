"""One run's output folder, kept by its main process: who owns it, its config, its metrics log, how it is stopped."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

import yaml
from filelock import lock_descriptor

from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import remove_leftovers, replace_file

LOCK, CONFIG, METRICS, RESULTS = "run.lock", "config.yaml", "metrics.jsonl", "results.json"
CHECKPOINTS = "checkpoints"
CALIBRATION = "calibration.json"  # beside the weights
ECHO_SECONDS = 0.5
LOCKED_BYTES = 1  # at the start of the lock file; nobody else can read them on Windows

_held_locks: set[int] = set()


def _drop_inherited_locks() -> None:
    """Close a forked worker's copies: a lock must end with the run itself, not with a worker that outlives it."""
    while _held_locks:
        os.close(_held_locks.pop())


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_drop_inherited_locks)


class RunDir:
    """The output folder of one run, locked while the ``with`` block runs.

    A run of another config is refused where an earlier one left a checkpoint or results; where it died before that,
    there is nothing to lose. A refused run leaves the folder as it was, except for the lock file of a dead run.
    ``finished`` says whether a run of the same config has already written ``results.json``.

    Args:
        path: The output folder; made if it is missing.
        resolved_config: Plain YAML values by key.
        ignore: Keys that may differ from the run that is resumed.
    """

    def __init__(self, path: Path, resolved_config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> None:
        self.path = Path(path)
        self.finished = False
        self._config = yaml.safe_dump(dict(resolved_config), sort_keys=False, allow_unicode=True).encode()
        self._ignore = frozenset(ignore)
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the folder for this run.

        Raises:
            InputError: The folder cannot be written, belongs to a live run, or holds a run of another config.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.path / LOCK)
            self._claim()
        except OSError as error:
            self.__exit__()
            raise InputError(
                f"The output folder {self.path} cannot be written ({error.strerror}); choose another output_dir."
            ) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock in _held_locks:  # a forked child does not hold it
            _held_locks.remove(self._lock)
            _free_lock(self.path / LOCK, self._lock)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the metrics log, handed to the system at once. NaN and infinities become ``null``.

        Raises:
            TypeError: A value is not a number, string, boolean, None, list or mapping.
        """
        line = _as_json(entry)
        with open(self.path / METRICS, "ab") as file:
            file.write(line)

    def position(self) -> int:
        """Return the length of the metrics log in bytes, once it is on the disk: a checkpoint may rely on it."""
        with open(self.path / METRICS, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def rewind(self, offset: int) -> None:
        """Cut the metrics log back to ``offset``, a former ``position()``; 0 when a run starts without a checkpoint.

        Raises:
            InputError: The log does not have the end of a line there, so it was changed after that position was taken.
        """
        with open(self.path / METRICS, "a+b") as file:
            file.seek(max(offset - 1, 0))
            if offset and file.read(1) != b"\n":
                raise InputError(
                    f"{self.path / METRICS} has no line that ends at byte {offset}, where the checkpoint left it. "
                    "Restore the file, or delete the folder to start over."
                )
            file.truncate(offset)
            os.fsync(file.fileno())

    def write_json(self, name: str, data: Any) -> None:
        """Write ``data`` to the file ``name`` in one piece, NaN and infinities as ``null``.

        Raises:
            TypeError: ``data`` is not JSON; the file is as it was.
        """
        replace_file(self.path / name, _as_json(data, indent=2))

    def _claim(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()}
        os.ftruncate(self._lock, 0)
        os.lseek(self._lock, 0, os.SEEK_SET)
        os.write(self._lock, b" " * LOCKED_BYTES + json.dumps(holder).encode())
        file = self.path / CONFIG
        former = file.read_bytes() if file.exists() else None
        differences = [] if former is None else self._differences(former)
        worth_keeping = (self.path / RESULTS).exists() or any(self.path.glob(f"{CHECKPOINTS}/step_*"))
        if differences and worth_keeping:
            shown = "; ".join(differences[:6]) + (f"; and {len(differences) - 6} more" if len(differences) > 6 else "")
            raise InputError(
                f"{self.path} holds a run with another config: {shown}. Choose another output_dir, "
                f"resume the old run with --config {file}, or delete the folder."
            )
        remove_leftovers(self.path)
        self.finished = former is not None and (self.path / RESULTS).exists()
        if former != self._config and not self.finished:
            replace_file(file, self._config)

    def _differences(self, former: bytes) -> list[str]:
        try:
            # As JSON, 1 differs from 1.0 and from true, and nan equals nan.
            old, new = (
                {key: json.dumps(value, default=str) for key, value in dict(yaml.safe_load(text)).items()}
                for text in (former, self._config)
            )
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path / CONFIG} is not the config of a run; choose another output_dir, or delete the folder."
            ) from error
        return [
            f"{key} {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key) and key not in self._ignore
        ]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics log; a last line torn by a kill is left out, and a missing file is an empty log.

    Raises:
        InputError: Another line than the last is not JSON.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is not a metrics log: a line is not JSON. Restore it or delete it.") from error


class StopSignals:
    """Turn the first SIGTERM or Ctrl-C into a wish to stop, so that a checkpoint can be written before the exit.

    ``requested`` is the number of that signal, or None. A second signal ends the process at once. The former handlers
    come back at the end of the ``with`` block. In a thread that is not the main one it does nothing.
    A launcher may pass on a Ctrl-C that the terminal has sent already; such an echo within half a second is the same.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._since = 0.0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 143 after SIGTERM, 130 after Ctrl-C, 0 if nobody asked it to stop."""
        return 0 if self.requested is None else 128 + self.requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._since = number, now
        elif now - self._since > ECHO_SECONDS:
            os._exit(128 + number)


def _take_lock(file: Path) -> int:
    """Lock ``file``, which says who holds it. The system frees the lock when its owner dies, however it dies."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if not lock_descriptor(descriptor, blocking=False):
            os.lseek(descriptor, LOCKED_BYTES, os.SEEK_SET)
            owner = os.read(descriptor, 1000).decode(errors="replace") or "it has only just started"
            os.close(descriptor)
            raise InputError(
                f"Another run is using {file.parent} ({owner}). Wait for it, stop it, or choose another output_dir."
            )
        if os.fstat(descriptor).st_nlink:
            _held_locks.add(descriptor)
            return descriptor
        os.close(descriptor)  # its former owner removed this file after we opened it: take the next one


def _free_lock(file: Path, descriptor: int) -> None:
    """Remove a lock file of ours and free it."""
    if os.name == "nt":  # Windows removes no open file, so another run may take this one first; then it stays
        os.close(descriptor)
        with suppress(PermissionError):
            file.unlink(missing_ok=True)
    else:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _as_json(value: Any, indent: int | None = None) -> bytes:
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent).encode() + b"\n"
