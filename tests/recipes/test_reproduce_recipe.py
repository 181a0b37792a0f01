"""The recipe of the paper's tables: its commands are understood, run once, resumed, and told of when they fail."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tpssl_hf.commands.analyze import read_args
from tpssl_hf.config.parser import flat, parse_args
from tpssl_hf.errors import InputError
from tpssl_hf.paper import launch
from tpssl_hf.paper.cells import Stage
from tpssl_hf.paper.config import ReproduceArgs, ReproduceConfig
from tpssl_hf.paper.grid import FIGURES, TABLES, make_plan
from tpssl_hf.tasks.classify.config import parse_classify
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.tasks.segment.config import parse_segment

CONFIGS = launch.presets()
PARSERS = {
    "target_pretrain": parse_pretrain,
    "ssl_classify": parse_classify,
    "ssl_segment": parse_segment,
    "analyze": read_args,
}
GRIDS = [*({"table": name} for name in TABLES), *({"figure": name} for name in FIGURES)]
Reproduce = Callable[..., int]

# Stands for a recipe: leaves a score, counts how often it ran, and fails or stops its caller where it is told to.
SCRIPT = """
import json, os, pathlib, sys, time
folder, action = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "ran", "a") as file:
    file.write("x")
if action == "fail":
    sys.exit("\\nerror: the dog has eaten the images.")
if action == "stop":  # as if somebody had stopped the recipe of tables
    os.kill(os.getppid(), 15)
    time.sleep(60)
name = "steps.json" if "snapshots" in folder.name else "results.json"
(folder / name).write_text(json.dumps({"accuracy": {"values": [0.5, 0.75]}, "seconds": 2.0}))
"""


@pytest.fixture(scope="session")
def recipe(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/reproduce.py as a module."""
    return load_recipe("reproduce")


@pytest.fixture
def behavior(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace the recipes by a script; what it does for runs whose name begins so."""
    does: dict[str, str] = {}

    def command_of(stage: Stage, folder: Path) -> list[str]:
        action = next((action for title, action in does.items() if stage.name.startswith(title)), "finish")
        return [sys.executable, "-c", SCRIPT, str(folder / "runs" / stage.name), action]

    monkeypatch.setattr(launch, "command_of", command_of)
    return does


@pytest.fixture
def reproduce(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    def run(**settings: Any) -> int:
        chosen = {"scale": "smoke", "output_dir": tmp_path / "out"} | settings
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *(f"--{name}={value}" for name, value in chosen.items())])
        code: int = recipe.main()
        return code

    return run


def found(folder: Path, name: str = "table5_smoke") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "tables" / f"{name}.json").read_text())
    return content


def times_run(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in (folder / "out" / "runs").glob("*/ran")}


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
def test_every_command_is_understood_by_its_recipe(scale: Any, tmp_path: Path) -> None:
    understood: dict[str, Stage] = {}
    for grid in GRIDS:
        for cell in make_plan(ReproduceConfig(**grid, scale=scale, init_pixpro="x.safetensors"), CONFIGS).cells:
            for stage in cell.stages:
                of_run = {"init", "adapted", "run", "dataset"}
                kind = {name: value for name, value in stage.overrides.items() if name not in of_run}
                understood.setdefault(f"{stage.recipe} {kind}", stage)
    for stage in understood.values():
        settings = flat(PARSERS[stage.recipe](stage.arguments(tmp_path)))
        for name, value in stage.overrides.items():
            if value is None:  # not the preset's: the recipe puts its own in
                assert settings[name] is not None, name
                continue
            given = str(value).replace("{runs}", str(tmp_path))
            assert str(settings[name]) == given or settings[name] in (
                yaml.safe_load(given),
                yaml.safe_load(f"[{given}]"),
            ), name


def test_list_says_state_commands_and_what_is_missing_and_runs_nothing(
    reproduce: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(table="II", scale="paper", list="true", cells="*_pixpro*/voc_1pct,in_sup_none_cutmix/*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "in_pixpro_pixpro_cutmix/voc_1pct: missing data; no value yet; paper 52.20 %" in lines
    commands = [shlex.split(line) for line in lines if line.startswith("    python ")]
    assert len({shlex.join(command) for command in commands}) == len(commands)
    assert all(Path(command[1]).exists() for command in commands)
    missing = [line for line in lines if line.startswith("missing: ")]
    assert any(
        "VOCdevkit, from http://host.robots" in line and "--dataset_paths VOCdevkit=" in line for line in missing
    )
    assert any("github.com/zdaxie/PixPro" in line and "--init_pixpro" in line for line in missing)
    assert not (tmp_path / "out").exists()


def test_list_says_what_the_hub_gives(reproduce: Reproduce, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(table="V", scale="paper", list="true") == 0
    assert "downloaded once: cifar10, from the Hub (uoft-cs/cifar10)" in capsys.readouterr().out


def test_a_table_is_made_once_and_shared_commands_run_once(
    reproduce: Reproduce, behavior: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(table="V", cells="none/uda,byol/u*,byol/fixmatch") == 0
    ran = times_run(tmp_path)
    assert len(ran) == 4 and set(ran.values()) == {1} and sum("byol" in name for name in ran) == 1
    content = found(tmp_path)
    cell = content["cells"][0]
    assert (cell["row"], cell["column"], cell["values"]) == ("none", "uda", [50.0, 75.0])
    assert cell["paper"] == 62.94 and cell["difference"] == pytest.approx(62.5 - 62.94) and cell["finished"]
    assert content["seconds"] == 8.0 and content["versions"]["torch"] and content["note"]
    text = (tmp_path / "out" / "tables" / "table5_smoke.md").read_text()
    assert "| none/uda | 62.5 ± 158.8 | 2 | 62.94 | -0.4 | 2 | done |" in text
    assert "the numbers mean nothing" in text and "tpssl-hf reproduce --table=V" in text
    assert "62.5 ± 158.8 / 62.94" in capsys.readouterr().out
    assert reproduce(table="V", cells="none/uda,byol/u*,byol/fixmatch") == 0
    assert times_run(tmp_path) == ran


def test_a_cell_that_fails_is_told_and_the_others_go_on(
    reproduce: Reproduce, behavior: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behavior["cifar10_byol"] = "fail"
    assert reproduce(table="V", cells="byol/uda,byol/fixmatch,moco_v2/uda") == 1
    printed = capsys.readouterr().out
    assert "not made: the dog has eaten the images. (exit code 1; whole log: " in printed and "failed: " in printed
    one, two, three = found(tmp_path)["cells"]
    assert "the dog has eaten" in one["failed"] and two["failed"].startswith("it needs cifar10_byol")
    assert three["finished"] and not three["failed"] and not one["finished"]
    assert max(times_run(tmp_path).values()) == 1, "a command that failed is not tried again for the next cell"
    behavior.clear()
    assert reproduce(table="V", cells="byol/uda,byol/fixmatch,moco_v2/uda") == 0
    assert all(cell["finished"] and not cell["failed"] for cell in found(tmp_path)["cells"])


def test_a_cell_without_its_data_is_left_out_with_where_they_come_from(
    reproduce: Reproduce, behavior: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(table="III", scale="paper", cells="none/labels_10") == 1
    assert (
        "missing isic2017 (https://challenge.isic-archive.com" in found(tmp_path, "table3_paper")["cells"][0]["failed"]
    )
    assert not times_run(tmp_path)


def test_a_wish_to_stop_is_passed_on_and_nothing_more_is_begun(
    reproduce: Reproduce, behavior: dict[str, str], tmp_path: Path
) -> None:
    behavior["uda"] = "stop"
    began = time.monotonic()
    assert reproduce(table="V", cells="none/uda,byol/uda") == 143
    assert time.monotonic() - began < 30
    assert len(times_run(tmp_path)) == 1 and not found(tmp_path)["cells"][0]["finished"]


def test_smoke_runs_a_cell_from_end_to_end(
    reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert reproduce(table="V", cells="none/linear_probe") == 0, (tmp_path / "out" / "logs").glob("*")
    cell = found(tmp_path)["cells"][0]
    assert len(cell["values"]) == 2 and all(0 <= value <= 100 for value in cell["values"])
    results = json.loads((Path(cell["stages"][0]["folder"]) / "results.json").read_text())
    assert results["method"] == "linear_probe" and results["config"]["dataset"] == "digits"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"table": "V", "scale": "smal"}, "Got value: smal"),
        ({"tabel": "V"}, "unknown key 'tabel'; the nearest known one is 'table'"),
        ({}, "neither of --table and --figure"),
    ],
)
def test_bad_input_is_one_sentence(settings: dict[str, Any], sentence: str, reproduce: Reproduce) -> None:
    with pytest.raises(InputError, match=sentence):
        reproduce(**settings)


def test_keys_are_those_of_the_config_and_nothing_else() -> None:
    assert parse_args(ReproduceArgs, ["--table", "I"]).reproduce.table == "I"
    assert parse_args(ReproduceArgs, ["--figure", "1", "--list"]).reproduce == ReproduceConfig(figure="1", list=True)


def test_without_recipes_the_installed_command_makes_the_cells(
    reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "RECIPES", tmp_path)
    monkeypatch.setattr(launch, "presets", lambda: CONFIGS)
    assert reproduce(table="V", list="true", cells="byol/uda") == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("    python ")]
    assert [command[:4] for command in commands] == [
        ["python", "-m", "tpssl_hf.cli", name] for name in ("pretrain", "classify")
    ]


def test_a_wheel_brings_its_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.presets() == launch.RECIPES / "configs"
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "launch.py"))
    assert launch.presets() == tmp_path / "presets"
