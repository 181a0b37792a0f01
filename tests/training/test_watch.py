"""What is said of a run from outside, by its folder alone."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tpssl_hf.commands import watch as command
from tpssl_hf.errors import InputError
from tpssl_hf.training.watch import duration, look

KEYS = {"method": "fixmatch", "backbone": "resnet18", "dataset": "photos", "batch_size": 16, "unlabeled_ratio": 4}
Entries = list[dict[str, Any]]


def run_folder(folder: Path, entries: Entries, *, running: bool = True, **keys: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(KEYS | keys))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if running:
        (folder / "run.lock").write_text(" {}")
    return folder


def steps(*numbers: int, **more: Any) -> Entries:
    return [{"step": n, "epoch": n / 50, "loss": 2 - n / 100, "images_per_second": 40.0} | more for n in numbers]


def test_progress_and_the_time_that_is_left_follow_from_steps_and_speed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, steps(10, 20, 30), max_steps=120)
    os.utime(folder / "metrics.jsonl", (1000, 1000))
    said = look(folder, now=1075).splitlines()
    assert said[0] == "fixmatch resnet18 photos"
    assert "[########......................]  25%  step 30 of 120" in said[1]
    assert said[1].endswith("3 min 00 s of training left"), "90 steps of 80 images at 40 a second"
    assert said[2] == "  last line 1 min 15 s ago"
    assert said[3] == "  loss 1.7  (at step 10: loss 1.9)"


def test_without_max_steps_epochs_tell_how_far_it_is(tmp_path: Path) -> None:
    assert "step 30 of 500" in look(run_folder(tmp_path, steps(30), max_steps=None, epochs=10))
    assert "  step 30\n" in look(run_folder(tmp_path, steps(30), max_steps=None, epochs=None))


def test_health_and_values_that_are_not_finite_are_said(tmp_path: Path) -> None:
    checked = {"health_collapsed": 0.0, "health_effective_rank": 12.34}
    healthy = [*steps(10, **checked), *steps(20)]
    assert "healthy at step 10  effective rank 12.34" in look(run_folder(tmp_path, healthy, max_steps=40))
    collapsed = [*healthy, *steps(30, health_collapsed=1.0, loss=None)]
    said = look(run_folder(tmp_path, collapsed, max_steps=40))
    assert "COLLAPSED at step 30 (different images look nearly the same)  effective rank 12.34" in said
    assert "loss not finite" in said


def test_stopped_started_and_finished_runs_are_told_apart(tmp_path: Path) -> None:
    assert "no step is logged yet" in look(run_folder(tmp_path / "new", []))
    stopped = look(run_folder(tmp_path / "stopped", steps(5), running=False, max_steps=10))
    assert "not running: stopped" in stopped and "the same command continues it" in stopped
    finished = run_folder(tmp_path / "finished", steps(10), running=False, max_steps=10)
    (finished / "results.json").write_text('{"seconds": 3723}')
    assert "finished in 1 h 02 min" in look(finished)


def test_the_command_looks_once_or_until_the_run_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path, steps(5), max_steps=10)
    assert command.main([str(folder), "--once", "true"]) == 0
    assert capsys.readouterr().out.count("step 5 of 10") == 1
    waited = []

    def finish(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            (folder / "results.json").write_text("{}")

    monkeypatch.setattr(time, "sleep", finish)
    assert command.main([str(folder), "--every", "3"]) == 0
    assert waited == [3.0, 3.0] and "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ([], "run is missing"),
        (["nowhere"], "nowhere holds no config.yaml of a run"),
        (["nowhere", "--every", "0"], "every is 0"),
        (["one", "two"], "'two' is one word too many"),
    ],
)
def test_bad_input_is_one_sentence(
    line: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        command.main(line)


def test_durations_are_written_for_people() -> None:
    assert [duration(seconds) for seconds in (-1, 59.4, 60, 3599, 3600)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
    ]
