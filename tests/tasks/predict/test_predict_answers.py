"""Answers are those of transformers' pipelines and of timm, in batches and alone."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from finished_models import FILES, NAMES, PALETTE, PIXELS, lively, noise
from PIL import Image
from transformers import AutoModel, pipeline

from tpssl_hf.data.label_splits import read_labels
from tpssl_hf.data.sources import load_source
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.tasks.predict.config import EmbedConfig, PredictConfig
from tpssl_hf.tasks.predict.model import load_model
from tpssl_hf.tasks.predict.run import PredictResult, embed, predict
from tpssl_hf.tasks.predict.segment import mask_stems


def label(model: Path, dataset: Any, output: Path, **options: Any) -> PredictResult:
    config = PredictConfig(model=str(model), dataset=str(dataset), output_dir=str(output), device="cpu", **options)
    return predict(config, say=lambda _: None, progress=False)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def features(model: Path, dataset: Any, output: Path, **options: Any) -> PredictResult:
    config = EmbedConfig(model=str(model), dataset=str(dataset), output_dir=str(output), device="cpu", **options)
    return embed(config, say=lambda _: None, progress=False)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_labels_and_probabilities_are_the_pipelines(
    classifier: Path, photos: Path, tmp_path: Path, batch_size: int
) -> None:
    result = label(classifier, photos, tmp_path / "out", batch_size=batch_size, top_k=9)
    table = result.table()
    ask = pipeline("image-classification", model=str(classifier), device="cpu")
    assert table["file"] == sorted(FILES) and table["row"] == list(range(len(FILES)))
    assert len(set(table["label"])) > 1
    for row in table:
        wanted = ask(str(photos / row["file"]))
        assert row["label"] == wanted[0]["label"] == row["top_labels"][0]
        assert row["top_labels"] == [answer["label"] for answer in wanted]
        scores = [answer["score"] for answer in wanted]
        np.testing.assert_allclose(row["top_probabilities"], scores, atol=1e-4)
        assert row["confidence"] == row["top_probabilities"][0]
        assert row["margin"] == pytest.approx(scores[0] - scores[1], abs=2e-4)
        assert row["entropy"] == pytest.approx(-sum(p * np.log(p) for p in scores), abs=1e-3)
    assert (result.images, result.skipped) == (len(FILES), 0)


def test_a_vision_transformer_of_another_size_answers_as_timm_does(photos: Path, tmp_path: Path) -> None:
    network = lively(timm.create_model("test_vit", num_classes=3, img_size=64))
    folder = save_timm_folder(network, tmp_path / "model", preprocessing=Preprocessing(64), provenance={})
    table = label(folder, photos, tmp_path / "out").table()
    transform = timm.data.create_transform((3, 64, 64), interpolation="bicubic", crop_pct=1.0)
    for row in table:
        image = transform(opened(photos / row["file"]).convert("RGB"))
        with torch.no_grad():
            wanted = network(image[None])[0].softmax(0).sort(descending=True)
        np.testing.assert_allclose(row["top_probabilities"], wanted.values, atol=1e-4)
        assert row["top_labels"] == [f"LABEL_{number}" for number in wanted.indices.tolist()]


def test_the_table_for_people_can_be_given_as_labels(classifier: Path, photos: Path, tmp_path: Path) -> None:
    table = label(classifier, photos, tmp_path / "out", top_k=3).table()
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    ranks = ["label_2", "confidence_2", "label_3", "confidence_3"]
    assert list(rows[0]) == ["row", "file", "label", "confidence", "second_label", "margin", "entropy", *ranks]
    assert [row["file"] for row in rows] == table["file"] and [row["label"] for row in rows] == table["label"]
    store: Any = SimpleNamespace(rows=np.arange(len(FILES)))
    assert [row["second_label"] for row in rows] == [row["label_2"] for row in rows]
    labels = read_labels(tmp_path / "out" / "predictions.csv", store, load_source(str(photos)))
    assert [labels.class_names[number] for number in labels.labels] == table["label"]
    assert float(rows[0]["confidence_3"]) == pytest.approx(table[0]["top_probabilities"][2], abs=1e-5)


@pytest.mark.parametrize("image_size", [None, (32, 48)])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_masks_are_the_pipelines_at_the_size_of_the_images(
    make_segmenter: Callable[..., Path], photos: Path, tmp_path: Path, image_size: Any, batch_size: int
) -> None:
    folder = make_segmenter(image_size)
    table = label(folder, photos, tmp_path / "out", batch_size=batch_size, overlays=True).table()
    ask, seen = pipeline("image-segmentation", model=str(folder), device="cpu"), set()
    assert table["file"] == sorted(FILES)
    for row in table:
        file = photos / row["file"]
        mask = opened(tmp_path / "out" / row["mask"])
        values = np.asarray(mask)
        wanted = np.full(values.shape, 99)
        for answer in ask(str(file)):
            wanted[np.asarray(answer["mask"]) > 0] = PIXELS.index(answer["label"])
        assert mask.mode == "P" and mask.size == opened(file).size and mask.getpalette()[:9] == sum(PALETTE, [])
        assert np.array_equal(values, wanted)
        np.testing.assert_allclose(row["class_shares"], [(values == number).mean() for number in range(3)], atol=1e-6)
        assert 1 / 3 < row["confidence"] <= 1
        seen |= set(np.unique(values).tolist())
        assert (tmp_path / "out" / "overlays" / Path(row["file"]).with_suffix(".jpg")).is_file()
    assert len(seen) > 1


def test_masks_mirror_the_folder_and_name_their_classes(segmenter: Path, photos: Path, tmp_path: Path) -> None:
    noise(9).save(photos / "A.PNG")  # a.png and A.PNG are one file on some machines
    noise(10).save(photos / "b.webp")  # and b.jpg and b.webp would have one mask
    table = label(segmenter, photos, tmp_path / "out").table()
    masks = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out" / "masks").rglob("*.png"))
    assert masks == sorted(table["mask"]) and len(set(name.casefold() for name in masks)) == len(FILES) + 2
    assert "masks/sub/Zürich 東京.png" in masks and "masks/sub/b.png" in masks
    classes = json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8"))
    assert classes == [{"value": n, "name": PIXELS[n], "color": PALETTE[n]} for n in range(3)]
    header = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "row,file,mask,confidence,share_background,share_cat,share_dog"
    assert not (tmp_path / "out" / "overlays").exists()


def test_mask_stems_stay_in_the_folder_and_are_all_different() -> None:
    names = ["../../etc/passwd.png", "/x/y.jpg", "C:\\data\\q.jpg", "a.jpg", "a.jpg", "A.png", "a_row3.jpg", "..", "7"]
    places = mask_stems(names)
    assert places[:3] == ["etc/passwd", "x/y", "C_/data/q"]
    assert places[3:7] == ["a_row3_", "a_row4", "A_row5", "a_row3"] and places[8] == "7"
    assert len({place.casefold() for place in places}) == len(names)


@torch.inference_mode()
def test_embeddings_are_the_pooled_features(backbone: Path, classifier: Path, photos: Path, tmp_path: Path) -> None:
    table = features(backbone, photos, tmp_path / "out", batch_size=3).table().with_format("numpy")
    reference, model = AutoModel.from_pretrained(backbone).eval(), load_model(str(backbone), "cpu")
    for row in table:
        image = model.prepare(np.asarray(opened(photos / str(row["file"])).convert("RGB")))
        np.testing.assert_allclose(row["embedding"], reference(image[None]).pooler_output[0], atol=1e-4)
    assert not (tmp_path / "out" / "embeddings.csv").exists()
    of_classifier = features(classifier, photos, tmp_path / "out2").table().with_format("numpy")["embedding"][:]
    stored = timm.create_model("test_resnet", num_classes=len(NAMES))
    assert of_classifier.shape == (len(FILES), stored.get_classifier().in_features)


def test_embeddings_of_a_segmenter_have_the_width_of_its_last_map(
    segmenter: Path, photos: Path, tmp_path: Path
) -> None:
    values = features(segmenter, photos, tmp_path / "out").table().with_format("numpy")["embedding"][:]
    width = timm.create_model("test_resnet", features_only=True).feature_info.channels()[-1]
    assert values.shape == (len(FILES), width) and np.isfinite(values).all() and values.std(axis=0).max() > 0


def test_the_device_running_full_costs_speed_and_not_the_run(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpssl_hf.tasks.predict.answers import Classification

    whole, answer = label(classifier, photos, tmp_path / "whole").table(), Classification.answer

    def small(self: Any, images: Any) -> Any:
        if len(images) > 2 or "x.png" in images[0].file:
            raise torch.OutOfMemoryError("full")
        return answer(self, images)

    monkeypatch.setattr(Classification, "answer", small)
    result = label(classifier, photos, tmp_path / "out")
    assert result.skipped == 1 and "memory" in (tmp_path / "out" / "skipped.csv").read_text()
    kept = [row for row in whole if "x.png" not in row["file"]]
    assert [(r["file"], r["label"]) for r in result.table()] == [(r["file"], r["label"]) for r in kept]
