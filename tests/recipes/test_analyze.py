"""The recipe of the analyses, run in this process on weights of a tiny backbone."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tpssl_hf.commands import analyze as command
from tpssl_hf.config.digits import DIGITS_RUN
from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
Analyze = Callable[..., int]


@pytest.fixture(scope="session")
def recipe(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/analyze.py as a module."""
    return load_recipe("analyze")


def weights(folder: Path, backbone: str = "test_resnet", seed: int = 1) -> Path:
    """Write random weights as the model of a run's folder; returns the run's folder."""
    torch.manual_seed(seed)
    model = timm.create_model(backbone, pretrained=False, num_classes=0)
    folder.mkdir(parents=True)
    save_timm_folder(model, folder / "model", preprocessing=Preprocessing(32), provenance={})
    return folder


def pretrained(folder: Path, steps: tuple[int, ...] = (10, 20), *, seed: int = 0) -> Path:
    """Write what a target pretraining leaves, as far as it is read here: settings and checkpoints."""
    spec, config = PRETRAIN["simclr"], PRETRAIN["simclr"].config(projection_features=8)
    settings = {"method": "simclr", "backbone": "test_resnet", "init": "random", "seed": seed, **vars(config)}
    settings |= {"dataset": "digits", "split": "train", "image_size": 32, "limit_images": 300}
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.manual_seed(seed)
    backbone, origin = load_backbone("test_resnet", init="random")
    method = Anchor(spec.build(backbone, config), 0.01)
    for step in steps:
        with torch.no_grad():
            for parameter in method.deployed.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        facts = {"facts": {"dataset": "digits", "origin": origin.as_dict()}}
        save_checkpoint(folder / "checkpoints", step, {"method": method.state_dict()}, facts, keep=9)
    return folder


@pytest.fixture
def analyze(
    run_recipe: Any, recipe: Any, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Analyze:
    """Run the recipe in this process with these settings; a setting of None is left out."""
    monkeypatch.chdir(tmp_path)  # where no earlier run of the defaults is found
    tiny: dict[str, Any] = {"dataset": "digits", "backbone": "test_resnet", "image_size": 32, "limit_images": 120}
    tiny |= {"repeats": 2, "samples": 40, "perplexity": 8, "cache_dir": shared_cache}
    tiny |= {"output_dir": tmp_path / "out"}
    return lambda **settings: run_recipe(recipe, tiny | settings)


def found(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / f"{name}.json").read_text())
    return content


def test_clustering_scores_each_split_of_base_and_adapted_with_every_seed(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyze(analysis="clustering", adapted=weights(tmp_path / "one")) == 0
    content = found(tmp_path, "clustering")
    keys = [(e["model"], e["split"], e["seed"]) for e in content["table"]]
    models = ("base", "base_statistics", "adapted")
    assert keys == [(m, s, n) for m in models for s in ("train", "test") for n in (0, 1)]
    assert all(0.1 <= entry["value"] <= 1 and entry["images"] == 120 for entry in content["table"])
    assert content["clusters"] == 10 and content["config"]["dataset"] == "digits" and "commit" in content
    assert "| adapted (one/model) |" in capsys.readouterr().out


def test_clustering_of_unit_features_and_without_a_test_split(analyze: Analyze, tmp_path: Path) -> None:
    run = weights(tmp_path / "one")
    assert analyze(analysis="clustering", adapted=run, test_split="none", repeats=1) == 0
    raw = found(tmp_path, "clustering")["table"]
    assert analyze(analysis="clustering", adapted=run, test_split="none", repeats=1, normalize=True) == 0
    unit = found(tmp_path, "clustering")["table"]
    assert [e["split"] for e in unit] == ["train"] * 3
    assert [e["value"] for e in unit] != [e["value"] for e in raw]


def test_tsne_writes_a_image_and_a_row_for_each_image_and_model(analyze: Analyze, tmp_path: Path) -> None:
    two = f"{weights(tmp_path / 'one')}, {weights(tmp_path / 'two', seed=2) / 'model'}"
    assert analyze(analysis="tsne", adapted=two) == 0
    with (tmp_path / "out" / "tsne.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "index", "label", "x", "y"] and len(rows) == 3 * 40
    by_model = {name: [row["index"] for row in rows if row["model"] == name] for name in ("base", "adapted_1")}
    assert by_model["base"] == by_model["adapted_1"] and len(set(by_model["base"])) == 40
    assert (tmp_path / "out" / "tsne.png").stat().st_size > 1000
    assert found(tmp_path, "tsne")["split"] == "test"


def test_drift_is_zero_for_new_statistics_alone_and_not_for_other_weights(analyze: Analyze, tmp_path: Path) -> None:
    assert analyze(analysis="drift", adapted=weights(tmp_path / "one")) == 0
    table = found(tmp_path, "drift")["table"]
    moved = {(e["model"], e["stage"]): e["value"] for e in table if e["measure"] == "drift"}
    alike = {(e["model"], e["stage"]): e["value"] for e in table if e["measure"] == "cka"}
    assert all(value == 0 for (model, _), value in moved.items() if model == "base_statistics")
    assert all(value > 0.5 for (model, stage), value in moved.items() if model == "adapted" and "layer" in stage)
    assert len(alike) == 8 and all(0 <= value < 1 for value in alike.values())


def test_weights_of_another_width_can_be_clustered_but_not_stacked(analyze: Analyze, tmp_path: Path) -> None:
    other = weights(tmp_path / "other", "test_vit2")
    assert analyze(analysis="clustering", adapted=other, image_size=64, repeats=1, test_split="none") == 0
    assert len(found(tmp_path, "clustering")["table"]) == 3
    with pytest.raises(InputError, match="dimensions; one t-SNE needs the same for all"):
        analyze(analysis="tsne", adapted=other, image_size=64)
    with pytest.raises(InputError, match="drift is between weights of one architecture"):
        analyze(analysis="drift", adapted=other, image_size=64)


def test_a_tag_is_no_other_architecture(analyze: Analyze, tmp_path: Path) -> None:
    one = weights(tmp_path / "one")
    assert analyze(analysis="drift", adapted=one, backbone="test_resnet.r160_in1k") == 0
    assert {entry["model"] for entry in found(tmp_path, "drift")["table"]} == {"base_statistics", "adapted"}


def test_snapshots_are_taken_out_of_checkpoints_and_scored(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained(tmp_path / "run")
    assert analyze(analysis="steps", run=run, labels="20,50", limit_images=300) == 0
    table = found(tmp_path, "steps")["table"]
    assert [e["step"] for e in table if e["probe"].startswith("kNN")] == [0, 0, 10, 20]
    assert {e["probe"] for e in table} == {"kNN, 240 labels", "linear, 20 labels", "linear, 50 labels"}
    assert all(0 <= e["value"] <= 1 and e["images"] == 60 for e in table)
    assert len(table) == 4 * (1 + 2 + 2)
    inside = load_file(run / "checkpoints" / "step_20" / "method.safetensors")
    saved = load_file(tmp_path / "out" / "snapshots" / "step_20" / "model.safetensors")
    weights_of = {name: value for name, value in saved.items() if "running" not in name and "tracked" not in name}
    assert all(torch.equal(value, inside[f"inner.backbone.{name}"]) for name, value in weights_of.items())
    start = load_file(tmp_path / "out" / "snapshots" / "step_0" / "model.safetensors")
    assert torch.equal(
        start["conv1.weight"] if "conv1.weight" in start else start["conv1.0.weight"], inside["anchor_0"]
    )
    out = capsys.readouterr().out
    assert "cheap stand-in" in out and "tpssl-hf classify --method supervised" in out


def test_step_zero_must_be_what_the_run_started_from(analyze: Analyze, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"init": str(weights(tmp_path / "w") / "model")}))
    with pytest.raises(InputError, match="no longer what"):
        analyze(analysis="steps", run=run, labels="20", limit_images=300)


def test_a_damaged_checkpoint_is_named(analyze: Analyze, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", (10,))
    (run / "checkpoints" / "step_10" / "method.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="step_10 is damaged"):
        analyze(analysis="steps", run=run, labels="20", limit_images=300)


def finetuned(folder: Path, start: str, dataset: str, accuracy: float) -> None:
    folder.mkdir(parents=True)
    config = {"method": "supervised", "backbone": "resnet18", "labels": 40, "init": start}
    results = {"recipe": "ssl_classify", "dataset": {"name": dataset}, "config": config}
    results |= {"init": {"kind": "folder", "name": start, "sha256": None}, "metrics": {"accuracy": accuracy}}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [{"step": n, "epoch": n, "test_accuracy": accuracy * n / 4} for n in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_finished_runs_become_tables_and_curves(
    analyze: Analyze, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetuned(tmp_path / "runs" / "a", "snapshots/step_0", "cifar10", 0.4)
    finetuned(tmp_path / "runs" / "b", "snapshots/step_50", "cifar10", 0.5)
    finetuned(tmp_path / "runs" / "c", "snapshots/step_0", "svhn", 0.3)
    assert analyze(analysis="transfer,convergence,steps", runs=f"{tmp_path}/runs/*", dataset=None) == 0
    transfer = found(tmp_path, "transfer")
    assert [e["value"] for e in transfer["table"]] == [0.4, 0.3, 0.5] and len(transfer["missing"]) == 1
    assert len(found(tmp_path, "convergence")["table"]) == 12
    assert [e["step"] for e in found(tmp_path, "steps")["table"]] == [0, 50, 0]
    out = capsys.readouterr().out
    assert "| snapshots/step_50 | 50.0 | – |" in out and "missing are made by" in out
    assert (tmp_path / "out" / "convergence.png").exists() and (tmp_path / "out" / "steps.png").exists()


def test_what_a_run_was_made_with_is_the_default_for_looking_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrained(tmp_path / "run")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "momentum: 0.9\n")
    args = command.read_args([f"--adapted={run},elsewhere", "--limit_images", "50"])
    assert (args.task.base, args.task.backbone, args.data.image_size) == ("random", "test_resnet", 32)
    assert args.data.limit_images == 50 and args.task.output_dir == "outputs/analyze"
    (tmp_path / "mine.yaml").write_text(f"run: {run}\nimage_size: 48\n")
    args = command.read_args(["--config", str(tmp_path / "mine.yaml")])
    assert args.task.backbone == "test_resnet" and args.data.image_size == 48
    (tmp_path / "mine.yaml").write_text(f"adapted: [{run}, elsewhere]\n")
    assert command.read_args(["--config", str(tmp_path / "mine.yaml")]).task.backbone == "test_resnet"
    assert command.read_args({"adapted": [run, "elsewhere"], "limit_images": 50}) == command.read_args(
        [f"--adapted={run},elsewhere", "--limit_images", "50"]
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / DIGITS_RUN).parent.mkdir()
    digits = pretrained(tmp_path / DIGITS_RUN)
    assert command.read_args([]).task.adapted == ""
    (digits / "model").mkdir()
    assert command.read_args([]).task.adapted == str(DIGITS_RUN)


def test_analyses_may_be_added_to_a_folder_but_not_to_that_of_a_run(analyze: Analyze, tmp_path: Path) -> None:
    run = weights(tmp_path / "one")
    assert analyze(analysis="drift", adapted=run) == 0
    assert analyze(analysis="tsne", adapted=run, test_split="none") == 0
    assert found(tmp_path, "drift")["config"]["analysis"] == "drift" and found(tmp_path, "tsne")["split"] == "train"
    (tmp_path / "out" / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run with another config"):
        analyze(analysis="drift", adapted=run)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"analysis": "clustring"}, "analysis 'clustring' is not one of clustering, tsne"),
        ({"analysis": "clustering", "adapted": None}, "adapted names no weights"),
        ({"analysis": "clustering", "adapted": "nowhere/at/all"}, "init 'nowhere/at/all' is not"),
        ({"analysis": "clustering", "repeats": 0}, "repeats 0: give a number from 1"),
        ({"analysis": "clustering", "test_split": "validation"}, "the test images: .* Say --test_split none"),
        ({"analysis": "clustering", "limit_images": 5}, "5 labeled train images cannot make 10 clusters"),
        ({"analysis": "tsne", "samples": 1}, "samples 1: give a number from 2; there are 120 test images"),
        ({"analysis": "tsne", "perplexity": 80}, "below the 80 features"),
        ({"analysis": "steps"}, "steps needs --run FOLDER"),
        ({"analysis": "steps", "run": "nowhere"}, "run nowhere holds no config.yaml"),
        ({"analysis": "steps", "run": "x", "labels": "40,many"}, "labels '40,many' is not a list"),
        ({"analysis": "steps", "run": "x", "labels": "5"}, "fewer than the 10 classes"),
        ({"analysis": "steps", "run": "x", "limit_images": 20}, "too few labeled images"),
        ({"analysis": "transfer"}, "names no folder"),
        ({"analysis": "convergence", "runs": "nowhere"}, "nowhere holds no readable results.json"),
        ({"analisis": "tsne"}, "unknown key 'analisis'; the nearest known one is 'analysis'"),
    ],
)
def test_bad_input_is_one_sentence(settings: dict[str, Any], sentence: str, analyze: Analyze, tmp_path: Path) -> None:
    adapted = weights(tmp_path / "one")
    with pytest.raises(InputError, match=sentence):
        analyze(**({"adapted": adapted, "labels": "20"} | settings))


def test_a_run_without_checkpoints_is_refused(analyze: Analyze, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", ())
    with pytest.raises(InputError, match="holds no checkpoints of a target pretraining"):
        analyze(analysis="steps", run=run, labels="20", limit_images=300)


def test_images_without_labels_cannot_be_scored(analyze: Analyze, images: Callable[..., Path], tmp_path: Path) -> None:
    run, folder = weights(tmp_path / "one"), images(12)
    with pytest.raises(InputError, match="the training images have no labels"):
        analyze(analysis="clustering", adapted=run, dataset=folder, test_split="none")
    assert analyze(analysis="tsne", adapted=run, dataset=folder, test_split="none", samples=500, perplexity=3) == 0
    assert len((tmp_path / "out" / "tsne.csv").read_text().splitlines()) == 1 + 2 * 12, "all there are"
