"""The verdict's recipe and its public function, run in this process on tiny backbones."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image

from tpssl_hf.commands import verdict as command
from tpssl_hf.config.digits import DIGITS_RUN
from tpssl_hf.config.shared import DataConfig
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.verdicts.config import VerdictArgs, VerdictConfig, command_of

ROOT = Path(__file__).parents[2]
MEAN = STD = (0.5, 0.5, 0.5)
Ask = Callable[..., int]


@pytest.fixture(scope="session")
def verdict(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/verdict.py as a module."""
    return load_recipe("verdict")


@pytest.fixture
def tiny(shared_cache: Path, tmp_path: Path) -> dict[str, Any]:
    """The keys of a verdict that takes a second."""
    chosen: dict[str, Any] = {"dataset": "digits", "image_size": 32, "limit_images": 160, "labels": 20, "draws": 5}
    chosen |= {"base": "random", "backbone": "test_resnet", "cache_dir": shared_cache}
    return chosen | {"feature_dir": tmp_path / "features", "output_dir": tmp_path / "verdict"}


@pytest.fixture
def ask(run_recipe: Any, verdict: Any, tiny: dict[str, Any]) -> Ask:
    """Run the recipe in this process with these settings; a setting of None is left out."""
    return lambda **settings: run_recipe(verdict, tiny | settings)


@pytest.fixture
def call(run_recipe: Any, tiny: dict[str, Any]) -> Callable[..., Any]:
    """Call the public function with these keywords in a process that has computed in bfloat16 before."""
    Accelerator(mixed_precision="bf16")
    return lambda **keys: command.verdict(**tiny | keys)


@pytest.fixture(autouse=True)
def few_clusterings(monkeypatch: pytest.MonkeyPatch) -> None:
    """k-means takes most of the time otherwise."""
    from tpssl_hf.verdicts import decision as module
    from tpssl_hf.verdicts import paired_bootstrap as paired

    monkeypatch.setattr(module, "CLUSTER_SEEDS", 2)
    monkeypatch.setattr(paired, "RESAMPLES", 500)


def weights(folder: Path, *, seed: int = 0, architecture: str = "test_resnet", **provenance: Any) -> Path:
    """Save random weights as a run leaves them, and return the run's folder."""
    torch.manual_seed(seed)
    model = timm.create_model(architecture, pretrained=False, num_classes=0)
    facts = {"recipe": "target_pretrain", "init": {"kind": "random", "name": architecture}} | provenance
    folder.mkdir(parents=True, exist_ok=True)
    save_timm_folder(
        model, folder / "model", preprocessing=Preprocessing(32, MEAN, STD), provenance=facts, license=None
    )
    return folder


def found(folder: Path, name: str = "verdict.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def images(folder: Path, names: dict[str, int]) -> Path:
    """Make a folder with so many images in each sub-folder, brighter from one class to the next."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(names.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (20, 24, 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


def test_it_leaves_a_sentence_a_table_a_image_and_every_number(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(adapted=weights(tmp_path / "run", seed=3)) == 0
    folder = tmp_path / "verdict"
    names = {"verdict.json", "verdict.png", "verdict.md", "results.json", "config.yaml", "scan.json"}
    assert {path.name for path in folder.iterdir()} - {"statistics_only"} == names
    numbers, report, said = found(folder), (folder / "verdict.md").read_text(), capsys.readouterr().out
    assert [row["name"] for row in numbers["rows"]] == ["base", "base, statistics only", "run"]
    assert all(len(row["probe"]) == len(row["knn"]) == 5 for row in numbers["rows"])
    pairs = [(entry["name"], entry["against"]) for entry in numbers["comparisons"]]
    assert pairs[:2] == [("run", "base"), ("run", "base, statistics only")]
    assert len(numbers["comparisons"][0]["probe"]["draws"]) == 5
    assert numbers["questions"] | {"chosen": ""} == {
        "chosen": "",
        "images_looked_at": 160,
        "labels_per_draw": 20,
        "draws": 5,
        "asked_per_draw": 80,
        "same_for_all_draws": True,
        "class_names": [str(number) for number in range(10)],
    }
    assert numbers["versions"] and numbers["config"]["labels"] == 20 and numbers["dataset"]["name"] == "digits"
    assert numbers["sentence"] in report and numbers["sentence"] in said and "--labels=20" in report
    assert (folder / "verdict.png").read_bytes().startswith(b"\x89PNG")


def test_the_very_same_weights_are_unclear_and_differ_by_nothing(ask: Ask, tmp_path: Path) -> None:
    base, copy = weights(tmp_path / "base"), weights(tmp_path / "copy")
    assert ask(base=base, adapted=copy, backbone=None) == 0
    numbers = found(tmp_path / "verdict")
    assert numbers["recommendation"] == "unclear"
    assert numbers["comparisons"][0]["probe"]["mean"] == numbers["comparisons"][0]["knn"]["high"] == 0.0


def test_asking_again_says_it_is_done_until_the_weights_change(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str], verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = weights(tmp_path / "run", seed=3)
    assert ask(adapted=run) == 0
    first = capsys.readouterr().out
    assert ask(adapted=run) == 0
    again = capsys.readouterr().out
    assert "holds the verdict of these settings" in again and found(tmp_path / "verdict")["sentence"] in again
    assert "from disk" not in first
    with pytest.raises(InputError, match="another config"):
        ask(adapted=run, labels=30)
    assert ask(adapted=run, labels=30, output_dir=tmp_path / "other") == 0
    assert capsys.readouterr().out.count("features from disk") == 3  # other labels of the same images
    later = (tmp_path / "verdict" / "results.json").stat().st_mtime + 10
    os.utime(run / "model" / "model.safetensors", (later, later))
    assert ask(adapted=run) == 0
    assert "holds the verdict" not in capsys.readouterr().out


def test_what_new_statistics_alone_give_is_advised_and_saved(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    original = command.judge
    monkeypatch.setattr(
        command, "judge", lambda *rows, **settings: replace(original(*rows, **settings), recommendation="statistics")
    )
    base = weights(tmp_path / "base")
    assert ask(adapted=weights(tmp_path / "run", seed=3), base=base, backbone=None) == 0
    folder = tmp_path / "verdict" / "statistics_only"
    saved = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    start = timm.create_model(f"local-dir:{base / 'model'}", pretrained=True).state_dict()
    moved = {name for name, value in saved.items() if not torch.equal(value, start[name])}
    assert moved and all("running" in name for name in moved)
    assert str(folder) in (tmp_path / "verdict" / "verdict.md").read_text()
    assert ask(adapted=folder, base=base, backbone=None, output_dir=tmp_path / "second") == 0
    rows = {row["name"]: row for row in found(tmp_path / "second")["rows"]}
    assert rows["statistics_only"]["probe"] == pytest.approx(rows["base, statistics only"]["probe"], abs=0.01)


def test_several_runs_of_other_widths_are_ranked_and_it_is_said(ask: Ask, tmp_path: Path) -> None:
    one = weights(tmp_path / "one", seed=3)
    two = weights(tmp_path / "two", seed=4, architecture="test_convnext")
    assert ask(adapted=f"{one},{two / 'model'}", image_size=48) == 0
    numbers = found(tmp_path / "verdict")
    assert {row["name"] for row in numbers["rows"]} == {"base", "base, statistics only", "one", "two"}
    assert numbers["comparisons"][0]["probe"]["level"] == pytest.approx(0.975)
    assert any("two (test_convnext) has" in note for note in numbers["notes"])
    assert any("adapted at 32 px and is compared at 48" in note for note in numbers["notes"])
    assert "is first of 2" in (tmp_path / "verdict" / "verdict.md").read_text()


def test_another_base_is_said_beside_the_sentence(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = weights(tmp_path / "run", seed=3, init={"kind": "timm", "name": "test_resnet.r160_in1k"})
    assert ask(adapted=run) == 0
    sentence = found(tmp_path / "verdict")["sentence"]
    assert "\n\nANOTHER BASE: run was adapted from timm weights (test_resnet.r160_in1k)" in sentence
    assert sentence in capsys.readouterr().out and sentence in (tmp_path / "verdict" / "verdict.md").read_text()


def test_a_digest_decides_what_names_cannot(ask: Ask, tmp_path: Path) -> None:
    base, other = weights(tmp_path / "base"), weights(tmp_path / "other" / "base", seed=5)
    _, origin = load_backbone("test_resnet", init=str(base / "model"))
    run = weights(tmp_path / "run", seed=3, init=origin.as_dict())
    assert ask(adapted=run, base=base, backbone=None) == 0
    numbers = found(tmp_path / "verdict")
    assert "ANOTHER BASE" not in numbers["sentence"] and numbers["weights"]["base"]["weights"] == origin.weights
    assert ask(adapted=run, base=other, backbone=None, output_dir=tmp_path / "second") == 0
    assert "ANOTHER BASE: run" in found(tmp_path / "second")["sentence"]


def test_forty_labels_of_a_file_are_split_and_it_says_how_few_it_asked(ask: Ask, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", {"cat": 30, "dog": 30})
    lines = [f"{name}/{index:03d}.png,{name}" for name in ("cat", "dog") for index in range(20)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    assert ask(adapted=weights(tmp_path / "run"), dataset=folder, labels=tmp_path / "labels.csv") == 0
    numbers = found(tmp_path / "verdict")
    assert numbers["questions"]["labels_per_draw"] == 30 and numbers["questions"]["asked_per_draw"] == 10
    assert not numbers["questions"]["same_for_all_draws"] and numbers["questions"]["images_looked_at"] == 60
    assert "40 labeled images into 30 to learn from and only 10 to predict" in numbers["questions"]["chosen"]


@pytest.mark.parametrize("labels", ["40", "none"])
def test_without_labels_it_is_not_sure(labels: str, ask: Ask, tmp_path: Path) -> None:
    data = "digits" if labels == "none" else images(tmp_path / "images", {"all": 40})
    assert ask(adapted=weights(tmp_path / "run", seed=3), dataset=data, labels=labels) == 0
    numbers = found(tmp_path / "verdict")
    assert numbers["recommendation"] == "unclear" and numbers["sentence"].startswith("Not sure: there are no labels")
    assert "effective rank" in (tmp_path / "verdict" / "verdict.md").read_text()
    assert not (tmp_path / "verdict" / "verdict.png").exists()


def test_a_backbone_without_batchnorm_has_no_second_control(ask: Ask, tmp_path: Path) -> None:
    run = weights(tmp_path / "run", architecture="test_convnext", seed=3)
    assert ask(adapted=run, backbone="test_convnext") == 0
    assert [row["name"] for row in found(tmp_path / "verdict")["rows"]] == ["base", "run"]


BAD = [
    ({"labels": 5}, "fewer than the 10 classes"),
    ({"labels": 25}, "same number for each"),
    ({"labels": "many"}, "is not a number above 0"),
    ({"draws": 4}, "give 5 or more"),
    ({"queries": 9}, "queries 9 are fewer than the 10 classes"),
    ({"adapted": ""}, "adapted names no weights"),
    ({"adapted": "RUN,RUN"}, "names the same weights twice"),
    ({"adapted": "RUN/nowhere/model"}, "is not there; give a run's folder"),
    ({"base": "RUN/nowhere"}, "is not there; .* random or timm"),
    ({"adapted": "EMPTY"}, "holds no model.safetensors"),
    ({"adapted": "UNFINISHED"}, "is a run that has not finished"),
    ({"adapted": "CLASSIFIER"}, "was made by ssl_classify, with labels"),
    ({"split": "test"}, "is taken on training images"),
    ({"streaming": True}, "no streaming"),
    ({"adapted_backbone": "test_resnet", "backbone": "resnet_18"}, "is no timm model"),
    ({"label": 40}, "unknown key 'label'"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_bad_input_is_one_sentence(settings: dict[str, Any], sentence: str, ask: Ask, tmp_path: Path) -> None:
    run = weights(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    weights(tmp_path / "classifier", recipe="ssl_classify")
    places = {"RUN": run, "EMPTY": tmp_path / "empty", "UNFINISHED": tmp_path / "unfinished"}
    places["CLASSIFIER"] = tmp_path / "classifier"
    for word, place in places.items():
        settings = {k: v.replace(word, str(place)) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(InputError, match=sentence):
        ask(**{"adapted": run} | settings)
    assert not (tmp_path / "verdict" / "results.json").exists()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["cat/000.png,cat", "cat/001.png,cat", "dog/000.png,dog"], "class dog has 1 labeled images"),
        (["cat/000.png,cat", "cat/001.png,cat"], "no image is labeled dog"),
        (["cat/000.png,bird"], "gives image 0 the label 'bird'"),
    ],
)
def test_labels_that_do_not_suit_the_classes_are_refused(
    lines: list[str], sentence: str, ask: Ask, tmp_path: Path
) -> None:
    folder = images(tmp_path / "images", {"cat": 4, "dog": 4})
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *lines]))
    with pytest.raises(InputError, match=sentence):
        ask(
            adapted=weights(tmp_path / "run"),
            dataset=folder,
            label_column="folder",
            labels=tmp_path / "labels.csv",
        )


def test_a_file_of_other_classes_than_the_data_set_has_is_refused(ask: Ask, tmp_path: Path) -> None:
    folder = images(tmp_path / "images", {"cat": 4, "dog": 4})
    labels = [{"row": row, "label": row % 3} for row in range(8)]
    content = {"class_names": ["cat", "dog", "bird"], "labels": labels}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    settings = {"dataset": folder, "label_column": "folder", "labels": tmp_path / "labels.json"}
    with pytest.raises(InputError, match="names 3 classes and the data set 'images' has 2"):
        ask(adapted=weights(tmp_path / "run"), **settings)


def test_the_digits_are_the_default_and_what_is_missing_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="accelerate launch recipes/target_pretrain.py"):
        command.read_args([])
    (tmp_path / DIGITS_RUN / "model").mkdir(parents=True)
    (tmp_path / DIGITS_RUN / "config.yaml").write_text("init: timm\nimage_size: 24\n")
    args = command.read_args([])
    assert command.read_args({"adapted": []}).task.adapted == ""  # not the default: something was to be named
    assert args.task.adapted == str(DIGITS_RUN)
    assert (args.task.base, args.data.image_size, args.data.dataset) == ("timm", 24, "digits")
    args = command.read_args(["--adapted", "x"])
    assert (args.task.base, args.data.image_size) == ("random", 32)
    assert command.read_args(["--adapted", "x", "--base", "timm"]).task.base == "timm"
    other = command.read_args(["--dataset", "cifar10"])
    assert (other.task.adapted, other.task.base, other.data.image_size) == ("", "timm", 0)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[VerdictArgs]:
    """The arguments that reach the work, which is not done."""
    seen: list[VerdictArgs] = []
    monkeypatch.setattr(command, "compare", seen.append)
    return seen


def test_the_function_and_the_recipe_resolve_to_the_same_arguments(
    compared: list[VerdictArgs], verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--base=timm", "--adapted=one,two", "--dataset=photos", "--labels=mine.csv", "--horizontal_flip"]
    monkeypatch.setattr(sys, "argv", ["verdict.py", *words])
    assert verdict.main() == 0
    monkeypatch.setattr(sys, "argv", ["notebook", "--draws=7"])
    run, labels = SimpleNamespace(path=Path("one")), Path("mine.csv")
    command.verdict(base="timm", adapted=[run, "two"], dataset="photos", labels=labels, horizontal_flip=True)
    command.verdict(base="timm", adapted="one,two", dataset=Path("photos"), labels="mine.csv", horizontal_flip=True)
    assert command.main(words) == 0
    assert compared == [compared[0]] * 4
    assert compared[0].task == VerdictConfig(base="timm", adapted="one,two", labels="mine.csv")
    assert compared[0].data == DataConfig(dataset="photos", horizontal_flip=True)


def test_the_command_in_the_report_resolves_to_the_same_arguments(tmp_path: Path) -> None:
    given = {"adapted": [tmp_path / "a b", "two"], "draws": 7, "cache_dir": tmp_path, "label_mode": "proportional"}
    for keys in (given, given | {"base": "timm", "image_size": 224}, given | {"dataset": "photos"}):
        args = command.read_args(keys)
        words = command_of(args)
        assert words[:2] == ["tpssl-hf", "verdict"] and command.read_args(words[2:]) == args
        assert words[2] == f"--adapted={tmp_path}/a b,two" or words[2] == "--base=random"


def test_a_misspelt_keyword_is_refused_with_the_nearest(compared: list[VerdictArgs]) -> None:
    with pytest.raises(InputError, match="unknown key 'adaptd'; the nearest known one is 'adapted'"):
        command.verdict(base="timm", adaptd=["outputs/mine"])
    assert not compared


def test_the_function_returns_what_it_has_found_and_again_without_computing(
    call: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(path=weights(tmp_path / "run", seed=3))
    first = call(adapted=[run])
    assert first.path == tmp_path / "verdict" and first.results == found(first.path, "results.json")
    assert first.sentence == first.results["sentence"] and first.sentence in (first.path / "verdict.md").read_text()
    assert first.results["recommendation"] == found(first.path)["recommendation"]
    monkeypatch.setattr(command, "scored_rows", None)
    assert call(adapted=run) == first
    assert "holds the verdict of these settings" in capsys.readouterr().out
