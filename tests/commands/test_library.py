"""The public functions: the same keys as the commands, the same runs, and nothing of the command line."""

import json
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from mypy import api as mypy

import tpssl_hf
from tpssl_hf.commands import pretrain as command
from tpssl_hf.commands.finished_run import FinishedRun, keywords
from tpssl_hf.config.parser import flat
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.classify.config import parse_classify
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.tasks.segment.config import parse_segment
from tpssl_hf.training.run_dir import read_metrics

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "max_steps": 2,
    "precision": "fp32",
    "log_every": 1,
    "image_size": 32,
}
TINY |= {"limit_images": 64, "batch_size": 8}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of its own, one CPU process, and no drawing, which takes most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("pretrain.run.draw_views", "pretrain.report.draw_curves", "classify.run.draw_views"):
        monkeypatch.setattr(f"tpssl_hf.tasks.{name}", lambda path, *_, **__: path.touch())
    for name in ("draw_curves", "draw_pseudo_labels"):
        monkeypatch.setattr(f"tpssl_hf.tasks.classify.report.{name}", lambda path, *_, **__: path.touch())
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.filterwarnings("ignore::tpssl_hf.monitoring.pseudo_labels.NeverAcceptedWarning")
def test_adapted_weights_serve_a_classifier_that_labels_images(tmp_path: Path) -> None:
    shared = {**TINY, "cache_dir": tmp_path / "cache"}
    adapted = tpssl_hf.pretrain(**shared, output_dir=tmp_path / "adapted", method="byol", hidden_features=32)
    assert adapted.results["steps"] == 2 and "knn_accuracy_after" in adapted.results["metrics"]
    assert adapted.load()(torch.zeros(1, 3, 32, 32)).ndim == 2
    assert timm.create_model(f"local-dir:{adapted.model_path}", pretrained=True).num_features
    own = {"labels": 20, "limit_test_images": 20, "init": adapted, "output_dir": tmp_path / "classifier"}
    classifier = tpssl_hf.finetune_classifier(**shared, **own)
    assert classifier.results["init"]["kind"] == "folder" and classifier.load()(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        10,
    )


def test_the_function_and_the_command_make_the_same_run(tmp_path: Path) -> None:
    keys = {**TINY, "cache_dir": str(tmp_path / "cache"), "method": "simclr", "projection_features": 16}
    line = [f"--{name}={value}" for name, value in keys.items()]
    assert parse_pretrain(line) == parse_pretrain(keys)
    assert command.main([*line, "--output_dir", "first"]) == 0
    tpssl_hf.pretrain(**keys, output_dir=Path("second"))
    first, second = (read_metrics(Path(name) / "metrics.jsonl")[0]["loss"] for name in ("first", "second"))
    assert first == second
    kept = {name: value for name, value in json.loads(Path("first/results.json").read_text())["config"].items()}
    assert kept | {"output_dir": "second"} == flat(parse_pretrain({**keys, "output_dir": "second"}))


@pytest.mark.parametrize("parse", [parse_pretrain, parse_classify, parse_segment])
def test_keywords_and_command_lines_resolve_alike(parse: Any, tmp_path: Path) -> None:
    keys = {"dataset": "x", "seed": 3, "horizontal_flip": False, "max_steps": 7, "cache_dir": tmp_path, "resume": True}
    line = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in keys.items()]
    assert parse(keys) == parse(line)
    assert parse({**keys, "hub_license": None}) == parse(line), "None stands for the default"


def test_lists_are_lists() -> None:
    assert parse_classify({"dataset": "x", "label_seeds": [1, 2]}).task.label_seeds == [1, 2]


@pytest.mark.parametrize(("wrong", "near"), [("base_learning_rte", "base_learning_rate"), ("data_set", "dataset")])
def test_a_misspelt_keyword_is_refused_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(InputError, match=f"'{wrong}'.*'{near}'"):
        tpssl_hf.pretrain(**{wrong: 1})


def test_a_run_as_init_means_its_weights(tmp_path: Path) -> None:
    assert keywords({"init": FinishedRun(tmp_path)}) == {"init": tmp_path / "model"}
    assert keywords({"init": "random", "seed": 1}) == {"init": "random", "seed": 1}


def test_it_works_in_another_thread_than_the_main_one(tmp_path: Path) -> None:
    """A web server's, which gets no signals."""
    found: list[Any] = []
    keys = {**TINY, "cache_dir": tmp_path / "cache", "method": "byol", "hidden_features": 32}
    thread = threading.Thread(target=lambda: found.append(tpssl_hf.pretrain(**keys, output_dir="thread")))
    thread.start()
    thread.join()
    assert np.isfinite(found[0].results["metrics"]["knn_accuracy_after"])


def test_importing_the_package_imports_no_torch_and_names_its_functions() -> None:
    assert set(tpssl_hf.__all__) <= set(dir(tpssl_hf))
    with pytest.raises(AttributeError, match="'nothing'"):
        tpssl_hf.nothing  # noqa: B018


@pytest.mark.parametrize(("key", "code"), [("batch_size", 0), ("batch_sise", 1)])
def test_a_misspelt_key_in_the_code_is_a_type_error(key: str, code: int, tmp_path: Path) -> None:
    """With typed arguments mypy sees what a dictionary of settings hid until the run."""
    reader = tmp_path / "reader.py"
    reader.write_text(
        "from tpssl_hf.tasks.pretrain.config import PretrainArgs\n\n\n"
        f"def read(args: PretrainArgs) -> int:\n    return args.optim.{key}\n"
    )
    declared = [str(ROOT / "tpssl_hf" / name) for name in ("tasks/pretrain/config.py", "config/shared.py")]
    flags = ["--strict", "--follow-imports=skip", "--cache-dir", str(tmp_path / "cache"), "--config-file", ""]
    out, _, _ = mypy.run([*flags, str(reader), *declared])
    about = [line for line in out.splitlines() if "attr-defined" in line]
    assert len(about) == code and all(f'has no attribute "{key}"; maybe "batch_size"?' in line for line in about), out
