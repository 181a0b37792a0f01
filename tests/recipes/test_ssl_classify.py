"""The recipe of semi-supervised classification, run in this process on tiny backbones."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from tpssl_hf.config.digits import DIGITS_RUN
from tpssl_hf.config.parser import flat
from tpssl_hf.errors import InputError
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.monitoring.pseudo_labels import NeverAcceptedWarning
from tpssl_hf.tasks.classify import config, report
from tpssl_hf.tasks.classify import run as finetuning
from tpssl_hf.training.run_dir import read_metrics

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs" / "ssl_classify").rglob("*.yaml"))
Learn = Callable[..., int]


@pytest.fixture(scope="session")
def classify(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/ssl_classify.py as a module."""
    return load_recipe("ssl_classify")


@pytest.fixture
def learn(
    run_recipe: Any, classify: Any, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Learn:
    """Run the recipe in this process with these settings; a setting of None is left out."""
    for module, name in ((finetuning, "draw_views"), (report, "draw_curves"), (report, "draw_pseudo_labels")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    tiny = {"dataset": "digits", "labels": 20, "backbone": "test_resnet", "image_size": 32, "work_size": 16}
    tiny |= {"batch_size": 4, "unlabeled_ratio": 2, "max_steps": 3, "log_every": 1, "limit_images": 300}
    tiny |= {"limit_test_images": 40, "precision": "fp32", "cache_dir": shared_cache, "select": "last"}
    tiny |= {"output_dir": tmp_path / "run"}

    def run(**settings: Any) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NeverAcceptedWarning)  # three steps accept nothing
            code: int = run_recipe(classify, tiny | settings)
        return code

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifier") / "run"


@pytest.fixture
def finished(place: Path, learn: Learn) -> Path:
    """The folder of a run of the settings of ``learn``, made once; only to be read."""
    if not (place / "results.json").exists():
        assert learn(output_dir=place) == 0
    return place


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def images(folder: Path, names: dict[str, int], seed: int = 0) -> Path:
    """Make a folder with so many images in each sub-folder, brighter from one class to the next."""
    random = np.random.default_rng(seed)
    for number, (name, count) in enumerate(names.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 60, (20, 24, 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


def overlapping(folder: Path, counts: dict[str, int], seed: int) -> Path:
    """Make a folder of gray images of which those of the second class are a little brighter, on average."""
    random = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            level = random.normal(110 + 30 * number, 25)
            pixels = np.clip(random.normal(level, 10, (20, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_rare_classes_are_found_more_often_where_every_class_comes_equally_often(
    method: str, learn: Learn, tmp_path: Path
) -> None:
    train = overlapping(tmp_path / "train", {"common": 66, "rare": 6}, seed=0)
    test = overlapping(tmp_path / "test", {"common": 40, "rare": 40}, seed=1)
    settings = {"dataset": train, "label_column": "folder", "labels": "all", "test_dataset": test, "batch_size": 12}
    settings |= {"method": method, "max_steps": 15, "learning_rate": 0.01, "limit_test_images": None}
    settings |= {"head_init": "probe", "backbone_batchnorm": "frozen"}
    found = {}
    for sampling in ("images", "classes"):
        assert learn(labeled_sampling=sampling, output_dir=tmp_path / sampling, **settings) == 0
        found[sampling] = results(tmp_path / sampling)["metrics"]["per_class_accuracy"]
    assert np.mean(found["classes"]) > np.mean(found["images"]) + 0.1
    assert found["classes"][1] > found["images"][1] + 0.3


def test_the_head_is_fitted_to_classes_that_count_alike(learn: Learn, tmp_path: Path) -> None:
    train = overlapping(tmp_path / "train", {"common": 66, "rare": 6}, seed=0)
    test = overlapping(tmp_path / "test", {"common": 40, "rare": 40}, seed=1)
    settings = {"dataset": train, "label_column": "folder", "labels": "all", "test_dataset": test, "max_steps": 1}
    settings |= {"method": "linear_probe", "learning_rate": 1e-9, "head_init": "probe", "limit_test_images": None}
    for sampling in ("images", "classes"):
        assert learn(labeled_sampling=sampling, output_dir=tmp_path / sampling, **settings) == 0
    rare = [results(tmp_path / name)["metrics"]["per_class_accuracy"][1] for name in ("images", "classes")]
    assert rare[1] > rare[0] + 0.3


def test_a_learner_without_steps_cannot_sample_by_class(learn: Learn) -> None:
    with pytest.raises(InputError, match="is about the images of steps, and label_spreading makes none"):
        learn(method="label_spreading", labeled_sampling="classes")


@pytest.mark.parametrize("method", sorted(CLASSIFY))
def test_every_learner_leaves_a_score_and_weights(method: str, learn: Learn, tmp_path: Path) -> None:
    own = {"queue_size": 4, "projection_features": 16} if method == "self_tuning" else {}
    assert learn(method=method, **own) == 0
    found = results(tmp_path / "run")
    assert found["method"] == method and found["labels"]["count"] == 20 and found["test"]["images"] == 40
    matrix = np.array(found["metrics"]["confusion_matrix"])
    assert matrix.sum() == 40 and found["metrics"]["accuracy"] == pytest.approx(matrix.trace() / 40)
    assert len(found["metrics"]["per_class_accuracy"]) == 10
    assert 0 <= found["metrics"]["expected_calibration_error"] <= 1
    if method == "self_tuning":  # whose pseudo-labels are all taken, and audited in hindsight
        line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
        assert sum(line["pseudo_predicted_per_class"]) == 8 == sum(line["pseudo_accepted_per_class"])
        assert sum(line["pseudo_confidence_histogram"]) == 8 and 0 <= line["hindsight_precision"] <= 1


def test_the_score_is_that_of_the_saved_network_in_plain_timm(
    learn: Learn, shared_cache: Path, tmp_path: Path
) -> None:
    assert learn(limit_test_images=None) == 0
    found = results(tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'model'}", pretrained=True).eval()
    from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
    from tpssl_hf.data.image_cache import load_image_cache
    from tpssl_hf.data.sources import load_source

    source = load_source("digits", split="test")
    budget = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False, "cache_dir": shared_cache}
    store, _ = load_image_cache(source, image_size=32, **budget)
    settings = ViewSettings(32, model.pretrained_cfg["mean"], model.pretrained_cfg["std"], 0)
    with torch.inference_mode():
        predicted = model(eval_view(store.gather(np.arange(300), epoch=0), settings)).argmax(dim=1).numpy()
    assert found["metrics"]["accuracy"] == pytest.approx((predicted == store.labels).mean())


def test_the_model_loads_in_plain_transformers_with_class_names_and_equal_logits(learn: Learn, tmp_path: Path) -> None:
    names = {"cat": 6, "dog": 6}
    train, test = images(tmp_path / "train", names), images(tmp_path / "test", names, seed=1)
    assert learn(dataset=train, label_column="folder", labels=4, test_dataset=test, test_split="train") == 0
    folder = str(tmp_path / "run" / "model")
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    assert model.config.id2label == {0: "cat", 1: "dog"}
    image = Image.open(tmp_path / "test" / "cat" / "000.png")
    inputs = processor(image, return_tensors="pt")["pixel_values"]
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"timm_model.{name}"]), name
    with torch.inference_mode():  # equal weights; which kernel sums them up depends on where in memory they lie
        torch.testing.assert_close(model.eval()(inputs).logits, plain(inputs), rtol=0, atol=1e-6)
    answers = pipeline("image-classification", model=folder)(image)
    assert {answer["label"] for answer in answers} == {"cat", "dog"}


def test_the_teacher_is_what_is_deployed_and_not_the_last_student(learn: Learn, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from tpssl_hf.training.checkpoint import load_latest

    assert learn(method="fixmatch", learning_rate=0.5) == 0
    checkpoint = load_latest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    state, saved = checkpoint.tensors["method"], load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, state[f"teacher.network.{name}"]), name
    assert any(not torch.equal(value, state[f"student.{name}"]) for name, value in saved.items())


def test_curves_evaluate_along_the_way_and_their_median_is_reported(learn: Learn, tmp_path: Path) -> None:
    assert learn(evaluate_every=0.1, max_steps=4, validation_labels=10) == 0  # 10 steps are an epoch
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all("test_accuracy" in line and "validation_accuracy" in line for line in lines) and len(lines) == 4
    metrics = results(tmp_path / "run")["metrics"]
    assert metrics["accuracy"] == lines[-1]["test_accuracy"]
    assert metrics["median_of_last_4_evaluations"] == np.median([line["test_accuracy"] for line in lines])
    assert results(tmp_path / "run")["labels"]["count"] == 10


def test_without_curves_the_test_images_are_read_once(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = finetuning.probabilities
    for module in (finetuning, report):
        monkeypatch.setattr(module, "probabilities", lambda *given: asked.append(1) or original(*given))
    assert learn() == 0
    assert len(asked) == 1


def test_labels_of_one_run_serve_the_next(learn: Learn, finished: Path, tmp_path: Path) -> None:
    written = finished / "labels.json"
    assert learn(labels=written, label_seed=5, output_dir=tmp_path / "second") == 0
    assert (
        json.loads(written.read_text())["labels"]
        == json.loads((tmp_path / "second/labels.json").read_text())["labels"]
    )


def test_unlabeled_images_may_come_from_elsewhere_without_a_label_column(learn: Learn, tmp_path: Path) -> None:
    names = {"cat": 5, "dog": 5}
    train, test = images(tmp_path / "train", names), images(tmp_path / "test", names, seed=1)
    pile = images(tmp_path / "pile", {"somewhere": 17}, seed=2)
    settings = {"label_column": "folder", "test_dataset": test, "test_split": "train", "labels": "all"}
    assert learn(dataset=train, unlabeled_dataset=pile, **settings) == 0
    assert results(tmp_path / "run")["unlabeled_images"] == 17
    assert "hindsight_precision" not in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]


def test_a_run_without_test_images_has_no_score(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(test_split="none") == 0
    assert results(tmp_path / "run")["test"] is None and "accuracy" not in results(tmp_path / "run")["metrics"]
    assert "accuracy" not in capsys.readouterr().out.split("Finetuned")[1]


def test_a_finished_run_is_left_alone(learn: Learn, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = (finished / "results.json").stat().st_mtime_ns
    assert learn(output_dir=finished) == 0
    assert (finished / "results.json").stat().st_mtime_ns == made
    assert "holds the finished run" in capsys.readouterr().out


def test_a_classifier_starts_from_an_adapted_folder_with_a_new_head(
    learn: Learn, finished: Path, tmp_path: Path
) -> None:
    assert learn(init=finished / "model") == 0
    assert results(tmp_path / "run")["init"]["kind"] == "folder"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"labels": 5}, "fewer than the 10 classes"),
        ({"labels": 25}, "same number for each"),
        ({"labels": "many"}, "is not a number above 0"),
        ({"method": "fixmtach"}, "method 'fixmtach' is not one of"),
        ({"unlabeled_ratio": 0}, "needs 1 or more"),
        ({"test_split": "validation"}, "test images could not be opened"),
        ({"label_seeds": "1,1"}, "not a list of different whole numbers"),
        ({"streaming": True}, "leave streaming off"),
        ({"validation_labels": 20}, "without any to train on"),
        ({"learning_rte": 0.1}, "unknown key 'learning_rte'"),
        ({"test_dataset": "digits", "test_split": "train"}, "labeled images are in the test set"),
    ],
)
def test_bad_input_is_one_sentence_before_the_first_step(
    settings: dict[str, Any], sentence: str, learn: Learn, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        learn(**settings, **({"limit_test_images": None} if "test_dataset" in settings else {}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_empty_pile_of_unlabeled_images_is_refused(learn: Learn, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        learn(unlabeled_dataset=tmp_path / "empty")


def test_classes_of_the_test_images_are_told_apart_by_name(learn: Learn, tmp_path: Path) -> None:
    train = images(tmp_path / "train", {"cat": 4, "dog": 4})
    test = images(tmp_path / "test", {"bird": 2, "dog": 2}, seed=1)
    settings = {"dataset": train, "label_column": "folder", "labels": 4, "test_split": "train"}
    with pytest.raises(InputError, match="test images have the class 'bird'"):
        learn(test_dataset=test, **settings)
    assert learn(test_dataset=images(tmp_path / "dogs", {"dog": 3}, seed=1), **settings) == 0
    assert results(tmp_path / "run")["metrics"]["per_class_accuracy"][0] is None


def test_the_digits_say_which_weights_they_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.parse_classify([]).model.init == "random"
    starter = {"backbone": "test_resnet", "init": str(tmp_path)}
    args = config.parse_classify([], starter=lambda: starter)
    assert (args.model.init, args.model.backbone, args.task.head_init) == (str(tmp_path), "test_resnet", "probe")
    (tmp_path / DIGITS_RUN / "model").mkdir(parents=True)
    (tmp_path / DIGITS_RUN / "config.yaml").write_text("backbone: test_vit\nimage_size: 24\n")
    args = config.parse_classify([], starter=lambda: starter)
    assert args.model.init == str(DIGITS_RUN / "model")
    assert (args.model.backbone, args.data.image_size) == ("test_vit", 24)
    assert config.parse_classify(["--init", "random"], starter=lambda: starter).model.init == "random"


def test_weights_given_for_the_digits_get_the_small_rate_and_are_shown_their_own_size(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    written = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 48, 48]}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(written))
    args = config.parse_classify(["--init", str(tmp_path / "model")])
    assert (args.model.backbone, args.data.image_size, args.task.head_init) == ("test_resnet", 48, "probe")
    assert args.optim.learning_rate == config.parse_classify([], starter=lambda: {"init": "timm"}).optim.learning_rate
    assert args.optim.learning_rate < config.parse_classify(["--init", "random"]).optim.learning_rate


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_says_what_it_needs(path: Path) -> None:
    settings = flat(config.parse_classify(["--config", str(path)]))
    assert settings["output_dir"].startswith("outputs/")
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Needs:" in line for line in header) and any("Command:" in line for line in header)
    named = [word for line in header for word in line.split() if word.startswith("recipes/configs/")]
    assert all((ROOT / name).exists() for name in named)
    given = yaml.safe_load(path.read_text())
    assert all(settings[name] == value for name, value in given.items())


@pytest.mark.parametrize(
    ("batch_size", "rate", "start", "optimizer", "noted"),
    [
        (64, 0.03, "timm", "sgd", False),
        (8, 0.03, "folder", "sgd", True),
        (8, 0.004, "folder", "sgd", False),
        (8, 0.03, "random", "sgd", False),
        (8, 0.03, "folder", "adamw", False),
    ],
)
def test_a_rate_that_would_undo_pretrained_weights_is_noted(
    batch_size: int, rate: float, start: str, optimizer: str, noted: bool
) -> None:
    keys = {"dataset": "x", "batch_size": batch_size, "learning_rate": rate, "optimizer": optimizer}
    note = finetuning.rate_note(config.parse_classify(keys), start)
    assert (note is not None) == noted
    assert not noted or "0.03 for 64 it would be 0.0037" in note


def test_a_data_set_without_test_split_runs_and_says_why_there_is_no_score(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images(tmp_path / "pets", {"a": 15, "b": 12})
    (tmp_path / "few.csv").write_text("file,label\na/000.png,cat\nb/000.png,dog\nb/001.png,NA\n")
    own = {"dataset": folder, "limit_images": None, "limit_test_images": None, "max_steps": 1, "method": "supervised"}
    assert learn(**own, labels=tmp_path / "few.csv") == 0
    said = capsys.readouterr().out
    assert "labels: cat 1, dog 1, unlabeled 25" in said and "1 entries say 'NA', which means unlabeled" in said
    assert "'pets' has no test split, so there is no score; all labels are trained on, and none held out" in said
    many = {"labels": "all", "label_column": "folder"}
    assert learn(**own, **many, output_dir=tmp_path / "many") == 0
    assert "5 of 27 labels, a fifth of each class, are held out" in capsys.readouterr().out
    found = results(tmp_path / "many")
    assert (
        found["test"] is None and found["labels"]["count"] == 22 and 0 <= found["metrics"]["validation_accuracy"] <= 1
    )
    assert learn(**own, **many, output_dir=tmp_path / "all", validation_labels=0) == 0
    assert results(tmp_path / "all")["labels"]["count"] == 27
    flat = {"labels": tmp_path / "few.csv", "label_column": "folder", "test_dataset": tmp_path / "test"}
    images(tmp_path / "test", {"a": 3, "b": 2}, seed=1)
    (tmp_path / "few.csv").write_text("file,label\na/000.png,a\nb/000.png,b\n")
    assert learn(**own, **flat, output_dir=tmp_path / "tested") == 0
    assert results(tmp_path / "tested")["test"] == {"images": 5, "split": "all"}
    for named in ({"test_split": "test"}, {"test_dataset": tmp_path / "nowhere"}):
        with pytest.raises(InputError, match="test images could not be opened"):
            learn(**own, **many, output_dir=tmp_path / "named", **named)


def test_a_list_of_draws_in_a_file_is_taken(learn: Learn, tmp_path: Path) -> None:
    (tmp_path / "draws.yaml").write_text("label_seeds: [1, 2]\n")
    assert learn(config=tmp_path / "draws.yaml", max_steps=1, method="supervised") == 0
    assert results(tmp_path / "run")["label_seeds"] == [1, 2]
