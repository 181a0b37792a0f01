"""Interrupted and odd runs; images of every origin."""

import csv
import errno
import shutil
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
from finished_models import FILES, NAMES, PREPROCESSING, lively, noise, run
from PIL import Image
from safetensors.torch import load_file, save_file

from tpssl_hf.data.folders import as_png
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig
from tpssl_hf.tasks.predict.read import ImageReader, choose_rows
from tpssl_hf.tasks.predict.run import embed, predict
from tpssl_hf.tasks.predict.write import Parts


class Killed(BaseException):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the settings, which name the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(path.suffix == ".tmp" or path.name == "run.lock" for path in files)
    own = ("config.yaml", "results.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in own}


def kill_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    write, done = Parts.write, []

    def dying(self: Any, *arguments: Any) -> None:
        if len(done) == parts:
            raise Killed
        done.append(write(self, *arguments))

    monkeypatch.setattr(Parts, "write", dying)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_killed_run_goes_on_and_its_result_is_the_same(
    kind: str, request: pytest.FixtureRequest, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(kind)
    (photos / "broken.jpg").write_bytes(b"nothing")
    run(model, photos, tmp_path / "whole")
    for number, parts in enumerate((0, 1, 3)):
        output = tmp_path / f"out{number}"
        with monkeypatch.context() as patched:
            kill_after(patched, parts)
            with pytest.raises(Killed):
                run(model, photos, output)
        assert len(list((output / "parts").glob("part_*.parquet"))) == parts
        if parts == 3:  # as a disk might leave it that lost its power
            (output / "parts" / "part_00001.parquet").write_bytes(b"PAR1")
        said: list[str] = []
        result = run(model, photos, output, said, num_workers=1, batch_size=32)
        assert contents(output) == contents(tmp_path / "whole")
        assert (result.images, result.skipped) == (len(FILES), 1)
        assert any("continuing after" in sentence for sentence in said) == (parts > 0)


def test_a_finished_run_is_not_computed_again(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(classifier, photos, tmp_path / "out")
    moved = shutil.copytree(classifier, tmp_path / "elsewhere" / "model")
    monkeypatch.setattr(ImageReader, "read", lambda *_, **__: pytest.fail("computed again"))
    again = run(moved, f"{photos}/", tmp_path / "out", said := [])
    assert again == first and again.table().to_list() == first.table().to_list()
    assert "finished already" in said[0]
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_images_or_weights_are_refused(
    finished: bool, classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = shutil.copytree(classifier, tmp_path / "model"), tmp_path / "out"
    with monkeypatch.context() as patched:
        kill_after(patched, 99 if finished else 2)
        with pytest.raises(Killed) if not finished else warnings.catch_warnings():
            run(model, photos, output)
    before = contents(output)
    with pytest.raises(InputError, match=r"begun with other settings: top_k 5 -> 2; choose another output_dir"):
        run(model, photos, output, top_k=2)
    with pytest.raises(InputError, match=r"limit_images None -> 3; save_every 2 -> 5; choose"):
        run(model, photos, output, limit_images=3, save_every=5)
    with pytest.raises(InputError, match="holds results of something else"):
        embed(EmbedConfig(str(model), str(photos), output_dir=str(output), device="cpu"), progress=False)
    tensors = load_file(model / "model.safetensors")
    save_file({key: tensor + 0.01 for key, tensor in tensors.items()}, model / "model.safetensors")
    with pytest.raises(InputError, match="begun with another model"):
        run(model, photos, output)
    noise(50).save(photos / "new.png")
    with pytest.raises(InputError, match="begun with other images"):
        run(classifier, photos, output)
    assert contents(output) == before


def test_unreadable_images_are_listed_and_skipped(classifier: Path, photos: Path, tmp_path: Path) -> None:
    whole = run(classifier, photos, tmp_path / "whole").table()
    (photos / "a0-broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    (photos / "empty.png").touch()
    Image.new("RGB", (3_000_000, 1)).save(photos / "narrow.png")
    result = run(classifier, photos, tmp_path / "out", said := [])
    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8", newline="") as text:
        skipped = {row["file"]: row["reason"] for row in csv.DictReader(text)}
    assert list(skipped) == ["a0-broken.jpg", "empty.png", "narrow.png"]
    assert skipped["empty.png"] == "empty file" and "too narrow" in skipped["narrow.png"]
    assert result.skipped == 3 and "3 could not be read" in said[-1]
    assert [(r["file"], r["label"]) for r in result.table()] == [(r["file"], r["label"]) for r in whole]


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "backbone"])
def test_a_run_ends_well_without_one_readable_image(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"no image")
    keys: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "device": "cpu", "dataset": str(tmp_path / "photos")}
    keys["model"] = str(request.getfixturevalue(kind))
    if kind == "backbone":
        result = embed(EmbedConfig(**keys), progress=False, say=lambda _: None)
    else:
        result = predict(PredictConfig(**keys), progress=False, say=lambda _: None)
    assert (result.images, result.skipped, len(result.table())) == (0, 3, 0)


@pytest.mark.parametrize("form", ["parquet", "saved", "paths"])
def test_tables_and_saved_data_sets(form: str, classifier: Path, segmenter: Path, tmp_path: Path) -> None:
    pixels = [np.asarray(noise(number)) for number in range(6)]
    names = ["x/same.png", "x/same.png", None, "/home/somebody/q.png", "../up.png", "ünï.png"]
    cells: list[Any] = [{"bytes": as_png(p), "path": name} for p, name in zip(pixels, names, strict=True)]
    expected = ["x/same.png", "x/same.png", "2", "q.png", "../up.png", "ünï.png"]
    if form == "paths":
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
        cells, expected = [str(tmp_path / f"{n}.png") for n in range(6)], [f"{n}.png" for n in range(6)]
    kind = datasets.Value("string") if form == "paths" else datasets.Image()
    made = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=kind))
    folder: Any = tmp_path / "data"
    if form in ("parquet", "paths"):
        folder.mkdir()
        made.to_parquet(folder / "train.parquet")
    elif form == "saved":
        made.save_to_disk(folder)
        expected = [Path(name).name for name in expected]  # what is left of them there
    table = run(classifier, folder, tmp_path / "out", save_every=4, top_k=2).table()
    assert table["file"] == expected and table["row"] == list(range(len(expected)))
    masks = run(segmenter, folder, tmp_path / "masks").table()["mask"]
    assert len({*masks}) == 6 and all((tmp_path / "masks" / mask).resolve().is_file() for mask in masks)
    assert all((tmp_path / "masks" / mask).resolve().is_relative_to(tmp_path / "masks") for mask in masks)


def test_a_limit_takes_the_same_subset_every_time() -> None:
    rows = choose_rows(300, 20, "photos")
    assert np.array_equal(rows, choose_rows(300, 20, "photos")) and len(rows) == 20
    assert np.array_equal(rows, np.unique(rows)) and rows[-1] > 100
    assert len(choose_rows(300, 999, "photos")) == len(choose_rows(300, None, "photos")) == 300


def test_an_embedded_data_set_is_named_by_its_rows(classifier: Path, tmp_path: Path) -> None:
    table = run(classifier, "digits", tmp_path / "out", split="test", limit_images=5).table()
    assert table["row"][:] == choose_rows(300, 5, "digits").tolist()
    assert table["file"] == [str(row) for row in table["row"]]


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_later(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", full)
        with pytest.raises(InputError, match="No room for more results .*; free some and start again"):
            run(classifier, photos, tmp_path / "out")
    assert run(classifier, photos, tmp_path / "out").images == len(FILES)


def test_two_runs_do_not_share_a_folder(classifier: Path, photos: Path, tmp_path: Path) -> None:
    from tpssl_hf.training.run_dir import RunDir

    with RunDir(tmp_path / "out", {}), pytest.raises(InputError, match="Another run is using"):
        run(classifier, photos, tmp_path / "out")


def test_a_classifier_with_more_classes_than_names_it_asks_for(photos: Path, tmp_path: Path) -> None:
    network = lively(timm.create_model("test_resnet", num_classes=2))
    names = NAMES[:2]
    folder = save_timm_folder(network, tmp_path / "m", preprocessing=PREPROCESSING, provenance={}, label_names=names)
    table = run(folder, photos, tmp_path / "out", top_k=1).table()
    assert all(row["top_labels"] == [row["label"]] and row["margin"] > 0 for row in table)


def test_memory_ahead_is_bounded_and_the_order_kept(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tpssl_hf.tasks.predict.read.BYTES_AHEAD", 1)
    import torch

    reader = ImageReader(EmbedConfig("m", str(photos), num_workers=3))
    images = reader.read(reader.rows, lambda pixels: torch.from_numpy(pixels), ahead=50)
    assert [image.row for image in images] == list(range(len(FILES)))
    abandoned = reader.read(reader.rows, lambda pixels: torch.from_numpy(pixels), ahead=50)
    next(abandoned)
    abandoned.close()  # and no thread waits for ever
