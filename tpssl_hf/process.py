"""Process set-up that must happen before torch is imported, and the exit codes that commands and recipes share.

This module must not import torch: OpenMP reads its thread count and its wait policy once, when torch loads it.
"""

import ctypes
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_REFUSES = (*NO_ROOM, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_threads: str | None = None
_more_threads: int | None = None
CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores in so many
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def prepare_process(arguments: Sequence[str] | None = None) -> str:
    """Choose threads and wait policy for this machine, set them for OpenMP, and say in one line what was chosen.

    Spinning OpenMP threads lose most of the machine as soon as anything else runs on it, so they are told to sleep.
    oneDNN's bfloat16 weight gradient on AVX-512 can collapse with two threads where anything else runs, while one
    bfloat16 thread beats two float32 threads; so on one or two such cores one thread is used until a run has timed
    two (:mod:`tpssl_hf.training.machine_choice`), and otherwise one per core. ``--cpu_threads N`` decides
    instead where given; ``OMP_NUM_THREADS`` and ``OMP_WAIT_POLICY`` in the environment are respected, except for the
    ``OMP_NUM_THREADS=1`` that ``accelerate launch`` puts there on its own.

    Args:
        arguments: command line to look for ``--cpu_threads`` in; the process's own by default.

    Returns:
        The sentence to print once the recipe starts.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # NumPy's own threads spin for 2^26 cycles by default
    global _more_threads
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share, _more_threads = max(1, _cores() // local_processes), None
    asked = values_of("--cpu_threads", sys.argv[1:] if arguments is None else arguments)
    inherited = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list is for nested loops
    from_launcher = inherited == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ
    if asked and asked[-1].isdecimal() and int(asked[-1]) > 0:
        threads, why = int(asked[-1]), "as asked"
    elif inherited.isdecimal() and int(inherited) > 0 and not from_launcher:  # OpenMP itself overlooks others
        threads, why = int(inherited), "from OMP_NUM_THREADS"
    elif cpu_has_bf16() and share <= 2:
        threads, why = 1, "bfloat16 weight gradients can collapse with more"
        _more_threads = share if share > 1 else None
    else:
        threads, why = share, "one per core of this process's share"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()
    return say_threads(threads, why)


def say_threads(threads: int, why: str) -> str:
    """Note how many threads are used from now on, and return the sentence that says so."""
    global _threads
    waits = os.environ.get("OMP_WAIT_POLICY", "active")
    _threads = f"CPU: {threads} of {_cores()} cores ({why}), OpenMP waits {waits}ly"
    return _threads


def _cores() -> int:
    """Return the cores this process may use: those it is bound to, or the share of them its container is given."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or "max"
        quota, period = CPU_SHARE.read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensors; return whether it did.

    By default it gives large blocks back to the system, and the system fills each page with zeros when the next step
    asks for it again: a tenth to a fourth of a step's time in small networks. What is kept is what was in use at once,
    and holes between what stays, which grow slowly; :func:`give_back_freed_memory` empties them. All threads share
    one heap: those that an epoch of streamed images starts anew would leave holes in a heap of their own, too small to
    be given back. The environment's own settings (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_ARENA_MAX``) are respected; other C libraries than glibc have no such call.
    """
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in own):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most older ones take
    return bool(mapped) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_M_ARENA_MAX, 1))


def give_back_freed_memory() -> None:
    """Give freed memory back to the system, wherever in the heap it lies; other C libraries than glibc cannot."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def threads_in_use() -> str | None:
    """Return what :func:`prepare_process` chose, or None if this process was set up by somebody else."""
    return _threads


def more_threads() -> int | None:
    """Return one thread per core where :func:`prepare_process` left cores idle for bfloat16's sake, else None."""
    return _more_threads


def no_more_threads() -> None:
    """Note that a key asks for a number of threads, so that no other one is worth a try."""
    global _more_threads
    _more_threads = None


def values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """Return what a command line gives ``flag``, as ``--flag value`` or ``--flag=value``, in order."""
    found: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == flag:
            found += arguments[position + 1 : position + 2]
        elif argument.startswith(f"{flag}="):
            found.append(argument.partition("=")[2])
    return found


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX), read from the kernel, not from torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _disk_sentence(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    what = f"the disk refused{' to write' if error.errno in NO_ROOM else ''}{where}"
    mend = "make room" if error.errno in NO_ROOM else "see to it that files can be read and written there"
    return (
        f"{what} ({error.strerror}). What had been saved before is intact: {mend}, or choose another output_dir or "
        "cache_dir, then run the same command again."
    )


def run_cli(main: Callable[[], int]) -> None:
    """Run a command and end the process with its exit code.

    An ``InputError``, and a disk that is full, failing or read-only, becomes one sentence on standard error and exit
    code 2; other exceptions keep their traceback.
    The package's own warnings are one sentence as well, without the line of code that raised them.
    """
    usual = warnings.formatwarning

    def one_sentence(message: Any, category: type[Warning], *where: Any, **others: Any) -> str:
        own = category.__module__.partition(".")[0] == __name__.partition(".")[0]
        return f"\nwarning: {message}\n" if own else usual(message, category, *where, **others)

    warnings.formatwarning = one_sentence
    try:
        code = main()
    except InputError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        code = 2
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        sys.stderr.write(f"\nerror: {_disk_sentence(error)}\n")
        code = 2
    finally:
        warnings.formatwarning = usual
    sys.exit(code)
