"""The recipe of semi-supervised segmentation, run in this process on tiny backbones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from tpssl_hf.config.parser import flat
from tpssl_hf.errors import InputError
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.tasks.segment import report
from tpssl_hf.tasks.segment import run as segmenting
from tpssl_hf.tasks.segment.config import parse_segment
from tpssl_hf.tasks.segment.run import SegmentRun
from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs" / "ssl_segment").rglob("*.yaml"))
CLASSES = ("ground", "bright", "dark")
Learn = Callable[..., int]


@pytest.fixture(scope="session")
def recipe_segment(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/ssl_segment.py as a module."""
    return load_recipe("ssl_segment")


def scenes(folder: Path, count: int, seed: int = 0, masks: int | None = None) -> None:
    """Write ``images`` of two sizes with a bright and a dark box, and ``masks``, of the first ``masks`` only."""
    random = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        height, width = (40, 48) if number % 2 else (36, 44)
        pixels = random.integers(90, 150, (height, width, 3))
        mask = np.zeros((height, width), dtype=np.uint8)
        for label, level in ((1, 220), (2, 20)):
            top, left = random.integers(0, 20, 2)
            pixels[top : top + 16, left : left + 16] = level
            mask[top : top + 16, left : left + 16] = label
        mask[0] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"scene{number:02d}.png")
        if masks is None or number < masks:
            Image.fromarray(mask).save(folder / "masks" / f"scene{number:02d}.png")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 images to learn from, 12 of them with a mask, and 5 to be scored on."""
    folder = tmp_path_factory.mktemp("made") / "boxes"
    scenes(folder / "train", 14, masks=12)
    scenes(folder / "test", 5, seed=1)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.fixture
def learn(
    run_recipe: Any,
    recipe_segment: Any,
    made: Path,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Learn:
    """Run the recipe in this process with these settings; a setting of None is left out."""
    drawn = ((segmenting, "draw_views"), (report, "draw_curves"), (report, "draw_predictions"))
    for module, name in drawn:
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    tiny = {"dataset": made, "labels": 4, "backbone": "test_resnet", "crop_height": 32, "crop_width": 48}
    tiny |= {"batch_size": 2, "decoder_width": 16, "max_steps": 3, "log_every": 1, "precision": "fp32"}
    tiny |= {"cache_dir": shared_cache, "output_dir": tmp_path / "run"}
    return lambda **settings: run_recipe(recipe_segment, tiny | settings)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def confusion_of(model: Any, processor: Any, folder: Path) -> np.ndarray:
    """Count what plain transformers predicts for the images of a folder, one at a time."""
    counts = np.zeros((3, 3), dtype=np.int64)
    for path in sorted((folder / "images").iterdir()):
        image, truth = Image.open(path), np.array(Image.open(folder / "masks" / path.name))
        with torch.inference_mode():
            logits = model(processor(image, return_tensors="pt")["pixel_values"]).logits
        found = logits.argmax(dim=1)[0].numpy()
        np.add.at(counts, (truth[truth != 255], found[truth != 255]), 1)
    return counts


@pytest.mark.parametrize("method", sorted(SEGMENT))
def test_every_learner_leaves_the_score_of_the_saved_model_in_plain_transformers(
    method: str, learn: Learn, made: Path, tmp_path: Path
) -> None:
    assert learn(method=method) == 0
    found = results(tmp_path / "run")
    assert found["method"] == method and found["labels"]["count"] == 4 and found["test"]["images"] == 5
    excluded = 4 if SEGMENT[method].defaults["exclude_labeled"] else 0
    assert found["unlabeled_images"] == (0 if method == "supervised" else 14 - excluded)
    assert found["scored"] == ("teacher" if method == "cutmix" else "student") and found["class_names"] == [*CLASSES]
    folder = tmp_path / "run" / "model"
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    assert model.config.id2label == dict(enumerate(CLASSES))
    counts = confusion_of(model, AutoImageProcessor.from_pretrained(folder), made / "test")
    matrix = np.array(found["metrics"]["confusion_matrix"])
    assert matrix.sum() == counts.sum() and np.abs(matrix - counts).sum() <= 4  # kernels may sum up in another order
    overlap = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).clip(1)
    assert found["metrics"]["per_class_iou"] == pytest.approx(overlap.tolist())
    assert found["metrics"]["mean_iou"] == pytest.approx(overlap.mean())
    if found["scored"] == "teacher":  # it is what is saved, too
        checkpoint = load_latest(tmp_path / "run" / "checkpoints")
        assert checkpoint is not None
        state, saved = checkpoint.tensors["method"], model.state_dict()
        assert all(torch.equal(value, state[f"teacher.network.{name}"]) for name, value in saved.items())
        assert any(not torch.equal(value, state[f"student.{name}"]) for name, value in saved.items())


@pytest.fixture
def prepared(made: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SegmentRun]:
    """Prepare a run with these settings, which then makes no step."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny = {"dataset": made, "labels": 4, "backbone": "test_resnet", "decoder_width": 16, "batch_size": 2}
    tiny |= {"cache_dir": shared_cache, "crop_height": 32}
    return lambda **settings: segmenting.prepare(parse_segment(tiny | settings), Accelerator(), None)


def test_the_backbone_inside_is_the_adapted_one_until_the_first_step(
    prepared: Callable[..., SegmentRun], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    plain = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    for layer in plain.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
    adapted = tmp_path / "adapted"
    save_timm_folder(plain, adapted, preprocessing=Preprocessing(64, (0.5,) * 3, (0.5,) * 3), provenance={})
    job = prepared(init=adapted)
    assert job.statistics_frozen
    for network in (job.method.student, job.method.teacher.network):
        inside = network.backbone.state_dict()  # type: ignore[union-attr, operator]
        assert inside and all(torch.equal(value, plain.state_dict()[name]) for name, value in inside.items())
    job.method.train()
    norms = [m for m in job.method.student.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # type: ignore[union-attr]
    assert norms and not any(layer.training for layer in norms)


def test_masks_never_reach_the_unlabeled_stream(learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = SEGMENT["unimatch"].views

    def watched(settings: Any, config: Any) -> Any:
        made = original(settings, config)
        transform = made["unlabeled"]
        return {**made, "unlabeled": lambda images: seen.append(images) or transform(images)}

    spec = segmenting.replace(SEGMENT["unimatch"], views=watched)
    monkeypatch.setitem(SEGMENT, "unimatch", spec)
    assert learn(method="unimatch", exclude_labeled=True) == 0
    rows = set(json.loads((tmp_path / "run" / "labels.json").read_text())["rows"])
    assert seen and all(images.masks is None for images in seen)
    assert not rows & {number for images in seen[1:] for number in images.index.tolist()}  # the first is drawn


def test_labels_of_one_run_serve_the_next_and_may_be_a_list(
    learn: Learn, prepared: Callable[..., SegmentRun], tmp_path: Path
) -> None:
    assert learn(method="supervised", label_seed=5, max_steps=1) == 0
    written = tmp_path / "run" / "labels.json"
    rows = json.loads(written.read_text())["rows"]
    assert len(rows) == 4 and max(rows) < 12
    names = tmp_path / "names.txt"
    names.write_text("".join(f"scene{row:02d}\n" for row in rows))
    numbers = tmp_path / "rows.txt"
    numbers.write_text("\n".join(map(str, rows)))
    assert learn(method="supervised", labels=written, output_dir=tmp_path / "second", max_steps=1) == 0
    assert json.loads((tmp_path / "second" / "labels.json").read_text())["rows"] == rows

    def chosen(labels: object) -> list[int]:
        data = prepared(method="supervised", labels=labels, label_seed=5).data
        return data.store.rows[data.labeled.indices].tolist()

    assert chosen(names) == chosen(numbers) == rows
    assert set(rows) < set(chosen("50%")) and len(chosen("all")) == 12


def test_poly_rates_and_the_faster_decoder_are_logged_and_used(learn: Learn, tmp_path: Path) -> None:
    assert learn(method="supervised", schedule="poly", learning_rate=0.1, optimizer="sgd", max_steps=4) == 0
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.1 * (1 - step / 4) ** 0.9 for step in range(4)])


def test_a_run_without_test_images_has_no_score(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(test_split="none", method="supervised") == 0
    assert results(tmp_path / "run")["test"] is None and results(tmp_path / "run")["metrics"] == {}
    assert not (tmp_path / "run" / "predictions.png").exists()
    assert "predictions.png" not in capsys.readouterr().out
    assert learn(test_split="none", method="supervised") == 0
    assert "holds the finished run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": 13}, "12 of the 14 images have one"),
        ({"labels": "many"}, "is not a number above 0"),
        ({"labels": "1%"}, "share that is at least one of 14 images"),
        ({"labels": "missing.txt"}, "cannot be read"),
        ({"method": "cutmxi"}, "method 'cutmxi' is not one of"),
        ({"unlabeled_ratio": 0}, "needs 1 or more"),
        (
            {"split": "test", "test_split": "none", "labels": "all", "exclude_labeled": True},
            "all 5 images are labeled",
        ),
        ({"test_split": "validation"}, "test images could not be opened"),
        ({"label_seeds": "1,1"}, "not a list of different whole numbers"),
        ({"learning_rte": 0.1}, "unknown key 'learning_rte'"),
        ({"image_size": 32}, "unknown key 'image_size'"),
        ({"test_split": "train"}, "labeled images are in the test set"),
        ({"test_dataset": "digit_scenes"}, "not the 3 of the training masks"),
        ({"output_stride": 4}, "output_stride 4 is not 16 or 8"),
        ({"scale_min": 2.0}, "give the smaller factor first"),
        ({"crop_height": 0}, "views need at least 1 pixel"),
        ({"max_steps": 0}, "give 1 or more"),
        ({"batch_size": 1}, "at least 2"),
    ],
)
def test_bad_input_is_one_sentence_before_the_first_step(
    settings: dict[str, Any], sentence: str, learn: Learn, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        learn(**settings)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "scene00\nscene99", "names 'scene99', which is no image"),
        ("a.txt", "13", "row 13 of 'boxes', which has no mask"),
        ("a.txt", "99", "names none of the 14 images"),
        ("a.json", "[]", "not JSON with a list `rows`"),
        ("a.json", '{"rows": [1], "fingerprint": "x", "dataset": "y"}', "written for other images"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(
    name: str, text: str, sentence: str, learn: Learn, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        learn(labels=tmp_path / name)


def test_the_digit_scenes_are_the_default() -> None:
    args = parse_segment([])
    assert (args.data.dataset, args.task.method, args.task.labels) == ("digit_scenes", "cutmix", 100)
    assert parse_segment(["--dataset", "x"]).model.backbone == "resnet50"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_says_what_it_needs(path: Path) -> None:
    settings = flat(parse_segment(["--config", str(path)]))
    assert settings["output_dir"] == f"outputs/{path.stem}"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Needs:" in line for line in header) and any("Command:" in line for line in header)
    named = [word for line in header for word in line.split() if word.startswith("recipes/configs/")]
    assert all((ROOT / name).exists() for name in named)
    assert all(settings[name] == value for name, value in yaml.safe_load(path.read_text()).items())
