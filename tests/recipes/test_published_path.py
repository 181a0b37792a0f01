"""A finished model is asked the way a stranger would ask it, and what differs from the score is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from tpssl_hf.tasks.classify import report as classified
from tpssl_hf.tasks.classify import run as finetuning
from tpssl_hf.tasks.segment import report as segmented
from tpssl_hf.tasks.segment import run as segmenting

CLASSES = ("dark", "light")
SHAPES = [(96, 120), (33, 50), (150, 61), (60, 301)]
EXIF_ORIENTATION = 274
Save = Callable[[int, np.ndarray, Path], None]


def eight_bits(number: int, gray: np.ndarray, path: Path) -> None:
    """Save (H, W) uint8 values as one of the kinds of files that every reader sees alike."""
    kinds: list[Callable[[], None]] = [
        lambda: Image.fromarray(gray).save(path),
        lambda: Image.fromarray(gray).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(path),
        lambda: Image.fromarray(np.dstack([gray] * 3 + [np.full_like(gray, 255)])).save(path),
        lambda: Image.fromarray(gray).save(path.with_suffix(".jpg"), quality=95),
        lambda: Image.fromarray(gray).convert("1", dither=Image.Dither.NONE).save(path),
    ]
    if number % 6 == 5:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        Image.fromarray(gray).convert("RGB").save(path.with_suffix(".jpg"), exif=exif)
    else:
        kinds[number % 6]()


def sixteen_bits(number: int, gray: np.ndarray, path: Path) -> None:
    Image.fromarray(gray.astype(np.uint16) * 257).save(path)


def transparent(number: int, gray: np.ndarray, path: Path) -> None:
    """Hide dark color under what is transparent in light images: no viewer shows it, ``convert("RGB")`` does."""
    pixels = np.dstack([gray] * 3 + [np.full_like(gray, 255)])
    if gray.mean() > 128:
        pixels[2:-2, 2:-2] = (30, 30, 30, 0)
    Image.fromarray(pixels).save(path)


def folders(place: Path, save: Save, sizes: list[tuple[int, int]]) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 12)):
        for name, level in zip(CLASSES, (40, 215), strict=True):
            folder = place / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                size = sizes[number % len(sizes)]
                gray = np.clip(level + random.normal(0, 12, size), 0, 255).astype(np.uint8)
                gray = np.where(random.random(size) < 0.05, 255 - gray, gray)  # no two alike in black and white
                save(number, gray, folder / f"{number:02d}.png")
    return place


@pytest.fixture
def images_asked_about() -> None:
    """As many as people's runs ask about."""


@pytest.fixture
def learn(
    run_recipe: Any, load_recipe: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Finetune a tiny network until it tells two classes apart; returns results.json."""
    recipe = load_recipe("ssl_classify")
    for module, name in ((finetuning, "draw_views"), (classified, "draw_curves"), (classified, "draw_pseudo_labels")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    tiny = {"method": "supervised", "labels": "all", "label_column": "folder", "backbone": "test_resnet"}
    tiny |= {"image_size": 32, "batch_size": 16, "max_steps": 40, "learning_rate": 0.02, "precision": "fp32"}
    tiny |= {"select": "last", "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "run"}

    def run(**settings: Any) -> dict[str, Any]:
        assert run_recipe(recipe, tiny | settings) == 0
        found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
        return found

    return run


def accuracy_of_the_pipeline(model: Path, test: Path) -> float:
    ask = pipeline("image-classification", model=str(model), device="cpu")
    files = sorted(path for path in test.rglob("*") if path.is_file())
    return float(np.mean([ask(str(path), top_k=1)[0]["label"] == path.parent.name for path in files]))


def test_what_every_reader_sees_alike_has_the_claimed_accuracy_and_no_warning(
    learn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folders(tmp_path / "data", eight_bits, [(20, 24), (33, 70), (64, 48), (90, 300)])
    found = learn(dataset=data)
    claimed, checked = found["metrics"]["accuracy"], found["published_path"]
    assert claimed > 0.9
    assert accuracy_of_the_pipeline(tmp_path / "run" / "model", data / "test") == claimed
    assert checked["warning"] is None and checked["images"] == 24 and checked["of"] == "test"
    assert [path["path"] for path in checked["paths"]] == ["transformers' pipeline", "timm"]
    assert all(path["equal"] == 1 and path["greatest_difference"] < 0.05 for path in checked["paths"])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("save", [sixteen_bits, transparent])
def test_what_readers_see_differently_ends_in_a_warning_that_says_how_to_read_it(
    save: Save, learn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folders(tmp_path / "data", save, [(24, 24)])
    found = learn(dataset=data)
    assert found["metrics"]["accuracy"] - accuracy_of_the_pipeline(tmp_path / "run" / "model", data / "test") > 0.3
    warning = found["published_path"]["warning"]
    assert warning.startswith("transformers' pipeline and timm: 12 of 24 images answered otherwise than in the eval")
    assert warning.endswith("; read as in training, by tpssl_hf.data.scan.decode_image, they agree")
    assert f"warning       {warning}" in capsys.readouterr().out


def test_without_test_images_others_are_asked_about(learn: Any, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", sixteen_bits, [(24, 24)])
    found = learn(dataset=data, test_split="none", max_steps=20)
    assert found["published_path"]["of"] == "training" and found["published_path"]["warning"]


def test_a_wrong_normalization_in_the_saved_folder_is_noticed(
    learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = classified.check_classifier

    def spoiled(folder: Path, *rest: Any, **more: Any) -> dict[str, Any]:
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"]["mean"] = [2.0, 2.0, 2.0]
        (folder / "config.json").write_text(json.dumps(config))
        return real(folder, *rest, **more)

    monkeypatch.setattr(classified, "check_classifier", spoiled)
    found = learn(dataset=folders(tmp_path / "data", eight_bits, [(24, 24)]))
    assert found["published_path"]["warning"].endswith(", also if they are read as in training")


def test_a_folder_that_does_not_load_is_a_warning_and_not_the_end_of_the_run(
    learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = classified.check_classifier

    def spoiled(folder: Path, *rest: Any, **more: Any) -> dict[str, Any]:
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"test_resnet"', '"test_nothing"'))
        return real(folder, *rest, **more)

    monkeypatch.setattr(classified, "check_classifier", spoiled)
    found = learn(dataset=folders(tmp_path / "data", eight_bits, [(24, 24)]), max_steps=2)
    assert "transformers' pipeline: cannot use the folder (" in found["published_path"]["warning"]


def scenes(place: Path, sizes: list[tuple[int, int]]) -> Path:
    """Stripes of two periods on gray: shrinking changes what they look like."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("images", "masks"):
            (place / split / name).mkdir(parents=True)
        for number in range(4):
            height, width = sizes[number % len(sizes)]
            columns = np.mgrid[:height, :width][1]
            gray, mask = np.full((height, width), 128.0), np.zeros((height, width), dtype=np.uint8)
            mask[: height // 2, : width // 2], mask[height // 2 :, width // 3 :] = 1, 2
            for label, period in ((1, 8), (2, 40)):
                gray[mask == label] = (40 + 180 * (columns // (period // 2) % 2))[mask == label]
            pixels = np.clip(gray[..., None] + random.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(place / split / "masks" / f"{number}.png")
    (place / "classes.txt").write_text("ground\nfine\ncoarse\n")
    return place


@pytest.fixture
def learn_masks(
    run_recipe: Any, load_recipe: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Finetune a tiny segmenter a little; returns results.json."""
    recipe = load_recipe("ssl_segment")
    for module, name in ((segmenting, "draw_views"), (segmented, "draw_curves"), (segmented, "draw_predictions")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    tiny = {"method": "supervised", "labels": "all", "backbone": "test_resnet", "crop_height": 32, "crop_width": 48}
    tiny |= {"batch_size": 2, "decoder_width": 16, "max_steps": 40, "learning_rate": 0.003, "precision": "fp32"}
    tiny |= {"shorter_side": 40, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "run"}

    def run(**settings: Any) -> dict[str, Any]:
        assert run_recipe(recipe, tiny | settings) == 0
        found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
        return found

    return run


@pytest.mark.parametrize("mode", ["whole", "resize", "slide"])
def test_a_segmenter_answers_as_it_was_scored_in_every_mode_and_shape(
    mode: str, learn_masks: Any, tmp_path: Path
) -> None:
    data = scenes(tmp_path / "data", SHAPES)
    found = learn_masks(dataset=data, test_mode=mode)
    assert sum(value > 0 for value in found["metrics"]["per_class_iou"]) > 1  # more than one class is predicted
    scored = np.sum(found["metrics"]["confusion_matrix"])
    factors = [min(1, 40 / min(shape), 80 / max(shape)) for shape in SHAPES]  # as the images are stored
    assert scored == sum(round(h * factor) * round(w * factor) for (h, w), factor in zip(SHAPES, factors, strict=True))
    assert AutoImageProcessor.from_pretrained(tmp_path / "run" / "model").do_resize == (mode == "resize")
    checked = found["published_path"]
    assert checked["warning"] is None and checked["images"] == 4
    [path] = checked["paths"]
    assert path["equal"] > (0.98 if mode == "resize" else 0.999)  # resized here in float, there in 8 bits
    ask = pipeline("image-segmentation", model=str(tmp_path / "run" / "model"), device="cpu")
    for file in (data / "test" / "images").iterdir():
        answers = ask(str(file))
        assert sum(np.array(answer["mask"]) > 0 for answer in answers).min() == 1  # type: ignore[union-attr]
        with Image.open(file) as image:
            assert {answer["mask"].size for answer in answers} == {image.size}


def test_a_processor_that_does_not_shrink_is_noticed(
    learn_masks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = segmented.check_segmenter

    def spoiled(folder: Path, *rest: Any) -> dict[str, Any]:
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"shorter_side": None}))
        return real(folder, *rest)

    monkeypatch.setattr(segmented, "check_segmenter", spoiled)
    found = learn_masks(dataset=scenes(tmp_path / "data", [(160, 200)]))
    assert "of the pixels" in found["published_path"]["warning"]
