"""Exports, read again by what others read them with, or by hand as their formats say."""

import json
import shutil
from collections import defaultdict
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
from finished_models import FILES, NAMES, PIXELS, noise, run
from PIL import Image

from tpssl_hf.data.folders import as_png
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.tasks.predict.exports.imagefolder import class_folders
from tpssl_hf.tasks.predict.exports.label_studio import packed
from tpssl_hf.tasks.predict.exports.predicted import bounding_box, run_lengths
from tpssl_hf.tasks.predict.read import ImageReader

ALL = "imagefolder,coco,label_studio,cvat"


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def exported(classifier: Path, photos: Path, tmp_path: Path) -> tuple[list[dict[str, Any]], Path]:
    table = run(classifier, photos, tmp_path / "out", export=ALL).table()
    assert table["width"] == [opened(photos / file).shape[1] for file in table["file"]]
    return table.to_list(), tmp_path / "out" / "exports"


def test_an_imagefolder_is_read_as_labeled_images(exported: Any, photos: Path) -> None:
    table, folder = exported
    wanted = {(photos / row["file"]).read_bytes(): row["label"] for row in table}
    found = {path.read_bytes(): path.parent.name for path in (folder / "imagefolder").glob("*/*")}
    assert found == wanted and len(found) == len(FILES)
    read = load_source(str(folder / "imagefolder"), label_column="folder")
    assert read.class_names == tuple(sorted({row["label"] for row in table}))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder / "imagefolder"), split="train")
    names = loaded.features["label"].names
    assert sorted(names[number] for number in loaded["label"]) == sorted(wanted.values())


def test_an_imagefolder_holds_copies_where_nothing_may_be_linked(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr("tpssl_hf.tasks.predict.exports.imagefolder.os.symlink", refused)
    run(classifier, photos, tmp_path / "out", export="imagefolder")
    files = list((tmp_path / "out" / "exports" / "imagefolder").glob("*/*"))
    assert not any(file.is_symlink() for file in files)
    assert {file.read_bytes() for file in files} == {(photos / file).read_bytes() for file in FILES}


def test_an_imagefolder_of_a_table_holds_the_images_themselves(classifier: Path, tmp_path: Path) -> None:
    pixels = [np.asarray(noise(number)) for number in range(4)]
    cells = [
        {"bytes": as_png(p), "path": name} for p, name in zip(pixels, ["x.png", "x.png", None, None], strict=True)
    ]
    (tmp_path / "data").mkdir()
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    run(classifier, tmp_path / "data", tmp_path / "out", export="imagefolder")
    files = sorted((tmp_path / "out" / "exports" / "imagefolder").glob("*/*"), key=lambda path: path.name)
    assert [path.name for path in files] == ["2.png", "3.png", "x_row0.png", "x_row1.png"]
    assert all(np.array_equal(opened(f), pixels[k]) for f, k in zip(files, (2, 3, 0, 1), strict=True))


def test_class_names_become_different_folders() -> None:
    names = ("a/b", "a:b", "ok", "OK", "", "..")
    folders = class_folders(names)
    assert len({folder.casefold() for folder in folders}) == len(names) and class_folders(("cat", "dog")) == [
        "cat",
        "dog",
    ]
    assert not any(folder in ("", ".", "..") or set(folder) & set("/:\\") for folder in folders)


def test_coco_has_a_class_for_each_image(exported: Any) -> None:
    table, folder = exported
    found = json.loads((folder / "coco" / "annotations.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert list(names.values()) == NAMES and min(names) == 1
    images = {image["id"]: image for image in found["images"]}
    assert [(i["file_name"], i["width"], i["height"]) for i in images.values()] == [
        (row["file"], row["width"], row["height"]) for row in table
    ]
    answers = {images[a["image_id"]]["file_name"]: (names[a["category_id"]], a["score"]) for a in found["annotations"]}
    assert answers == {row["file"]: (row["label"], pytest.approx(row["confidence"])) for row in table}


def test_label_studio_takes_the_tasks_in_its_configuration(exported: Any) -> None:
    table, folder = exported
    tasks = json.loads((folder / "label_studio" / "tasks.json").read_text(encoding="utf-8"))
    config = ElementTree.parse(folder / "label_studio" / "label_config.xml").getroot()
    control = config.find("Choices")
    assert control is not None and [choice.get("value") for choice in control] == NAMES
    image = config.find("Image")
    assert image is not None and image.get("value") == "$image" and control.get("toName") == image.get("name")
    for row, task in zip(table, tasks, strict=True):
        assert unquote(task["data"]["image"]) == f"/data/local-files/?d={row['file']}"
        (prediction,) = task["predictions"]
        (result,) = prediction["result"]
        assert result["value"] == {"choices": [row["label"]]} and result["type"] == "choices"
        assert (result["from_name"], result["to_name"]) == (control.get("name"), image.get("name"))
        assert prediction["score"] == pytest.approx(row["confidence"]) and prediction["model_version"]


def test_cvat_has_a_tag_for_each_image(exported: Any) -> None:
    table, folder = exported
    root = ElementTree.parse(folder / "cvat" / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == NAMES
    for row, image in zip(table, root.findall("image"), strict=True):
        assert (image.get("name"), image.get("width"), image.get("height")) == (
            row["file"],
            str(row["width"]),
            str(row["height"]),
        )
        assert [tag.get("label") for tag in image.findall("tag")] == [row["label"]]


def painted(lengths: list[int], size: int) -> np.ndarray:
    """Decode run lengths."""
    values = [np.full(length, flag) for length, flag in zip(lengths, cycle((False, True)), strict=False)]
    flat = np.concatenate(values)
    assert len(flat) == size
    return flat


def unpacked(rle: list[int]) -> np.ndarray:
    """Decode what Label Studio's brush has painted, as rle-pack of thi.ng/umbrella is described."""
    bits, place = "".join(f"{byte:08b}" for byte in rle), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, width = read(32), read(5) + 1
    lengths, values = [read(4) + 1 for _ in range(4)], list[int]()
    while len(values) < count:
        same = read(1)
        length = read(lengths[read(2)]) + 1
        values += [read(width)] * length if same else [read(width) for _ in range(length)]
    assert len(values) == count and len(bits) - place < 8
    return np.array(values)


def test_what_is_painted_is_packed_whatever_its_size() -> None:
    random = np.random.default_rng(0)
    for mask in (
        random.random((3, 5)) < 0.5,
        np.ones((300, 200), bool),
        np.zeros((1, 1), bool),
        random.random((9, 400)) < 0.01,
    ):
        found = unpacked(packed(mask)).reshape(*mask.shape, 4)
        assert np.array_equal(found, np.repeat(255 * mask[..., None], 4, axis=2))


def test_masks_come_back_from_coco_cvat_and_label_studio(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    table = run(segmenter, photos, tmp_path / "out", export="coco,cvat,label_studio").table().to_list()
    folder, from_coco, from_cvat = tmp_path / "out" / "exports", defaultdict(dict), {}
    for found in json.loads((folder / "coco" / "annotations.json").read_text(encoding="utf-8"))["annotations"]:
        height, width = found["segmentation"]["size"]
        mask = painted(found["segmentation"]["counts"], height * width).reshape((height, width), order="F")
        assert found["area"] == mask.sum() and found["bbox"] == list(bounding_box(mask)) and found["iscrowd"] == 1
        from_coco[found["image_id"]][found["category_id"] - 1] = mask
    for image in ElementTree.parse(folder / "cvat" / "annotations.xml").getroot().findall("image"):
        whole = np.full((int(str(image.get("height"))), int(str(image.get("width")))), 255)
        for found_mask in image.findall("mask"):
            left, top, width, height = (int(str(found_mask.get(n))) for n in ("left", "top", "width", "height"))
            lengths = [int(text) for text in str(found_mask.get("rle")).split(",")]
            box = painted(lengths, width * height).reshape(height, width)
            whole[top : top + height, left : left + width][box] = PIXELS.index(str(found_mask.get("label")))
        from_cvat[image.get("name")] = whole
    config = ElementTree.parse(folder / "label_studio" / "label_config.xml").getroot()
    assert [label.get("value") for label in config.findall("BrushLabels/Label")] == PIXELS
    from_studio = {}
    for task in json.loads((folder / "label_studio" / "tasks.json").read_text(encoding="utf-8")):
        for result in task["predictions"][0]["result"]:
            height, width = result["original_height"], result["original_width"]
            whole = from_studio.setdefault(task["data"]["file"], np.full((height, width), 255))
            painted_on = unpacked(result["value"]["rle"]).reshape(height, width, 4)[..., 3] > 0
            whole[painted_on] = PIXELS.index(result["value"]["brushlabels"][0])
    assert len(table) == len(FILES)
    for row in table:
        assert np.array_equal(from_studio[row["file"]], opened(tmp_path / "out" / row["mask"]))
        mask = opened(tmp_path / "out" / row["mask"])
        assert mask.shape == (row["height"], row["width"]) and np.array_equal(from_cvat[row["file"]], mask)
        assert {*from_coco[row["row"]]} == {*np.unique(mask)}
        assert all(np.array_equal(mask == number, own) for number, own in from_coco[row["row"]].items())


@pytest.mark.parametrize(("flags", "lengths"), [("0011", [2, 2]), ("1101", [0, 2, 1, 1]), ("1", [0, 1]), ("0", [1])])
def test_run_lengths(flags: str, lengths: list[int]) -> None:
    assert run_lengths(np.array([flag == "1" for flag in flags])) == lengths


@pytest.mark.parametrize("promised", [True, False])
def test_what_is_accepted_goes_to_data_sets_and_the_rest_to_people(
    promised: bool, classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = sorted(run(classifier, photos, tmp_path / "before").table()["confidence"])
    confidences = np.linspace(1, (sure[3] + sure[4]) / 2, 200).tolist() + [0.0] * 200
    found = Calibration(None, "made up", "labels", 0.1, None, confidences, [int(promised)] * 200 + [0] * 200)
    (shutil.copytree(classifier, tmp_path / "model") / "calibration.json").write_text(json.dumps(asdict(found)))
    run(tmp_path / "model", photos, tmp_path / "out")
    monkeypatch.setattr(ImageReader, "read", lambda *_, **__: pytest.fail("computed again"))
    for _ in range(2):  # the second time takes the place of the first
        run(tmp_path / "model", photos, tmp_path / "out", accept=0.9, export=ALL)
    folder = tmp_path / "out" / "exports"
    accepted = [path.name for path in (folder / "imagefolder").glob("*/*")]
    in_coco = json.loads((folder / "coco" / "annotations.json").read_text(encoding="utf-8"))["images"]
    tasks = json.loads((folder / "label_studio" / "tasks.json").read_text(encoding="utf-8"))
    images = ElementTree.parse(folder / "cvat" / "annotations.xml").getroot().findall("image")
    expected = (3, 4) if promised else (0, 7)
    assert (len(accepted), len(tasks)) == expected == (len(in_coco), len(images))
    files = [task["data"]["file"] for task in tasks] + [image["file_name"] for image in in_coco]
    assert sorted(files) == sorted(FILES)


def test_formats_that_are_not_there_or_hold_no_masks_are_refused(
    classifier: Path, segmenter: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="export 'yolo' is not one of imagefolder, coco, label_studio, cvat"):
        run(classifier, photos, tmp_path / "out", export="coco,yolo")
    with pytest.raises(InputError, match="export imagefolder holds no masks; give coco, label_studio or cvat"):
        run(segmenter, photos, tmp_path / "out", export="imagefolder")
