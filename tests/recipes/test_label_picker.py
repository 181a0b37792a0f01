"""The recipe that chooses which images to label, run in this process on a tiny backbone."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import nn

import tpssl_hf
from tpssl_hf.commands import pick_labels as command
from tpssl_hf.config.digits import DIGITS_RUN
from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.label_splits import choose_labels
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

ROOT = Path(__file__).parents[2]
Pick = Callable[..., int]


@pytest.fixture(scope="session")
def picker(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/label_picker.py as a module."""
    return load_recipe("label_picker")


@pytest.fixture
def pick(run_recipe: Any, picker: Any, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pick:
    """Run the recipe in this process with these settings; a setting of None is left out."""
    monkeypatch.chdir(tmp_path)
    tiny: dict[str, Any] = {"dataset": "digits", "backbone": "test_resnet", "image_size": 32, "limit_images": 120}
    tiny |= {"count": 8, "cache_dir": shared_cache, "output_dir": tmp_path / "list"}
    return lambda **settings: run_recipe(picker, tiny | settings)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fill_in(path: Path, label_of: Callable[[dict[str, str]], str]) -> None:
    """Fill in the labels of to_label.csv that are empty, as a person would."""
    rows = rows_of(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "label": row["label"] or label_of(row)} for row in rows)


def images(folder: Path, count: int = 20) -> Path:
    """Make a folder of cats and dogs, in two sub-folders with the same file names, dogs brighter."""
    for number in range(count):
        path = folder / ("dog" if number % 2 else "cat") / f"{number // 2:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 90, (20, 24, 3)) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.mark.parametrize("strategy", ["typical", "coverage", "random"])
def test_a_list_and_a_contact_sheet_are_left(strategy: str, pick: Pick, tmp_path: Path) -> None:
    assert pick(strategy=strategy) == 0
    rows = rows_of(tmp_path / "list" / "to_label.csv")
    assert list(rows[0]) == ["number", "row", "digest", "label"]
    assert [row["number"] for row in rows] == list("12345678")
    assert all(row["label"] == "" for row in rows) and len({row["row"] for row in rows}) == 8
    content = json.loads((tmp_path / "list" / "to_label.json").read_text())
    assert [str(entry["row"]) for entry in content["labels"]] == [row["row"] for row in rows]
    assert all(entry["label"] is None for entry in content["labels"])
    results = json.loads((tmp_path / "list" / "results.json").read_text())
    assert [str(row) for row in results["rows"]] == [row["row"] for row in rows]
    with Image.open(tmp_path / "list" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 400


def test_labels_of_the_data_set_are_not_looked_at(pick: Pick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick() == 0
    original = command.open_split

    def without_labels(*given: Any) -> Any:
        source, store = original(*given)
        store.labels = None
        return source, store

    monkeypatch.setattr(command, "open_split", without_labels)
    assert pick(output_dir=tmp_path / "blind") == 0
    lists = [(tmp_path / name / "to_label.csv").read_text() for name in ("list", "blind")]
    assert lists[0] == lists[1]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_list_with_labels_filled_in_is_what_finetuning_takes(suffix: str, pick: Pick, tmp_path: Path) -> None:
    folder = images(tmp_path / "pets")
    assert pick(dataset=folder, count=6, limit_images=None) == 0
    path = tmp_path / "list" / f"to_label.{suffix}"
    if suffix == "csv":
        assert set(rows_of(path)[0]) == {"number", "file", "label"}
        fill_in(path, lambda row: row["file"].split("/")[0])
    else:
        content = json.loads(path.read_text())
        for entry in content["labels"]:
            entry["label"] = entry["file"].split("/")[0]
        path.write_text(json.dumps(content))
    source = load_source(str(folder))
    store, _ = load_image_cache(
        source,
        image_size=32,
        cache_budget=1 << 30,
        num_workers=1,
        progress=False,
        cache_dir=tmp_path / "cache",
    )
    labeled = choose_labels(str(path), store, source)
    assert len(labeled.indices) == 6 and labeled.class_names == ("cat", "dog")
    names = [Path(str(source.dataset[row][source.image_column]["path"])).parent.name for row in labeled.indices]
    assert names == [labeled.class_names[label] for label in labeled.labels]


def test_the_next_list_holds_the_labels_there_are_and_none_of_their_images_again(pick: Pick, tmp_path: Path) -> None:
    folder = images(tmp_path / "pets")
    assert pick(dataset=folder, count=4, limit_images=None) == 0
    first = tmp_path / "list" / "to_label.csv"
    fill_in(first, lambda row: row["file"].split("/")[0])
    settings = {"dataset": folder, "limit_images": None, "labeled": first}
    assert pick(count=5, output_dir=tmp_path / "next", **settings) == 0
    rows = rows_of(tmp_path / "next" / "to_label.csv")
    assert [row["label"] == "" for row in rows] == [True] * 5 + [False] * 4
    assert len({row["file"] for row in rows}) == 9
    assert {row["file"]: row["label"] for row in rows[5:]} == {r["file"]: r["label"] for r in rows_of(first)}
    assert json.loads((tmp_path / "next" / "results.json").read_text())["labeled_before"] == 4


def test_labels_that_leave_classes_out_are_a_start_too(pick: Pick, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("row,label\n3,1\n5,\n")
    assert pick(labeled=tmp_path / "few.csv", limit_images=None) == 0
    assert json.loads((tmp_path / "list" / "results.json").read_text())["labeled_before"] == 1


def test_a_list_that_was_made_is_never_written_again(
    pick: Pick, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pick(strategy="random") == 0
    fill_in(tmp_path / "list" / "to_label.csv", lambda row: "7")
    mine = (tmp_path / "list" / "to_label.csv").read_text()
    assert pick(strategy="random") == 0
    assert "is left as it is" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a run with another config"):
        pick(strategy="random", count=9)
    assert (tmp_path / "list" / "to_label.csv").read_text() == mine


def test_without_a_data_set_the_digits_and_their_adapted_weights_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "starter", dict)
    args = command.read_args([])
    assert (args.task.init, args.data.image_size) == ("random", 32)
    monkeypatch.setattr(command, "starter", lambda: {"backbone": "test_resnet", "init": "timm"})
    args = command.read_args([])
    assert (args.task.init, args.task.backbone, args.data.image_size) == ("timm", "test_resnet", 64)
    (tmp_path / DIGITS_RUN / "model").mkdir(parents=True)
    (tmp_path / DIGITS_RUN / "config.yaml").write_text("image_size: 24\n")
    args = command.read_args([])
    assert (args.task.init, args.data.image_size) == (str(DIGITS_RUN), 24)
    assert command.read_args(["--dataset", "cifar10"]).data.image_size == 224
    assert command.read_args(["--init", "random"]).data.image_size == 224, "weights that are named have their own size"


def classifier(folder: Path, size: int = 32) -> Path:
    """Leave what a finetuning of ten digits leaves, with random weights."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=10)
    nn.init.normal_(network.get_classifier().weight)
    how = Preprocessing(image_size=size)
    facts = {"recipe": "ssl_classify", "init": {"kind": "random", "name": "test_resnet"}}
    save_timm_folder(network, folder / "model", preprocessing=how, provenance=facts, label_names=list("0123456789"))
    keys = {"init": "outputs/adapted/model", "backbone": "test_resnet"}
    (folder / "results.json").write_text(json.dumps({"config": keys}))
    return folder


def labels_file(path: Path, count: int) -> Path:
    path.write_text("row,label\n" + "".join(f"{row},{row % 10}\n" for row in range(count)))
    return path


def test_a_finished_classifier_asks_for_images_it_doubts_once_there_are_four_labels_a_class(
    pick: Pick, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"init": classifier(tmp_path / "classifier"), "limit_images": None, "image_size": None}
    for count, strategy in ((39, "typical"), (40, "doubtful")):
        labels = labels_file(tmp_path / f"{count}.csv", count)
        assert pick(labeled=labels, output_dir=tmp_path / strategy, **settings) == 0
        results = json.loads((tmp_path / strategy / "results.json").read_text())
        assert results["strategy"] == strategy and not set(results["rows"]) & set(range(count))
    assert "--init outputs/adapted/model" in capsys.readouterr().out, "the next finetuning begins where this one did"

    pipeline = transformers.pipeline("image-classification", model=str(tmp_path / "classifier" / "model"), top_k=2)
    images = load_source("digits").dataset["image"]
    doubt = {}
    for row in {*range(40, 70), *results["rows"]}:
        first, second = pipeline(Image.open(io.BytesIO(images[row]["bytes"])).convert("RGB"))
        doubt[row] = second["score"] / first["score"]
    assert min(doubt[row] for row in results["rows"]) > np.median(list(doubt.values()))


def test_the_function_returns_the_list_of_the_command(pick: Pick, tmp_path: Path, shared_cache: Path) -> None:
    assert pick() == 0
    keys = {"dataset": "digits", "backbone": "test_resnet", "image_size": 32, "limit_images": 120, "count": 8}
    path = tpssl_hf.pick_labels(**keys, cache_dir=shared_cache, output_dir=tmp_path / "function")
    assert path.read_text() == (tmp_path / "list" / "to_label.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"count": 121}, "count 121: give a number from 1 to 120"),
        ({"count": 0}, "count 0: give a number from 1"),
        ({"labeled": "nothing.csv"}, "labels file nothing.csv cannot be read"),
        ({"init": "nowhere/at/all"}, "init 'nowhere/at/all' is not"),
        ({"strategy": "best"}, "strategy"),
        ({"strategy": "doubtful"}, "takes the doubts of a classifier: give --init the folder of a finished"),
        ({"dataset": "nowhere"}, "'nowhere' is not an existing folder"),
        ({"streaming": True}, "leave streaming off"),
    ],
)
def test_bad_input_is_one_sentence(settings: dict[str, Any], sentence: str, pick: Pick, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        pick(**settings)
    assert not (tmp_path / "list" / "to_label.csv").exists()
