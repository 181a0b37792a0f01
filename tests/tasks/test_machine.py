from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState

from tpssl_hf.commands.classify import finetune_classifier
from tpssl_hf.config.parser import flat
from tpssl_hf.errors import InputError
from tpssl_hf.tasks import machine
from tpssl_hf.tasks.machine import Shown, for_this_machine
from tpssl_hf.tasks.pretrain.config import PretrainArgs, parse_pretrain
from tpssl_hf.training import accelerator as accelerators
from tpssl_hf.training.accelerator import make_accelerator
from tpssl_hf.training.machine_choice import Setting, Workload


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A CPU with bfloat16 on which float32 in contiguous memory is the fastest; what was measured is listed."""
    works: list[Workload] = []

    def remembered(folder: Path, name: str, work: Workload, settings: list[Setting]) -> Any:
        works.append(work)
        return {setting: 1.0 if setting == Setting("fp32", "contiguous", 1) else 2.0 for setting in settings}, True

    monkeypatch.setattr(machine, "remembered", remembered)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 1)
    for module in (machine, accelerators):
        monkeypatch.setattr(module, "cpu_has_bf16", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield works
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def arguments(folder: Path, **keys: Any) -> PretrainArgs:
    named = {"dataset": "digits", "backbone": "test_resnet", "image_size": 32, "max_steps": 1000, "batch_size": 64}
    return parse_pretrain({**named, "output_dir": str(folder), **keys})


SMALL = Shown((32, 32), 64)


def chosen(args: Any, shown: Shown = SMALL) -> tuple[str, str, str]:
    run, accelerator = for_this_machine(args, shown, make_accelerator(args.run))
    return run.precision, run.memory_format, accelerator.mixed_precision


def test_what_is_fastest_is_put_in(
    measured: list[Workload], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(arguments(tmp_path)) == ("fp32", "contiguous", "no")
    assert measured == [Workload("test_resnet", (32, 32), 64, statistics_frozen=False)]
    assert "2.00 times as fast as bf16, channels_last, 1 thread; --precision" in capsys.readouterr().out


@pytest.mark.parametrize("keys", [{"dataset": "nowhere"}, {"init": "nowhere"}])
def test_what_is_not_there_is_said_before_anything_is_measured(
    measured: list[Workload], tmp_path: Path, keys: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="'nowhere' is not"):
        chosen(arguments(tmp_path, **keys))
    assert not measured


@pytest.mark.parametrize(
    ("labels", "sentence"), [("few.csv", "few.csv cannot be read"), ("many", "'many' is not a number")]
)
def test_labels_that_cannot_be_read_are_said_before_anything_is_measured(
    measured: list[Workload], tmp_path: Path, labels: str, sentence: str
) -> None:
    keys = {"dataset": "digits", "backbone": "test_resnet", "init": "random", "image_size": 32, "max_steps": 1000}
    with pytest.raises(InputError, match=sentence):
        finetune_classifier(**keys, labels=labels, output_dir=tmp_path / "run")
    assert not measured


@pytest.mark.parametrize("keys", [{"precision": "bf16"}, {"precision": "fp32", "memory_format": "contiguous"}])
def test_what_is_asked_for_is_not_measured(measured: list[Workload], tmp_path: Path, keys: dict[str, str]) -> None:
    args = arguments(tmp_path, **keys)
    assert for_this_machine(args, Shown((32, 32), 64), make_accelerator(args.run))[0] == args.run and not measured


def test_a_memory_format_that_is_asked_for_stays(measured: list[Workload], tmp_path: Path) -> None:
    assert chosen(arguments(tmp_path, memory_format="channels_last")) == ("bf16", "channels_last", "bf16")
    assert len(measured) == 1


@pytest.mark.parametrize("keys", [{"max_steps": 20}, {"max_steps": None, "budget": "25s"}, {"compile": True}])
def test_short_runs_are_not_measured_and_it_is_said(
    measured: list[Workload], tmp_path: Path, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(arguments(tmp_path, **keys)) == ("auto", "auto", "bf16")
    assert not measured and "the default, not measured (" in capsys.readouterr().out


def test_long_budgets_and_epochs_are_measured(measured: list[Workload], tmp_path: Path) -> None:
    for keys in ({"budget": "10m"}, {"epochs": 3}):
        assert chosen(arguments(tmp_path, max_steps=None, **keys))[0] == "fp32"
    assert len(measured) == 2


@pytest.mark.parametrize(
    "mark",
    ["checkpoints/step_5/x", "results.json", "label_seed_1/checkpoints/step_5/x"],
    ids=["begun", "done", "seed"],
)
def test_a_run_that_has_begun_keeps_what_it_has(measured: list[Workload], tmp_path: Path, mark: str) -> None:
    args = arguments(tmp_path)
    begun = replace(args, run=replace(args.run, precision="bf16", memory_format="contiguous"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(flat(begun)))
    assert chosen(args)[:2] == ("fp32", "contiguous"), "there is nothing to go on with yet"
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).touch()
    assert chosen(args) == ("bf16", "contiguous", "bf16")
    assert len(measured) == 1


def test_a_run_of_an_earlier_version_keeps_the_default(measured: list[Workload], tmp_path: Path) -> None:
    former = flat(arguments(tmp_path))
    del former["memory_format"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former))
    (tmp_path / "results.json").touch()
    assert chosen(arguments(tmp_path)) == ("auto", "auto", "bf16") and not measured


def test_passes_have_the_images_of_the_run(measured: list[Workload], tmp_path: Path) -> None:
    for images in (12, 256):
        chosen(arguments(tmp_path, init="timm"), Shown((48, 64), images))
    assert [(work.size, work.images) for work in measured] == [((48, 64), 12), ((48, 64), 64)]
    assert measured[0].statistics_frozen
    chosen(arguments(tmp_path), Shown((32, 32), 64, learns=False))
    assert len(measured) == 2, "it makes no steps"


def test_threads_are_set_where_they_gain(
    measured: list[Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = Setting("fp32", "channels_last", 2)
    monkeypatch.setattr(machine, "more_threads", lambda: 2)
    monkeypatch.setattr(
        machine, "remembered", lambda *given: ({one: 1.0 if one == fast else 2.0 for one in given[-1]}, True)
    )
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    args = arguments(tmp_path)
    run, _ = for_this_machine(args, Shown((32, 32), 64), make_accelerator(args.run))
    assert (run.precision, run.cpu_threads, set(used)) == ("fp32", 2, {2})


@pytest.mark.parametrize(
    ("environment", "keys", "tried"),
    [({}, {}, {1, 2}), ({"OMP_NUM_THREADS": "2"}, {}, {2}), ({}, {"cpu_threads": 2}, {2})],
)
def test_where_torch_took_two_cores_by_itself_one_is_the_default(
    environment: dict[str, str],
    keys: dict[str, int],
    tried: set[int],
    measured: list[Workload],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen: list[Setting] = []

    def even(folder: Path, name: str, work: Workload, settings: list[Setting]) -> Any:
        seen.extend(settings)
        return dict.fromkeys(settings, 1.0), True

    monkeypatch.setattr(machine, "remembered", even)
    for module in (machine, accelerators):
        monkeypatch.setattr(module, "threads_in_use", lambda: None)
    monkeypatch.setattr(machine, "more_threads", lambda: None)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 2)
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    args = arguments(tmp_path, **keys)
    for task in (args, replace(args, optim=replace(args.optim, max_steps=1))):  # measured, and too short for it
        run, _ = for_this_machine(task, SMALL, make_accelerator(args.run))
        assert run.cpu_threads == (1 if 1 in tried else keys.get("cpu_threads"))
    assert {setting.threads for setting in seen} == tried
    assert (1 in used) == (1 in tried)


def test_a_run_that_has_begun_need_not_find_its_images(measured: list[Workload], tmp_path: Path) -> None:
    args = arguments(tmp_path, dataset="nowhere")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**flat(args), "precision": "bf16"}))
    (tmp_path / "results.json").write_text("{}")
    assert chosen(args)[0] == "bf16" and not measured
