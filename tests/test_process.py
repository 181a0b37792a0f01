import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tpssl_hf import process as runtime
from tpssl_hf.errors import InputError


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    names = "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(runtime, "CPU_SHARE", Path("no such file"))
    return monkeypatch


def threads() -> str:
    return runtime.os.environ["OMP_NUM_THREADS"]


def test_one_thread_per_core_and_no_spinning(clean_environment: pytest.MonkeyPatch) -> None:
    sentence = runtime.prepare_process([])
    assert threads() == "8"
    assert runtime.os.environ["OMP_WAIT_POLICY"] == "passive"
    assert "8 of 8 cores" in sentence


def test_processes_on_one_machine_share_its_cores(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("LOCAL_WORLD_SIZE", "4")
    runtime.prepare_process([])
    assert threads() == "2"


def test_one_thread_where_bfloat16_weight_gradients_collapse_with_two(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setattr(runtime, "cpu_has_bf16", lambda: True)
    clean_environment.setattr(runtime.os, "sched_getaffinity", lambda _: {0, 1})
    runtime.prepare_process([])
    assert threads() == "1"


def test_what_the_user_set_is_respected(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("OMP_NUM_THREADS", "3")
    clean_environment.setenv("OMP_WAIT_POLICY", "active")
    runtime.prepare_process([])
    assert threads() == "3"
    assert runtime.os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(("value", "expected"), [("", "8"), ("many", "8"), ("0", "8"), ("-2", "8"), ("4,2", "4")])
def test_what_openmp_overlooks_is_overlooked(clean_environment: pytest.MonkeyPatch, value: str, expected: str) -> None:
    clean_environment.setenv("OMP_NUM_THREADS", value)
    runtime.prepare_process([])
    assert threads() == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [("250000 100000", "2"), ("10000 100000", "1"), ("max 100000", "8"), ("9900000 100000", "8")],
)
def test_a_container_has_its_share_of_the_cores(
    clean_environment: pytest.MonkeyPatch, tmp_path: Path, share: str, expected: str
) -> None:
    (tmp_path / "cpu.max").write_text(share)
    clean_environment.setattr(runtime, "CPU_SHARE", tmp_path / "cpu.max")
    runtime.prepare_process([])
    assert threads() == expected


def test_the_launchers_own_one_thread_is_not_the_users_wish(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("OMP_NUM_THREADS", "1")
    clean_environment.setenv("ACCELERATE_MIXED_PRECISION", "no")
    runtime.prepare_process([])
    assert threads() == "8"


@pytest.mark.parametrize("arguments", [["--cpu_threads", "5"], ["--cpu_threads=5"]])
def test_the_command_line_decides(clean_environment: pytest.MonkeyPatch, arguments: list[str]) -> None:
    clean_environment.setenv("OMP_NUM_THREADS", "3")
    runtime.prepare_process(arguments)
    assert threads() == "5"


def test_an_input_error_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise InputError("no such folder; give one that exists.")

    with pytest.raises(SystemExit) as left:
        runtime.run_cli(refuse)
    assert left.value.code == 2
    assert capsys.readouterr().err == "\nerror: no such folder; give one that exists.\n"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (
            errno.ENOSPC,
            "the disk refused to write /a/b (No space left on device). What had been saved .*: make room, or",
        ),
        (errno.EIO, "the disk refused /a/b (Input/output error). What had been saved .*: see to it that files can be"),
        (errno.EROFS, "the disk refused /a/b (Read-only file system).*: see to it that files can be read and written"),
        (errno.EACCES, "the disk refused /a/b (Permission denied).*: see to it that files can be read and written"),
        (errno.EPERM, "the disk refused /a/b (Operation not permitted)"),
    ],
)
def test_what_the_disk_refuses_is_one_sentence(number: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise OSError(number, os.strerror(number), "/a/b")

    with pytest.raises(SystemExit) as left:
        runtime.run_cli(refuse)
    said = capsys.readouterr().err
    pattern = sentence.replace("(", r"\(").replace(")", r"\)")
    assert left.value.code == 2 and re.match(f"\nerror: {pattern}", said) and said.count("\n") == 2


def test_our_own_warnings_are_one_sentence_and_those_of_others_say_where_they_come_from() -> None:
    """In a process of its own, for pytest catches warnings before they are written."""
    code = (
        "import warnings; from tpssl_hf import process\n"
        "class Ours(UserWarning): __module__ = 'tpssl_hf.monitoring.collapse'\n"
        "def main():\n"
        "    warnings.warn('ours', Ours)\n"
        "    warnings.warn('theirs')\n"
        "    return 0\n"
        "process.run_cli(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.startswith("\nwarning: ours\n<string>:5: UserWarning: theirs\n")


def test_a_bug_keeps_its_traceback() -> None:
    def fail() -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        runtime.run_cli(fail)


def test_the_set_up_runs_before_torch_is_imported() -> None:
    code = "from tpssl_hf.process import prepare_process as p; p([]); import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


IN_A_PROCESS = """
import resource, sys
from tpssl_hf.process import keep_freed_memory
kept = keep_freed_memory()
import torch
def fault():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, min(fault() for _ in range(16)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_used_again_without_page_faults(own: bool) -> None:
    environment = dict(os.environ) | ({"MALLOC_TRIM_THRESHOLD_": "131072"} if own else {})
    run = subprocess.run([sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, env=environment)
    kept, faults = run.stdout.split()
    assert kept == str(not own), run.stderr
    assert (int(faults) > 100) == own


HOLES = """
from pathlib import Path
from tpssl_hf.process import give_back_freed_memory, keep_freed_memory
assert keep_freed_memory()
import numpy as np
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks, between = [], []
for _ in range(100):
    blocks.append(np.ones(2**20, dtype=np.uint8))
    between.append(np.ones(1000, dtype=np.uint8))
blocks.clear()
full = resident()
give_back_freed_memory()
print(full - resident())
"""


def without_own_settings() -> dict[str, str]:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    return {name: value for name, value in os.environ.items() if name not in names}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_holes_in_the_heap_are_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, env=without_own_settings())
    assert int(run.stdout) > 90 * 2**20, run.stderr


HEAPS = """
import ctypes, sys, tempfile, threading
from tpssl_hf.process import keep_freed_memory
if sys.argv[1] == "shared":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, together = ctypes.c_void_p, threading.Barrier(4)
def take():
    together.wait()  # all of them are alive at once
    libc.malloc(100)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(open(file.name).read().count("<heap"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_threads_share_one_heap() -> None:
    heaps = [
        int(subprocess.check_output([sys.executable, "-c", HEAPS, kind], text=True, env=without_own_settings()))
        for kind in ("shared", "own")
    ]
    assert heaps[0] == 1 < heaps[1]
