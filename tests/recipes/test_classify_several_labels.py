"""Classification of several labels an image, run in this process on a tiny backbone: which squares are there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from transformers import pipeline

from tpssl_hf.errors import InputError
from tpssl_hf.hub.card import render_card
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.run_record import gather
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.tasks.classify import report
from tpssl_hf.tasks.classify import run as finetuning
from tpssl_hf.training.run_dir import read_metrics

Learn = Callable[..., dict[str, Any]]
COLORS = {"blue": (30, 60, 230), "red": (230, 40, 40)}
NAMES = list(COLORS)


def squares(number: int) -> tuple[Image.Image, list[int]]:
    """An image of noise with a blue square in half of them and a red one in a third, and which are there."""
    random = np.random.default_rng(number)
    image = Image.fromarray(random.integers(90, 150, (24, 24, 3), dtype=np.uint8))
    there = [label for label, share in enumerate((0.5, 0.35)) if random.random() < share]
    for label in there:
        left, top = (int(value) for value in random.integers(0, 14, 2))
        ImageDraw.Draw(image).rectangle((left, top, left + 9, top + 9), fill=COLORS[NAMES[label]])
    return image, there


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of 60 training and 40 test images whose label column holds lists of classes."""
    folder = tmp_path_factory.mktemp("squares")
    features = datasets.Features(image=datasets.Image(), tags=datasets.List(datasets.ClassLabel(names=NAMES)))
    for split, numbers in (("train", range(60)), ("test", range(1000, 1040))):
        made = [squares(number) for number in numbers]
        columns = {"image": [image for image, _ in made], "tags": [there for _, there in made]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def learn(
    data: Path,
    run_recipe: Any,
    load_recipe: Callable[[str], Any],
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Learn:
    """Run the recipe with these settings; returns results.json."""
    for module, name in ((finetuning, "draw_views"), (report, "draw_curves")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    recipe = load_recipe("ssl_classify")
    tiny = {"dataset": data, "labels": 40, "backbone": "test_resnet", "image_size": 32, "work_size": 24}
    tiny |= {"method": "supervised", "batch_size": 8, "max_steps": 4, "log_every": 1, "select": "last"}
    tiny |= {"init": "random", "precision": "fp32", "cache_dir": shared_cache}

    def run(name: str = "run", **settings: Any) -> dict[str, Any]:
        assert run_recipe(recipe, tiny | {"output_dir": tmp_path / name} | settings) == 0
        found: dict[str, Any] = json.loads((tmp_path / name / "results.json").read_text())
        return found

    return run


LEARNS = {"max_steps": 40, "learning_rate": 0.05}


@pytest.mark.parametrize("method", ["supervised", "linear_probe", "fixmatch"])
def test_a_learner_finds_the_squares(method: str, learn: Learn, tmp_path: Path) -> None:
    more = {"unlabeled_ratio": 1, "threshold": 0.8} if method == "fixmatch" else {}
    rate = {"learning_rate": 1.0} if method == "linear_probe" else {}
    found = learn(method=method, **{**LEARNS, **more, **rate})
    metrics = found["metrics"]
    assert metrics["mean_average_precision"] > 0.9 > 0.5 > metrics["chance_mean_average_precision"]
    assert len(metrics["per_label_average_precision"]) == len(metrics["per_label_f1"]) == 2
    assert found["test"] == {"images": 40, "split": "test"} and "accuracy" not in metrics
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["loss_labeled"] < lines[0]["loss_labeled"]
    if method == "fixmatch":
        assert lines[-1]["accepted"] > lines[0]["accepted"] and 0 < lines[-1]["accepted_having"] < 1


def test_a_broken_finetuning_leaves_the_probe_with_its_thresholds(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = learn(learning_rate=20.0, max_gradient_norm=1.0, select="best", evaluate_every=0.1)
    saved, metrics = found["saved"], found["metrics"]
    assert saved["candidate"] == "frozen_probe" and saved["folds"] == {"count": 4, "steps": 1}
    assert saved["cross_validated"].keys() == {"finetuned", "frozen_probe"} and found["beside"].keys() == {"finetuned"}
    gain = saved["cross_validated"]["frozen_probe"]["minus_finetuned"]
    assert gain["mean"] > gain["standard_error"] > 0
    assert metrics["mean_average_precision"] > found["beside"]["finetuned"] + 0.1
    assert metrics["macro_f1"] > 0.8
    calibrated = json.loads((tmp_path / "run" / "model" / "calibration.json").read_text())
    assert found["calibration"] == calibrated | {"sentence": found["calibration"]["sentence"]}
    assert calibrated["images"] == 40 and calibrated["held_out"] == "training images held out in turn"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["tpssl_hf"]["thresholds"] == list(found["thresholds"].values()) != [0.5, 0.5]
    assert "test_mean_average_precision" in read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    out = capsys.readouterr().out
    assert "blue 24, red 13, none of them 10, unlabeled 20" in out and "on 40 labeled images" in out
    assert "Cross-validated on 40 labeled images, mAP: supervised" in out
    assert (
        "held out      confidences are" in out
        and "% of 40 test images (the frozen probe" in out
        and "% by chance" in out
        and "at thresholds" in out
    )


def test_what_was_finetuned_is_kept_where_it_is_as_good(learn: Learn) -> None:
    still = {"learning_rate": 1e-12, "head_init": "probe", "backbone_batchnorm": "frozen"}
    found = learn(select="best", **still)
    saved = found["saved"]
    assert saved["candidate"] == "finetuned"
    probed = saved["cross_validated"]["frozen_probe"]
    assert saved["cross_validated"]["finetuned"]["mean_average_precision"] == pytest.approx(
        probed["mean_average_precision"], abs=0.02
    )
    assert found["beside"]["frozen_probe"] == pytest.approx(found["metrics"]["mean_average_precision"], abs=0.02)


def test_a_file_of_labels_and_no_test_images(data: Path, learn: Learn, tmp_path: Path) -> None:
    """Some labels are not known of some images, and a third of them are held out, as there is no test split."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(60):
        image, there = squares(number)
        image.save(tmp_path / "images" / f"{number}.png")
        flags = [str(int(label in there)) for label in range(2)]
        rows.append(f"{number}.png,{flags[0]},{flags[1] if number % 4 else ''}")
    (tmp_path / "labels.csv").write_text("file,blue,red\n" + "\n".join(rows[:50]) + "\n")
    found = learn(dataset=tmp_path / "images", labels=tmp_path / "labels.csv", validation_labels=16, **LEARNS)
    assert found["metrics"].keys() == {"validation_mean_average_precision"} and found["test"] is None
    assert found["metrics"]["validation_mean_average_precision"] > 0.9
    assert found["labels"]["count"] == 34 and found["published_path"]["warning"] is None
    kept = json.loads((tmp_path / "run" / "labels.json").read_text())["labels"]
    assert len(kept) == 50 and {None, 0, 1} == {flag for entry in kept for flag in entry["label"]}
    again = learn("again", dataset=tmp_path / "images", labels=tmp_path / "run" / "labels.json", validation_labels=16)
    assert again["labels"]["count"] == 34


def test_several_label_seeds_have_a_mean(learn: Learn, capsys: pytest.CaptureFixture[str]) -> None:
    found = learn(label_seeds="1,2", max_steps=1)
    assert len(found["mean_average_precision"]["values"]) == 2
    assert "mAP over 2 label seeds" in capsys.readouterr().out


def test_what_is_published_gives_the_probabilities_that_were_scored(learn: Learn, tmp_path: Path) -> None:
    found = learn(max_steps=10)
    folder = tmp_path / "run" / "model"
    assert found["published_path"]["warning"] is None
    assert all(path["greatest_difference"] < 1e-5 for path in found["published_path"]["paths"])
    card = render_card(gather(tmp_path / "run", PublishConfig(license="mit")), "me/squares", frozenset())
    scored = f"{100 * found['metrics']['mean_average_precision']:.1f} %"
    assert f"| mean average precision (mAP) | {scored} |" in card and "By chance the mAP would be 43.8 %." in card
    assert "and 40 labeled images." in card and 'function_to_apply="sigmoid"' in card and "logits.sigmoid()" in card
    image = squares(1000)[0]
    ask = pipeline("image-classification", model=str(folder))
    said = {answer["label"]: answer["score"] for answer in ask(image)}  # sigmoid, as its config says
    assert said == {answer["label"]: answer["score"] for answer in ask(image, function_to_apply="sigmoid")}
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
    with torch.no_grad():
        logits = network(transform(image)[None])[0]
    assert [said[name] for name in NAMES] == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)


REFUSED = "the learners supervised, fixmatch, linear_probe take and {} does not"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(({"method": name}, REFUSED.format(name)) for name, spec in CLASSIFY.items() if not spec.several_labels),
        ({"labeled_sampling": "classes"}, "labeled_sampling classes takes images of each class in turn"),
        ({"method": "fixmatch", "threshold": 0.5}, "threshold 0.5 would give a label and deny it"),
        ({"labels": 61}, "61 labeled images are more than the 60"),
        ({"labels": "some"}, "labels 'some' is not a number above 0"),
        ({"validation_labels": 39}, "validation_labels 39 of 40 labeled images would leave a label without"),
    ],
)
def test_what_does_not_go_with_several_labels_is_refused_before_the_first_step(
    settings: dict[str, Any], said: str, learn: Learn, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        learn(**settings)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
