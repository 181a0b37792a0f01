"""The recipe as people run it: once through the command line, and otherwise in this process, which is faster."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tpssl_hf.config.parser import flat, read_config_file
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.methods.pretrain.byol import BYOL
from tpssl_hf.methods.pretrain.simclr import SimCLR
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.paper.grid import STATISTICS_ONLY
from tpssl_hf.tasks.pretrain import prepare, report
from tpssl_hf.tasks.pretrain import run as pretraining
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.shown_images import ShownImages
from tpssl_hf.tasks.pretrain.untouched import Untouched
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
OTHERS = ("ssl_classify", "ssl_segment", "tables")  # parsed in the tests of their own recipes
RESULT_KEYS = ["recipe", "method", "task", "dataset", "backbone", "init", "seed", "steps", "stopped", "epochs"]
RESULT_KEYS += ["seconds", "machine", "images_per_second", "metrics", "verdict"]
RESULT_KEYS += ["saved", "batchnorm", "config", "versions", "commit"]
RUN_FILES = {"config.yaml", "scan.json", "batchnorm.json", "augmentations.png", "metrics.jsonl", "curves.png"}
RUN_FILES |= {"results.json", "curves_more.png"}

Adapt = Callable[..., int]
ImageBatch = Callable[..., Path]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapted")


@pytest.fixture
def adapted(place: Path, adapt: Adapt, images: ImageBatch) -> Path:
    """A folder with ``images`` and the ``run`` of the settings of ``adapt`` on them, made once; only to be read."""
    if not (place / "run" / "results.json").exists():
        shutil.copytree(images(), place / "images")
        assert adapt(dataset=place / "images", output_dir=place / "run") == 0
    return place


# --- through the command line ---


def test_one_command_line_leaves_everything_and_its_config_repeats_it(
    tmp_path: Path, images: ImageBatch, adapt: Adapt, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    command = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    command += ["--config_file", "recipes/configs/accelerate/default.yaml", "recipes/target_pretrain.py"]
    command += ["--dataset", str(images()), "--output_dir", str(folder), "--cache_dir", str(tmp_path / "cache")]
    command += ["--backbone", "test_resnet", "--image_size", "32", "--batch_size", "8", "--max_steps", "3"]
    command += [
        "--method",
        "byol",
        "--hidden_features",
        "32",
        "--projection_features",
        "16",
        "--precision",
        "fp32",
        "--cpu_threads",
        "1",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    assert "were not passed" not in done.stderr and "Warning" not in done.stderr
    assert "24/24" in done.stderr.splitlines()[-1]  # the bar counts images, and ends where it should
    for part in ("1 process; float32", "images: 24 images, scanned", "Adapted test_resnet (random weights)"):
        assert part in done.stdout
    assert f"timm.create_model('local-dir:{folder / 'model'}', pretrained=True)" in done.stdout

    assert {path.name for path in folder.iterdir()} == RUN_FILES | {"checkpoints", "model"}
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_3"]
    assert {path.name for path in (folder / "model").iterdir()} == {"model.safetensors", "config.json"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("augmentations.png", "curves.png"))
    found = results(folder)
    assert list(found) == RESULT_KEYS
    assert found["dataset"] == {"name": "images", "fingerprint": found["dataset"]["fingerprint"], "images": 24}
    assert (found["steps"], found["epochs"], found["method"], found["seed"]) == (3, 1.0, "byol", 0)
    assert found["metrics"] == {} and found["seconds"] > 0 and found["versions"]["torch"] == version("torch")
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [3]
    assert found["config"] == yaml.safe_load((folder / "config.yaml").read_text())

    again = tmp_path / "again"
    monkeypatch.setattr(sys, "argv", ["x", "--config", str(folder / "config.yaml"), "--output_dir", str(again)])
    assert torch.get_num_threads() == found["config"]["cpu_threads"] == 1
    assert recipe.main() == 0
    assert weights(again) == weights(folder)


# --- kinds of data ---


def test_finished_run_is_not_trained_again(adapt: Adapt, adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = adapted / "run"
    before = snapshot(run)
    capsys.readouterr()
    assert adapt(dataset=adapted / "images", output_dir=run) == 0
    assert snapshot(run) == before
    assert capsys.readouterr().out.startswith(f"{run} holds the finished run of these settings")


def test_nested_folder_has_no_labels(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    assert adapt(dataset=images(nested=True), limit_images=17, max_steps=None, epochs=2) == 0
    found = results(tmp_path / "run")
    assert found["metrics"] == {} and found["dataset"]["images"] == 17
    assert (found["steps"], found["epochs"]) == (4, 2.0)  # 17 images are two batches of 8


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def test_labels_are_probed_before_and_after(
    adapt: Adapt, labeled: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    labeled.to_parquet(folder / "train-00000-of-00001.parquet")
    assert adapt(dataset=folder) == 0
    metrics = results(tmp_path / "run")["metrics"]
    names = [
        f"{probe}_{when}"
        for when in ("before", "statistics_only", "after")
        for probe in ("few_label_accuracy", "knn_accuracy", "linear_probe_accuracy")
    ]
    assert sorted(metrics) == sorted(names) and all(0 <= value <= 1 for value in metrics.values())
    assert metrics["linear_probe_accuracy_after"] == 1.0  # dark and bright are told apart by any features
    out = capsys.readouterr().out
    assert "kNN accuracy" in out and "linear probe" in out
    judged = results(tmp_path / "run")["verdict"]
    assert judged["verdict"] in ("worse", "no difference", "better") and len(judged["probes"]) == 3


@pytest.mark.parametrize("resumed", [False, True])
def test_a_backbone_that_has_become_worse_is_called_so_in_the_first_line(
    adapt: Adapt,
    labeled: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
) -> None:
    """Φ_pre answers all questions, what is saved answers none: the state of before must come through a checkpoint."""
    (tmp_path / "table").mkdir()
    labeled.to_parquet(tmp_path / "table" / "train.parquet")
    first = {"linear_probe_accuracy": [1] * 50}
    monkeypatch.setattr(
        pretraining, "probed_before", lambda run: pretraining.Progress(before=first, statistics_only=first)
    )
    monkeypatch.setattr(report, "probed", lambda run, backbone: {n: [0] * 50 for n in first})
    if resumed:
        with monkeypatch.context() as patch:
            stop_after_forward(3, patch)  # two a step
            assert adapt(dataset=tmp_path / "table") == 143
        capsys.readouterr()
    assert adapt(dataset=tmp_path / "table") == 0
    summary = capsys.readouterr().out.rpartition("\n\n")[2]
    assert summary.startswith("The saved backbone is WORSE than the weights it started from: linear probe −100.0")
    assert "use them anywhere" not in summary and "keep the weights it started from" in summary
    assert results(tmp_path / "run")["verdict"]["verdict"] == "worse"


@pytest.mark.parametrize(("better", "resumed"), [(False, True), (True, False)])
def test_what_labels_show_to_be_no_better_than_the_start_is_not_saved(
    adapt: Adapt,
    labeled: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    better: bool,
    resumed: bool,
) -> None:
    """Only the answers are made up: which network gave them is told by whether its weights are the start's."""
    (tmp_path / "table").mkdir()
    datasets.concatenate_datasets([labeled] * 3).to_parquet(tmp_path / "table" / "train.parquet")
    start = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_timm_folder(start, tmp_path / "start", preprocessing=Preprocessing(32, (0.5,) * 3, (0.5,) * 3), provenance={})
    own = start.state_dict()["conv1.0.weight"]

    def answers(run: Any, backbone: torch.nn.Module) -> list[int]:
        is_start = torch.equal(backbone.state_dict()["conv1.0.weight"], own)
        return [int(is_start != better)] * 120

    monkeypatch.setattr(pretraining, "choosing_answers", answers)
    monkeypatch.setattr(Untouched, "answers", lambda asked, split: answers(None, asked.network))
    keys = {"dataset": tmp_path / "table", "init": tmp_path / "start", "base_learning_rate": 0.1, "method": "simclr"}
    keys |= {"backbone_batchnorm": "frozen"}  # or the start is asked about while that is chosen
    keys |= {"hidden_features": None, "optimizer": "sgd"}
    if resumed:
        with monkeypatch.context() as patch:
            stop_after_forward(2, patch, SimCLR)
            assert adapt(**keys) == 143
        capsys.readouterr()
    assert adapt(**keys) == 0
    summary = capsys.readouterr().out.rpartition("\n\n")[2]
    saved, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("model", "model_last"))
    assert not torch.equal(last["conv1.0.weight"], own)
    found = results(tmp_path / "run")
    if better:
        assert found["saved"]["candidate"] != "start" and not torch.equal(saved["conv1.0.weight"], own)
        assert found["saved"]["gain"]["low"] > 0 and "Nothing adapted" not in summary
    else:
        assert found["saved"]["candidate"] == "start"
        assert all(torch.equal(saved[name], value) for name, value in start.state_dict().items())
        assert summary.startswith("Nothing adapted is better than the weights it started from")


@pytest.mark.parametrize("sound", [False, True])
def test_without_labels_what_training_destroyed_is_not_saved(
    adapt: Adapt,
    images: ImageBatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sound: bool,
) -> None:
    """Only what crops say is made up: the start knows every image again, what is trained every second time."""
    start = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_timm_folder(start, tmp_path / "start", preprocessing=Preprocessing(32, (0.5,) * 3, (0.5,) * 3), provenance={})
    own = start.state_dict()["conv1.0.weight"]

    def crops(shown: Any, backbone: torch.nn.Module) -> Crops:
        is_start = torch.equal(backbone.state_dict()["conv1.0.weight"], own)
        return Crops([1.0] * 20 if is_start or sound else [1.0, 0.1] * 10, 8.0)

    monkeypatch.setattr(ShownImages, "crops", crops)
    assert adapt(dataset=images(), init=tmp_path / "start", base_learning_rate=0.1, optimizer="sgd") == 0
    summary = capsys.readouterr().out.rpartition("\n\n")[2]
    saved, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("model", "model_last"))
    assert not torch.equal(last["conv1.0.weight"], own)
    found = results(tmp_path / "run")["saved"]
    assert (found["by"], found["candidate"]) == ("crops", "last" if sound else "start")
    assert torch.equal(saved["conv1.0.weight"], own) != sound
    assert summary.startswith("Whether adapting helped is not known" if sound else "What training ended with knows")


def test_without_labels_the_summary_claims_nothing_and_says_how_to_find_out(
    adapt: Adapt, images: ImageBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(dataset=images()) == 0
    summary = capsys.readouterr().out.rpartition("\n\n")[2]
    assert summary.startswith("Whether adapting helped is not known") and "tpssl-hf verdict --adapted" in summary
    assert results(tmp_path / "run")["verdict"]["verdict"] == "unknown"


def test_streamed_parquet_needs_no_scan(
    adapt: Adapt,
    labeled: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prepare, "REESTIMATION_IMAGES", 32)  # or the stream comes round a hundred times
    (tmp_path / "table").mkdir()
    labeled.to_parquet(tmp_path / "table" / "train.parquet")
    assert adapt(dataset=tmp_path / "table", streaming=True) == 0
    said = capsys.readouterr().out
    assert "warm-up is a tenth of the steps. Health checks" in said and "are off" in said
    found = results(tmp_path / "run")
    assert found["dataset"]["images"] is None and found["epochs"] is None and found["metrics"] == {}
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["epoch"] is None
    assert not (tmp_path / "run" / "scan.json").exists() and not (tmp_path / "cache").exists()


def test_some_broken_images_are_left_out_and_named(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    assert adapt(dataset=images(40, broken=2)) == 0
    scan = json.loads((tmp_path / "run" / "scan.json").read_text())
    assert scan["enlarged_crops"] == scan["enlarged_crops_at_full_size"] and scan["read_differently"] == 0
    assert scan["images"] == 38 and [entry["where"] for entry in scan["bad"]] == ["000.png", "001.jpg"]


# --- ways to train ---


def stop_after_forward(number: int, monkeypatch: pytest.MonkeyPatch, method: type[Method] = BYOL) -> None:
    """Send this process SIGTERM in forward pass ``number`` from now."""
    calls, original = [], method.forward

    def forward(self: Method, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(method, "forward", forward)


def test_stopped_run_continues_where_it_was(
    adapt: Adapt,
    adapted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = adapted / "images"
    with monkeypatch.context() as patch:
        stop_after_forward(3, patch)  # two a step
        assert adapt(dataset=dataset) == 143
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.raises(InputError, match="holds an unfinished run and resume is false"):
        adapt(dataset=dataset, resume=False)
    assert adapt(dataset=dataset) == 0
    assert "resuming after step 2 of 3" in capsys.readouterr().out
    assert weights(tmp_path / "run") == weights(adapted / "run")


def test_accumulated_parts_are_one_step(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    settings = {"dataset": images(), "gradient_accumulation_steps": 2, "max_steps": None, "epochs": 1}
    assert adapt(**settings, log_every=1) == 0
    found = results(tmp_path / "run")
    assert (found["steps"], found["epochs"]) == (3, 1.0)
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_adapted_weights_are_adapted_further_with_a_pull_toward_them(
    adapt: Adapt, adapted: Path, tmp_path: Path
) -> None:
    dataset, model, second = adapted / "images", adapted / "run" / "model", tmp_path / "second"
    assert adapt(dataset=dataset, init=model, output_dir=second) == 0
    assert adapt(dataset=dataset, init=model, output_dir=tmp_path / "free", l2_weight=0) == 0
    assert results(adapted / "run")["config"]["l2_weight"] == 0.0
    found = results(second)
    assert found["config"]["l2_weight"] == 1e-2
    assert found["init"]["kind"] == "folder" and found["init"]["name"] == "run/model" and found["init"]["sha256"]
    assert "loss_anchor" in read_metrics(second / "metrics.jsonl")[0]
    checkpoint = load_latest(second / "checkpoints")
    assert checkpoint is not None
    start = load_file(model / "model.safetensors")["conv1.0.weight"]
    assert torch.equal(checkpoint.tensors["method"]["anchor_0"], start)
    assert weights(second) != weights(tmp_path / "free") != weights(adapted / "run")


def test_a_rate_of_nothing_gives_new_statistics_and_no_new_weights(
    adapt: Adapt, adapted: Path, tmp_path: Path
) -> None:
    """The control row of the tables: STATISTICS_ONLY."""
    model = adapted / "run" / "model"
    assert adapt(dataset=adapted / "images", init=model, output_dir=tmp_path / "control", **STATISTICS_ONLY) == 0
    start, control = (load_file(f / "model.safetensors") for f in (model, tmp_path / "control" / "model"))
    assert all(torch.equal(value, control[key]) for key, value in start.items() if not key.endswith(STATISTICS))


# --- bad input: one sentence, and nothing is left half-written ---


def refused(adapt: Adapt, tmp_path: Path, **settings: Any) -> str:
    """Return the sentence with which these settings are refused; what is left must be whole, and no training."""
    run = tmp_path / "run"
    with pytest.raises(InputError) as error:
        adapt(**settings)
    left = {path.name for path in run.rglob("*")} if run.is_dir() else set()
    assert left <= {"config.yaml", "scan.json", "batchnorm.json"}
    if "scan.json" in left:
        json.loads((run / "scan.json").read_text())
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*.tmp*"))
    sentence = str(error.value)
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


def test_unknown_key_is_refused_before_anything_is_made(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    sentence = refused(adapt, tmp_path, dataset=images(), base_learning_rat=0.1)
    assert sentence == "unknown key 'base_learning_rat'; the nearest known one is 'base_learning_rate'."
    assert not (tmp_path / "run").exists()


def test_unknown_method_and_backbone(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    dataset = images()
    assert refused(adapt, tmp_path, dataset=dataset, method="byoll").startswith(
        "method 'byoll' is not one of auto, byol"
    )
    assert not (tmp_path / "run").exists()
    assert "'resnet_18' is no timm model; did you mean" in refused(
        adapt, tmp_path, dataset=dataset, backbone="resnet_18"
    )


def test_folder_that_is_empty_or_missing(adapt: Adapt, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "'empty' holds no images" in refused(adapt, tmp_path, dataset=tmp_path / "empty")
    missing = refused(adapt, tmp_path, dataset=tmp_path / "missing", output_dir=tmp_path / "other")
    assert "missing' is not an existing folder" in missing


def test_fewer_images_than_a_batch(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    sentence = refused(adapt, tmp_path, dataset=images(5))
    assert "5 images of 'images' are fewer than one batch of 8" in sentence and "lower the batch size" in sentence


def test_batch_that_cannot_be_divided(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    sentence = refused(adapt, tmp_path, dataset=images(), gradient_accumulation_steps=3)
    assert "batch_size 8" in sentence and "try --batch_size 9" in sentence


def test_more_than_a_twentieth_broken(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    sentence = refused(adapt, tmp_path, dataset=images(30, broken=3))
    assert "3 of 30 images of 'images' cannot be read" in sentence and "000.png" in sentence


def test_streaming_without_a_length(adapt: Adapt, labeled: Any, tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    labeled.to_parquet(tmp_path / "table" / "train.parquet")
    sentence = refused(adapt, tmp_path, dataset=tmp_path / "table", streaming=True, max_steps=None)
    assert "give --max_steps" in sentence


def test_weights_of_another_architecture(adapt: Adapt, adapted: Path, tmp_path: Path) -> None:
    dataset, model = adapted / "images", adapted / "run" / "model"
    sentence = refused(adapt, tmp_path, dataset=dataset, init=model, backbone="test_resnet_other")
    assert "'test_resnet_other' is no timm model" in sentence
    sentence = refused(
        adapt, tmp_path, dataset=dataset, init=model, backbone="resnet18", output_dir=tmp_path / "second"
    )
    assert "holds a test_resnet, not a resnet18; say --backbone test_resnet" in sentence


def test_tracker_that_is_not_installed(
    adapt: Adapt, images: ImageBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("tpssl_hf.training.accelerator.importlib.metadata.version", not_installed)
    sentence = refused(adapt, tmp_path, dataset=images(), log_with="wandb")
    assert "uv pip install wandb" in sentence and not (tmp_path / "run").exists()


def test_file_in_the_place_of_the_folder_ends_with_code_2(
    adapt: Adapt, recipe: Any, images: ImageBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SystemExit) as end:
        recipe.run_cli(lambda: adapt(dataset=images()))
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "choose another output_dir" in lines[0]
    assert (tmp_path / "run").read_text() == "mine"


def test_a_stopped_run_continues_where_its_images_were_copied_anew(
    adapt: Adapt, images: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = images(name="copied")
    with monkeypatch.context() as patch:
        stop_after_forward(1, patch)
        assert adapt(dataset=dataset) == 143
    for number, path in enumerate(sorted(dataset.iterdir())):
        os.utime(path, (number, number))  # a download or a plain copy does not keep times
    assert adapt(dataset=dataset) == 0


def test_checkpoints_of_another_run_are_not_touched(
    adapt: Adapt, adapted: Path, images: ImageBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run, first = images(name="others"), tmp_path / "run", tmp_path / "first"
    shutil.copytree(adapted / "run" / "model", first / "model")
    with monkeypatch.context() as patch:
        stop_after_forward(1, patch)
        assert adapt(dataset=dataset, init=first / "model") == 143
    before = snapshot(run)

    with pytest.raises(InputError, match=r"base_learning_rate 0\.0004 -> 0\.5.*weight_decay 1e-06 -> 0\.1"):
        adapt(dataset=dataset, init=first / "model", base_learning_rate=0.5, weight_decay=0.1)
    assert snapshot(run) == before

    (first / "model" / "config.json").unlink()
    assert adapt(dataset=dataset, output_dir=tmp_path / "third", seed=1) == 0
    (first / "model" / "model.safetensors").write_bytes(weights(tmp_path / "third"))
    with pytest.raises(InputError, match=r"step_1 was made with origin .*give back what the run was started with"):
        adapt(dataset=dataset, init=first / "model")
    (dataset / "000.png").unlink()
    with pytest.raises(InputError, match=r"step_1 was made with other images: files .* changed since"):
        adapt(dataset=dataset, init=first / "model")
    assert {name for name in snapshot(run) if name != "scan.json"} == {name for name in before if name != "scan.json"}
    assert snapshot(run / "checkpoints") == {
        name.removeprefix("checkpoints/"): value for name, value in before.items() if name.startswith("checkpoints/")
    }


def test_corrected_command_may_use_the_same_folder(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    dataset = images()
    refused(adapt, tmp_path, dataset=dataset, batch_size=256)
    assert adapt(dataset=dataset, batch_size=8) == 0


# --- configuration files ---


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob("*.y*ml")) if path.parent.name not in OTHERS],
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_every_config_is_read_and_begins_with_its_command(
    recipe: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    header = list(takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()))
    command = next(line.partition("ommand: ")[2].split() for line in header if "ommand: " in line)
    assert command[:2] == ["accelerate", "launch"]
    script = command.index("recipes/target_pretrain.py")
    if path.is_relative_to(CONFIGS / "accelerate"):
        assert command[2:script] == ["--config_file", str(path.relative_to(ROOT))]
        assert {"compute_environment", "distributed_type", "num_processes"} <= set(yaml.safe_load(path.read_text()))
    else:
        settings = flat(parse_pretrain(command[script + 1 :]))
        assert settings == flat(parse_pretrain(["--config", str(path)]))
        given = read_config_file(path)
        assert given and {key: settings[key] for key in given} == given


def test_all_configs_are_found() -> None:
    assert {path.parent.name for path in CONFIGS.rglob("*.y*ml")} == {"accelerate", "target_pretrain", *OTHERS}


def test_the_memory_format_changes_no_more_than_rounding(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    dataset, weights = images(), []
    for layout in ("channels_last", "contiguous"):
        assert adapt(dataset=dataset, memory_format=layout, output_dir=tmp_path / layout) == 0
        weights.append(load_file(tmp_path / layout / "model" / "model.safetensors"))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
