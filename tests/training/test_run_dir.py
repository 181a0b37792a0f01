import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tpssl_hf.errors import InputError
from tpssl_hf.training.run_dir import RunDir, StopSignals, read_metrics

CONFIG = {"method": "byol", "learning_rate": 1e-5, "batch_size": 8, "labels": ["a", "b"], "num_workers": 2}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_config_is_written_as_given_and_the_lock_goes_with_the_run(tmp_path: Path) -> None:
    with RunDir(tmp_path / "runs" / "one", CONFIG) as run:
        assert not run.finished
        holder = json.loads((run.path / "run.lock").read_text())
        assert holder["pid"] == os.getpid() and holder["host"] and holder["started"]
    text = (run.path / "config.yaml").read_text()
    assert yaml.safe_load(text) == CONFIG and list(yaml.safe_load(text)) == list(CONFIG)
    assert list(contents(run.path)) == ["config.yaml"]


def test_lock_is_freed_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RunDir(tmp_path, CONFIG):
        raise RuntimeError
    with RunDir(tmp_path, CONFIG):
        pass


def test_second_live_run_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG):
        before = contents(tmp_path)
        with pytest.raises(InputError, match=f'"pid": {os.getpid()}.*choose another output_dir'), RunDir(tmp_path, {}):
            pass
        assert contents(tmp_path) == before


def test_lock_file_that_its_owner_removes_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "run.lock"
    flock, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(lock.unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunDir(tmp_path, CONFIG):
        assert removed and f'"pid": {os.getpid()}' in lock.read_text()
        with pytest.raises(InputError, match="Another run"), RunDir(tmp_path, CONFIG):
            pass


def test_a_run_that_died_before_its_first_checkpoint_does_not_block_its_folder(tmp_path: Path) -> None:
    with RunDir(tmp_path, {"a": 1}) as run:
        run.append({"step": 1})
    with RunDir(tmp_path, {"a": 2}) as run:
        assert not run.finished
    assert "a: 2" in (tmp_path / "config.yaml").read_text()


def test_another_config_is_refused_with_what_differs_and_nothing_changes(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.append({"step": 1})
    (tmp_path / "checkpoints/step_1").mkdir(parents=True)
    before = contents(tmp_path)
    other = {"method": "simclr", "learning_rate": 1e-5, "batch_size": 8.0, "labels": ["a", "b"], "seed": 3}
    with pytest.raises(InputError) as refusal, RunDir(tmp_path, other, ignore={"num_workers"}):
        pass
    message = str(refusal.value)
    for part in ('method "byol" -> "simclr"', "batch_size 8 -> 8.0", "seed (absent) -> 3", "--config", "output_dir"):
        assert part in message
    assert "labels" not in message and "num_workers" not in message and "learning_rate" not in message
    assert contents(tmp_path) == before


def test_same_config_resumes_and_ignored_keys_may_change(tmp_path: Path) -> None:
    config = CONFIG | {"threshold": math.nan, "sizes": (1, 2)}
    with RunDir(tmp_path, config):
        pass
    with RunDir(tmp_path, config | {"num_workers": 0}, ignore=["num_workers"]) as run:
        assert not run.finished
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["num_workers"] == 0


def test_finished_run_is_recognized_and_left_alone(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.write_json("results.json", {"accuracy": 0.5})
    before = contents(tmp_path)
    with RunDir(tmp_path, CONFIG | {"num_workers": 7}, ignore=["num_workers"]) as run:
        assert run.finished
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", [b"- a list", b"a: [", b"\xff\xfe\xff", b"12"])
def test_foreign_config_file_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(InputError, match="is not the config of a run"), RunDir(tmp_path, CONFIG):
        pass
    assert contents(tmp_path) == {"config.yaml": text}


def test_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/tpssl_hf")):
        with pytest.raises(InputError, match="cannot be written .*choose another output_dir"), RunDir(path, CONFIG):
            pass


def test_failed_write_of_the_config_frees_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(InputError, match="No space left"), RunDir(tmp_path / "run", CONFIG):
            pass
    assert contents(tmp_path / "run") == {}


def test_metrics_log_after_a_rewind_is_that_of_an_unkilled_run(tmp_path: Path) -> None:
    entries = [{"step": step, "loss": 1 / (step + 3), "rate": 1e-5 * step} for step in range(6)]
    with RunDir(tmp_path / "whole", CONFIG) as whole:
        whole.rewind(0)
        for entry in entries:
            whole.append(entry)
    with RunDir(tmp_path / "killed", CONFIG) as killed:
        assert killed.position() == 0
        for entry in entries[:3]:
            killed.append(entry)
        offset = killed.position()
        killed.append(entries[3])
        with open(tmp_path / "killed" / "metrics.jsonl", "ab") as file:
            file.write(b'{"step": 4, "lo')
        assert read_metrics(tmp_path / "killed" / "metrics.jsonl") == entries[:4]
    with RunDir(tmp_path / "killed", CONFIG) as resumed:
        resumed.rewind(offset)
        assert resumed.position() == offset
        for entry in entries[3:]:
            resumed.append(entry)
    logs = [(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert logs[0].read_bytes() == logs[1].read_bytes() and read_metrics(logs[1]) == entries


def test_rewind_refuses_a_log_that_was_changed(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.append({"step": 1})
        before = contents(tmp_path)
        for offset in (run.position() - 1, run.position() + 1):
            with pytest.raises(InputError, match=f"no line that ends at byte {offset}"):
                run.rewind(offset)
        assert contents(tmp_path) == before


def test_values_that_json_lacks_become_null(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.append({"loss": math.nan, "scores": [1.5, math.inf, (-math.inf,)]})
        run.write_json("facts.json", {"miou": {"road": math.nan}})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"loss": None, "scores": [1.5, None, [None]]}]
    assert json.loads((tmp_path / "facts.json").read_text()) == {"miou": {"road": None}}


def test_value_that_is_not_json_leaves_every_file_as_it_was(tmp_path: Path) -> None:
    with RunDir(tmp_path, CONFIG) as run:
        run.write_json("facts.json", {"a": 1})
        before = contents(tmp_path)
        with pytest.raises(TypeError):
            run.write_json("facts.json", {"a": tmp_path})
        with pytest.raises(TypeError):
            run.append({"a": tmp_path})
        assert contents(tmp_path) == before


def test_reading_metrics(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert read_metrics(log) == []
    log.write_bytes(b'{"a": 1}\nnot json\n{"a": 2}\n')
    with pytest.raises(InputError, match="is not a metrics log"):
        read_metrics(log)


def test_first_signal_is_noted_and_handlers_come_back() -> None:
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with StopSignals() as stop:
            assert stop.requested is None and stop.exit_code == 0
            signal.raise_signal(number)
            assert stop.requested == number and stop.exit_code == code
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys; import tpssl_hf.training.run_dir; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RACE = """
import os, sys
from pathlib import Path
from tpssl_hf.errors import InputError
from tpssl_hf.training.run_dir import RunDir
for number in range(20):
    start, release, report = os.pipe(), os.pipe(), os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os.close(start[1]), os.close(release[1])
            os.read(start[0], 1)  # ends when the parent closes its end: both go at once
            try:
                with RunDir(Path(sys.argv[1]) / str(number), {"a": 1}):
                    os.write(report[1], b"won ")
                    os.read(release[0], 1)
            except InputError as error:
                assert "Another run is using" in str(error)
                os.write(report[1], b"refused ")
            os._exit(0)
    os.close(start[1])
    answers = b""
    while answers.count(b" ") < 2:
        answers += os.read(report[0], 100)
    os.close(release[1])
    assert [os.wait()[1], os.wait()[1]] == [0, 0]
    assert sorted(answers.split()) == [b"refused", b"won"], (number, answers)
"""

HOLD = """
import os, sys
from pathlib import Path
from tpssl_hf.training.run_dir import RunDir
with RunDir(Path(sys.argv[1]), {"a": 1}):
    if os.fork() == 0:
        print("ready", flush=True)
        sys.stdin.read()  # a worker that outlives the run
        os._exit(0)
    os.wait()
"""

STOP = """
import sys, time
from tpssl_hf.training.run_dir import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.requested is None or sys.argv[1] == "deaf":
        time.sleep(0.01)
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


def test_one_of_two_racing_starts_wins(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0 and not result.stderr, result.stderr


def start(script: str, argument: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, argument]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_killed_run_frees_its_folder_at_once_even_if_a_worker_lives_on(tmp_path: Path) -> None:
    with start(HOLD, str(tmp_path)) as process:
        process.kill()
        process.wait()
        assert (tmp_path / "run.lock").exists()
        with RunDir(tmp_path, {"a": 1}):
            assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_signal_lets_the_run_save(number: signal.Signals, code: int) -> None:
    with start(STOP, "listening") as process:
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == "saved\n" and process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal_ends_the_process_at_once(number: signal.Signals, code: int) -> None:
    with start(STOP, "deaf") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
        assert process.poll() is None
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == "" and process.returncode == code


def test_a_launchers_echo_of_the_signal_does_not_end_the_process(tmp_path: Path) -> None:
    with StopSignals() as signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert signals.requested == signal.SIGINT and signals.exit_code == 130
