"""Recipes with --push_to_hub: refused before training where it cannot work, published after it, and nothing lost."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import constants, get_token, snapshot_download
from loopback import TOKEN, LoopbackHub, Repository, ask
from scripts import load_script
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from tpssl_hf.config.shared import PushConfig
from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import PushError

# The client itself passes images on in a way its HTTP library no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
RECIPES = {"adapted": "target_pretrain", "classifier": "ssl_classify", "segmenter": "ssl_segment"}
LOADERS = {
    "adapted": AutoModel,
    "classifier": AutoModelForImageClassification,
    "segmenter": AutoModelForSemanticSegmentation,
}
TINY = {"backbone": "test_resnet", "max_steps": 2, "precision": "fp32", "log_every": 1, "dataset": "digits"}
TINY |= {"image_size": 32, "limit_images": 160, "batch_size": 8}
PUSH = {"push_to_hub": True, "hub_model_id": "me/x", "hub_license": "mit"}
HUB_KEYS = {item.name for item in fields(PushConfig)}
Recipe = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Run recipes/NAME.py in this process with these settings, without the images it draws; its exit code."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def draw(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"\x89PNG")

    def start(name: str, settings: dict[str, Any]) -> int:
        recipe = load_script(f"recipes/{name}.py")
        monkeypatch.setattr("tpssl_hf.tasks.classify.report.draw_pseudo_labels", draw)
        for task in ("pretrain", "classify"):
            monkeypatch.setattr(f"tpssl_hf.tasks.{task}.run.draw_views", draw)
            monkeypatch.setattr(f"tpssl_hf.tasks.{task}.report.draw_curves", draw)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *(f"--{key}={value}" for key, value in settings.items())])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so short a run has reasons to warn
            code: int = recipe.main()
        return code

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def logged_in(hub: LoopbackHub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's client asks that Hub, with a token that may write; nobody waits between attempts."""
    ask(hub, tmp_path / "hub-cache", monkeypatch)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert get_token() == TOKEN


@pytest.fixture
def again(runs: dict[str, Path], run: Recipe) -> Recipe:
    """Start the recipe of a finished run with its own settings and more."""
    return lambda kind, **more: run(RECIPES[kind], {"config": runs[kind] / "config.yaml", **more})


@pytest.mark.parametrize("kind", RECIPES)
def test_a_finished_run_is_published_without_training_again(
    kind: str, again: Recipe, runs: dict[str, Path], hub: LoopbackHub
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs[kind].rglob("*") if path.is_file()}
    assert again(kind, **PUSH) == 0
    files = hub.head("me/x")
    assert files["model.safetensors"] == (runs[kind] / "model" / "model.safetensors").read_bytes()
    assert b"license: mit" in files["README.md"]
    loaded = LOADERS[kind].from_pretrained(snapshot_download("me/x"))
    assert sum(parameter.numel() for parameter in loaded.parameters()) > 10_000
    assert {path: path.stat().st_mtime_ns for path in runs[kind].rglob("*") if path.is_file()} == before


def test_a_failed_push_keeps_the_run_and_the_same_command_pushes_it_without_training(
    run: Recipe, hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        TINY
        | PUSH
        | {"method": "byol", "hidden_features": 32, "projection_features": 16, "output_dir": tmp_path / "mine"}
    )
    settings |= {"hub_revision": "first", "hub_private_repo": True}
    hub.fail("commit", "403")  # this server sends back what it was sent
    with pytest.raises(PushError, match="not published: your token may not write to me/x") as caught:
        run("target_pretrain", settings)
    assert f"tpssl-hf publish {tmp_path / 'mine'} --repo me/x --private --revision first" in str(caught.value)
    assert (tmp_path / "mine" / "results.json").is_file() and hub.head("me/x").keys() == {".gitattributes"}
    trained = (tmp_path / "mine" / "metrics.jsonl").stat().st_mtime_ns
    hub.faults.clear()
    assert run("target_pretrain", settings) == 0
    assert (tmp_path / "mine" / "metrics.jsonl").stat().st_mtime_ns == trained
    assert hub.repositories["me/x"].private and hub.head("me/x").keys() == {".gitattributes"}
    files = hub.head("me/x", "first")
    assert AutoModel.from_pretrained(snapshot_download("me/x", revision="first"))
    shown = yaml.safe_load(files["run_config.yaml"])
    assert shown["max_steps"] == 2 and not HUB_KEYS & shown.keys()  # whoever makes this run again pushes it nowhere
    assert not HUB_KEYS & json.loads(files["results.json"])["config"].keys()
    assert yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["hub_model_id"] == "me/x"
    channels = [*capsys.readouterr(), str(caught.value), *hub.repositories["me/x"].messages]
    channels += [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    channels += [content.decode(errors="replace") for content in files.values()]
    assert [channel for channel in channels if TOKEN in channel] == []


def test_of_several_draws_the_first_is_published_with_the_spread_over_all(
    run: Recipe, hub: LoopbackHub, tmp_path: Path
) -> None:
    settings = TINY | PUSH | {"batch_size": 4, "labels": 20, "limit_test_images": 40, "label_seeds": "3,1"}
    settings |= {"select": "last"}
    assert run("ssl_classify", settings | {"output_dir": tmp_path / "all", "init": "random"}) == 0
    files = hub.head("me/x")
    assert json.loads(files["results.json"])["labels"]["seed"] == 3
    assert b"one of 2 label seeds" in files["README.md"]
    assert sum("/commit/" in request for request in hub.requests) == 1


OPEN = Repository()
OPEN.add("main", {}, "there already")
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"hub_model_id": None}, {}, "add `--hub_model_id owner/name`"),
    ({"hub_model_id": "x"}, {}, "hub_model_id 'x' names no owner"),
    ({"hub_model_id": f"https://me:{TOKEN}@huggingface.co/me/x"}, {}, "holds what looks like an access token"),
    ({"hub_model_id": "https://me:secret@huggingface.co/me/x"}, {}, "is not a Hub id"),
    ({"hub_revision": "a b"}, {}, "hub_revision 'a b' is no branch's name"),
    ({}, {"offline": True, "token": None}, "HF_HUB_OFFLINE"),
    ({}, {"token": None}, "does not know you; log in with `hf auth login`"),
    ({}, {"token": "hf_" + "wRoNg" * 6}, "does not know you; log in"),
    ({}, {"role": "read"}, "token may only read"),
    ({"hub_model_id": "you/x"}, {}, "knows you as me, who may not write below you"),
    ({"hub_model_id": "club/x"}, {}, "knows you as me, who may not write below club"),
    ({}, {"fault": "503"}, "status 503.*leave `--push_to_hub` out and publish later"),
    ({}, {"fault": "cut"}, "connection broke"),
    ({"hub_model_id": "me/open", "hub_private_repo": True}, {}, "public, which `--hub_private_repo` does not change"),
    ({"hub_license": None}, {}, "license of this run is not known.*`--hub_license apache-2.0`"),
    ({"hub_license": "Apache 2"}, {}, "^hub_license 'Apache 2' is not spelled"),
    ({"hub_base_model": "resnet18"}, {}, "^hub_base_model 'resnet18' is not a Hub id"),
    ({"init": "WEIGHTS"}, {}, "base weights are not known.*`--hub_base_model timm/.*`--hub_base_note`"),
    ({"init": "WEIGHTS", "backbone": "resnet18"}, {}, "does not fit this backbone"),
]


@pytest.mark.parametrize(("settings", "trouble", "sentence"), REFUSED)
def test_what_would_stop_the_push_stops_the_run_before_it_begins(
    settings: dict[str, Any],
    trouble: dict[str, Any],
    sentence: str,
    run: Recipe,
    runs: dict[str, Path],
    hub: LoopbackHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repositories["me/open"], hub.role = OPEN, trouble.get("role", "write")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", trouble.get("offline", False))
    monkeypatch.setenv("HF_TOKEN", trouble.get("token", TOKEN) or "")
    if "fault" in trouble:
        hub.fail("whoami", trouble["fault"])
    chosen = TINY | PUSH | settings | {"output_dir": tmp_path / "mine"}
    if settings.get("init"):
        chosen["init"] = tmp_path / "weights.safetensors"
        chosen["init"].write_bytes((runs["adapted"] / "model" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=sentence) as caught:
        run("target_pretrain", {name: value for name, value in chosen.items() if value is not None})
    assert not (tmp_path / "mine").exists() and not any("create" in request for request in hub.requests)
    assert "\n" not in str(caught.value)
    assert not [text for text in (*capsys.readouterr(), str(caught.value)) if TOKEN in text or "wRoNg" in text]


@pytest.mark.parametrize("kind", RECIPES)
def test_every_recipe_asks_before_it_trains(kind: str, run: Recipe, hub: LoopbackHub, tmp_path: Path) -> None:
    hub.role = "read"
    with pytest.raises(InputError, match="token may only read"):
        run(RECIPES[kind], PUSH | {"output_dir": tmp_path / "mine", "backbone": "test_resnet", "init": "random"})
    assert not (tmp_path / "mine").exists() and hub.requests == ["GET /api/whoami-v2"]


def test_a_run_that_lacks_something_for_the_card_is_not_lost(
    again: Recipe, runs: dict[str, Path], hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> str:
        raise InputError("no good.")

    monkeypatch.setattr("tpssl_hf.hub.push_after_training.publish_run", damaged)
    with pytest.raises(PushError, match=f"^not published: no good. The run is whole in {runs['adapted']}; push it"):
        again("adapted", **PUSH)
    assert hub.requests == ["GET /api/whoami-v2"]


def test_nothing_is_asked_of_the_hub_without_being_told_to(
    again: Recipe, hub: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again("adapted") == 0 and again("classifier", hub_model_id="me/x") == 0
    assert hub.requests == [] and "nothing will be pushed to me/x" in capsys.readouterr().out
