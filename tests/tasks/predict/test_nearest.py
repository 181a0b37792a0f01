"""The labeled image nearest to each prediction, where a model knows its labeled images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from finished_models import FILES, NAMES, noise, run

from tpssl_hf.data.sources import load_source
from tpssl_hf.tasks.predict import nearest
from tpssl_hf.tasks.predict.config import EmbedConfig
from tpssl_hf.tasks.predict.run import embed
from tpssl_hf.tasks.predict.write import Parts

COLUMNS = ["nearest_file", "nearest_label", "nearest_similarity"]


@pytest.fixture
def finished_run(classifier: Path, tmp_path: Path) -> Path:
    """The folder of a run: a model, three labeled images, one of which cannot be read, and where they are."""
    for number in range(4):
        (tmp_path / "labeled").mkdir(exist_ok=True)
        noise(number + 2).save(tmp_path / "labeled" / f"{number}.png")
    (tmp_path / "labeled" / "2.png").write_bytes(b"broken")
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder / "model")
    (folder / "results.json").write_text("{}")
    keys = {"dataset": str(tmp_path / "labeled"), "split": "train", "dataset_config": None, "image_column": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(keys | {"task": "classify"}))
    labels = [{"row": 3, "label": 1}, {"row": 0, "label": 3}, {"row": 2, "label": 2}]
    content = {"class_names": NAMES, "labels": labels, "fingerprint": load_source(keys["dataset"]).fingerprint or ""}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def test_the_nearest_is_that_of_the_features(finished_run: Path, photos: Path, tmp_path: Path) -> None:
    table = run(finished_run, photos, tmp_path / "out", said := []).table()
    assert not said[0].startswith("no column")
    labeled, asked = (
        embed(EmbedConfig(str(finished_run), str(images), output_dir=str(tmp_path / name), device="cpu")).table()
        for name, images in (("of_labeled", tmp_path / "labeled"), ("of_photos", photos))
    )
    known = {row["file"]: np.array(row["embedding"]) for row in labeled if row["file"] in ("0.png", "3.png")}
    for row, own in zip(table, asked["embedding"], strict=True):
        cosines = {n: v @ np.array(own) / np.linalg.norm(v) / np.linalg.norm(own) for n, v in known.items()}
        name = max(cosines, key=lambda name: cosines[name])
        assert row["nearest_file"] == name and row["nearest_label"] == {"0.png": "owl", "3.png": "dog"}[name]
        assert row["nearest_similarity"] == pytest.approx(cosines[name], abs=1e-5)
    same = {row["file"]: row for row in table}["sub/Zürich 東京.jpg"]  # noise(2), as 0.png is
    assert same["nearest_file"] == "0.png" and len(set(table["nearest_file"])) == 2
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as text:
        assert [row["nearest_file"] for row in csv.DictReader(text)] == table["nearest_file"]


def test_answers_are_the_same_beside_it(finished_run: Path, classifier: Path, photos: Path, tmp_path: Path) -> None:
    table = run(finished_run, photos, tmp_path / "out").table()
    alone = run(classifier, photos, tmp_path / "alone", said := []).table()
    assert alone.column_names == [name for name in table.column_names if name not in COLUMNS]
    assert table.remove_columns(COLUMNS).to_list() == alone.to_list() and len(alone) == len(FILES)
    assert said[0] == "no column of the nearest labeled image: there is no labels.json of its run beside it"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("moved", "cannot be opened"),
        ("more", "no longer those"),
        ("torn", "cannot be read"),
        ("empty", "lacks"),
        ("many", "at most"),
    ],
)
def test_without_the_labeled_images_the_column_is_left_out(
    change: str, reason: str, finished_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "many":
        monkeypatch.setattr(nearest, "MOST_IMAGES", 2)
    elif change == "moved":
        shutil.move(tmp_path / "labeled", tmp_path / "elsewhere")
    elif change == "more":
        noise(9).save(tmp_path / "labeled" / "9.png")
    else:
        (finished_run / "labels.json").write_text("{}" if change == "empty" else "{")
    table = run(finished_run, photos, tmp_path / "out", said := []).table()
    assert not {*COLUMNS} & {*table.column_names} and said[0].startswith("no column of the nearest labeled image: ")
    assert reason in said[0]


def test_a_finished_folder_keeps_the_column_and_an_unfinished_one_is_of_one_kind(
    finished_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(finished_run, photos, tmp_path / "out")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Parts, "join", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        run(finished_run, photos, tmp_path / "killed")
    shutil.rmtree(tmp_path / "labeled")
    assert {*COLUMNS} < {*run(finished_run, photos, tmp_path / "out").table().column_names}
    anew = run(finished_run, photos, tmp_path / "killed").table()
    assert not {*COLUMNS} & {*anew.column_names} and len(anew) == len(FILES)
