"""The web demo: what it answers, what it refuses, and that it starts without its models."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs gradio: `uv run --extra demo pytest`")

import app
import demo_build
from demo_config import ClassifierPair, DemoConfig, SegmenterChoice, read_demo_config
from demo_examples import AGREE, DIFFER, by_agreement
from demo_looks import accuracy_bar, colors_of, overlay, shares, shown
from demo_models import load_classifier, load_segmenter
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from tiny_demo import CLASSES, DEMO, GRADIO_NOISE, image_of, launched, make_classifier, no_leaked_loops
from transformers import pipeline

from tpssl_hf.commands import demo
from tpssl_hf.config.digits import DIGITS_SIZE
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import SEVERAL_LABELS

pytestmark = GRADIO_NOISE


@pytest.fixture(scope="module")
def client(demo_url: str) -> Client:
    return Client(demo_url, verbose=False)


@pytest.fixture
def upload(tmp_path: Path) -> Any:
    image_of(3, 60).save(tmp_path / "image.png")
    return handle_file(tmp_path / "image.png")


def answers(label: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in label["confidences"]}


def pixels_of(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_classify_answers_what_transformers_does(client: Client, demo_config: DemoConfig, upload: Any) -> None:
    base, adapted, nearest = client.predict(upload, "pets", api_name="/classify")
    pair = demo_config.classifiers[0]
    for label, folder in ((base, pair.base), (adapted, pair.adapted)):
        expected = {a["label"]: a["score"] for a in pipeline("image-classification", model=folder)(image_of(3, 60))}
        assert answers(label) == pytest.approx(expected, abs=1e-6)
        assert set(answers(label)) == set(CLASSES)
    assert answers(base) != pytest.approx(answers(adapted), abs=1e-3)
    cosines = [float(entry["caption"].rsplit(" ", 1)[1]) for entry in nearest]
    assert len(nearest) == 6 and cosines == sorted(cosines, reverse=True)
    assert pixels_of(nearest[0]["image"]).shape[:2] == (16, 16)


def test_the_nearest_training_image_is_the_image_itself(client: Client, tmp_path: Path) -> None:
    image_of(4, 16).save(tmp_path / "known.png")
    _, _, nearest = client.predict(handle_file(tmp_path / "known.png"), "pets", api_name="/classify")
    assert nearest[0]["caption"] == "number 4 · 1.000"


def test_the_other_pair_answers_the_other_way_round_and_has_no_neighbors(client: Client, upload: Any) -> None:
    base, adapted, _ = client.predict(upload, "pets", api_name="/classify")
    turned = client.predict(upload, "pets, turned round", api_name="/classify")
    assert (answers(turned[0]), answers(turned[1]), turned[2]) == (answers(adapted), answers(base), [])


def test_several_images_are_a_table_of_what_each_alone_is_answered(client: Client, tmp_path: Path) -> None:
    for seed in (1, 2):
        image_of(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "text.png").write_text("no image")
    files = [handle_file(tmp_path / name) for name in ("1.png", "text.png", "2.png")]
    rows = client.predict(files, "pets", api_name="/classify_several")["data"]
    assert [row[0] for row in rows] == ["1.png", "text.png", "2.png"]
    assert rows[1][1].startswith("The file is not an image") and rows[1][2:] == ["", ""]
    for row, seed in ((rows[0], 1), (rows[2], 2)):
        alone = client.predict(handle_file(tmp_path / f"{seed}.png"), "pets", api_name="/classify")[:2]
        told = [f"{label['label']}, {100 * max(answers(label).values()):.0f} %" for label in alone]
        assert row[1:] == [*told, "yes" if alone[0]["label"] == alone[1]["label"] else "no"]


def test_too_many_images_and_none_are_refused_in_a_sentence(client: Client, upload: Any) -> None:
    with pytest.raises(AppError, match="25 images and 24 are answered at a time"):
        client.predict([upload] * 25, "pets", api_name="/classify_several")
    with pytest.raises(AppError, match="no images yet"):
        client.predict([], "pets", api_name="/classify_several")


def test_how_often_a_model_is_right_is_read_from_its_run(tmp_path: Path) -> None:
    folder = Path(make_classifier(tmp_path / "run" / "model", 0))
    assert load_classifier(str(folder)).tested is None and "not known" in accuracy_bar(None)
    results = {"metrics": {"accuracy": 0.875}, "test": {"images": 1200, "split": "test"}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    tested = load_classifier(str(folder)).tested
    assert tested == (0.875, 1200) and "Right on 87.5 % of 1,200 test images" in accuracy_bar(tested)


def test_a_classifier_of_several_labels_an_image_is_refused(tmp_path: Path) -> None:
    config = Path(make_classifier(tmp_path / "model", 0)) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"problem_type": SEVERAL_LABELS}))
    with pytest.raises(InputError, match="gives an image several labels, which the demo does not show"):
        load_classifier(str(tmp_path / "model"))


def test_segment_answers_what_the_model_says(client: Client, demo_config: DemoConfig, upload: Any) -> None:
    annotated, (before, after), html = client.predict(upload, "pets' outlines", api_name="/segment")
    segmenter = load_segmenter(demo_config.segmenters[0].model, 64)
    mask = segmenter.mask(image_of(3, 60))
    expected = shares(mask, segmenter.class_names)
    assert mask.shape == (60, 60) and sum(expected.values()) == pytest.approx(1)
    assert [f"{100 * share:.1f} %" for share in expected.values()] == re.findall(r"([\d.]+ %)</span>", html)
    assert "<b>" not in html  # of a class name
    assert {entry["label"] for entry in annotated["annotations"]} == set(expected) - {"ground"}
    for entry in annotated["annotations"]:
        covered = pixels_of(entry["image"])[..., 3] > 0
        assert covered.mean() == pytest.approx(expected[entry["label"]], abs=0.01)
    assert pixels_of(before).shape == pixels_of(after).shape == (320, 320, 3)


def test_changes_are_told(client: Client) -> None:
    told = client.predict("pets", api_name="/changes")
    assert told == {"sentence": "Use the adapted weights.", "table": "| a | b |\n|---|---|\n| 1 | 2 |", "missing": []}


@pytest.mark.parametrize("api_name", ["/classify", "/segment", "/changes"])
@pytest.mark.parametrize("name", ["../../etc", ["pets"]])
def test_a_name_that_was_not_offered_is_refused_in_a_sentence(
    client: Client, upload: Any, api_name: str, name: Any
) -> None:
    given = (name,) if api_name == "/changes" else (upload, name)
    with pytest.raises(AppError, match="There is no model of that name here; choose one of: pets"):
        client.predict(*given, api_name=api_name)


def test_no_image_a_text_and_an_address_are_refused_in_a_sentence(client: Client, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="There is no image yet"):
        client.predict(None, "pets", api_name="/classify")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(AppError, match="not an image"):
        client.predict(handle_file(tmp_path / "text.png"), "pets", api_name="/classify")
    address = {"path": "http://127.0.0.1:1/image.png", "meta": {"_type": "gradio.FileData"}}
    for given in ((address, "pets"), (None, address)):
        with pytest.raises(AppError, match="addresses are not fetched here"):
            client.predict(*given, api_name="/classify")


def test_without_its_models_the_demo_starts_and_says_what_makes_them(
    demo_config: DemoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # as on a machine that is too busy to answer
    missing = replace(
        demo_config,
        classifiers=[ClassifierPair("gone", str(tmp_path / "gone"), "owner/gone@main")],
        segmenters=[SegmenterChoice("no segmenter", demo_config.classifiers[0].base)],
        changes=[replace(demo_config.changes[0], tsne="gone.png", verdict="gone")],
    )
    with launched(missing) as url:
        client = Client(url, verbose=False)
        said = " ".join(
            str(part["props"]["value"]) for part in client.config["components"] if part["type"] == "markdown"
        )
        told = client.predict("pets", api_name="/changes")
    assert "gone is not there yet; `uv run --extra demo python spaces/demo/app.py --build`" in said
    assert "no segmenter: The model" in said and "is damaged or of another kind" in said
    assert [sentence.split(" is ")[0] for sentence in told["missing"]] == [
        "The verdict",
        "The image of the features",
    ]
    assert "recipes/verdict.py" in told["missing"][0] and "--analysis tsne" in told["missing"][1]


def test_a_model_the_hub_does_not_deliver_is_told(demo_config: DemoConfig) -> None:
    with pytest.raises(
        InputError, match=r"The model owner/gone@main is no folder here and the Hub did not deliver it"
    ):
        load_segmenter("owner/gone@main", 64)


def test_the_launch_is_safe(demo_config: DemoConfig) -> None:
    with no_leaked_loops():
        demo = app.build_demo(replace(demo_config, classifiers=[], segmenters=[]))
    options = app.launch_options()
    assert options["share"] is False and options["allowed_paths"] == [] and options["show_error"] is False
    assert options["max_file_size"] == 8 * 2**20
    assert demo._queue.max_size == 20 and demo._queue.default_concurrency_limit == 1
    assert demo.analytics_enabled is False and demo.delete_cache == (3600, 3600)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: a\nsentence: b\nmodels: []", "unknown key 'models'"),
        ("title: a\nsentenc: b", "unknown key 'sentenc'; the nearest known one is 'sentence'"),
        ("title: a", "key 'sentence' is missing"),
        (
            "title: a\nsentence: b\nclassifiers: [{name: c, base: d, adapted: e, nearest_ones: f}]",
            "\"classifiers\": Option 'nearest_ones' is not accepted",
        ),
        (
            "title: a\nsentence: b\nclassifiers: [{name: c, base: d}]",
            '"classifiers": the following arguments are required: adapted',
        ),
        ("title: a\nsentence: b\nsegmenters: [{name: 3, model: d}]", 'key "name": Expected a str. Got value: 3'),
        ("title: a\nsentence: b\nsegmenters: [{name: c, model: d, shorter_side: 0}]", "give a whole number from 1"),
        ("title: a\nsentence: b\nsegmenters: c", 'key "segmenters": Expected a list. Got value: c'),
        (
            "title: a\nsentence: b\nsegmenters: [{name: c, model: d, examples: [1]}]",
            'key "examples": Expected a str. Got value: 1',
        ),
        ("title: a\nsentence: b\nchanges: [{name: c}, {name: c}]", "'c' stands there twice"),
        ("title: a\nsentence: b\nfolder: /", "unknown key 'folder'"),
        ("just a text", "must hold `key: value` lines"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_demo_config(path)


def test_the_command_line_beats_the_file_and_the_command_starts_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("title: a\nsentence: b\nport: 1\n", encoding="utf-8")
    launched_with: dict[str, Any] = {}
    shown: list[DemoConfig] = []

    class Page:
        def launch(self, **options: Any) -> None:
            launched_with.update(options)

    monkeypatch.setattr(app, "build_demo", lambda config: shown.append(config) or Page())
    assert demo.main(["--config", str(tmp_path / "mine.yaml"), "--port", "2", "--title=c"]) == 0
    assert launched_with["server_port"] == 2 and launched_with["share"] is False
    assert (shown[0].title, shown[0].sentence, shown[0].folder) == ("c", "b", tmp_path)
    assert demo.main([]) == 0 and shown[1] == read_demo_config(app.CONFIG)
    with pytest.raises(InputError, match="unknown key 'prot'; the nearest known one is 'port'"):
        demo.main(["--prot=3"])
    monkeypatch.setattr(demo, "DEMO", tmp_path)
    with pytest.raises(InputError, match="clone this package's repository"):
        demo.main([])


def test_the_shipped_configuration_is_right_and_its_scenes_are_test_images() -> None:
    config = read_demo_config(DEMO / "demo.yaml")
    shipped = {Path(name).name: pixels_of(config.find(name)) for name in config.segmenters[0].examples}
    expected = demo_build.scene_images()
    assert shipped.keys() == expected.keys()
    assert all(np.array_equal(shipped[name], np.asarray(expected[name])) for name in expected)


class Bright:
    """Stands in for a classifier: it tells images brighter than a limit from the others."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def confidences(self, image: Image.Image) -> dict[str, float]:
        bright = float(np.asarray(image).mean() > self.limit)
        return {"dark": 1 - bright, "bright": bright}


@pytest.mark.parametrize(("limits", "differing"), [((0, 80), 5), ((0, 0), 0), ((0, 255), 10)])
def test_half_of_the_digits_to_try_are_such_as_the_classifiers_differ_on_if_there_are_as_many(
    limits: tuple[int, int], differing: int, tmp_path: Path
) -> None:
    base, adapted = map(Bright, limits)
    demo_build.write_examples(tmp_path, base, adapted)
    names = [Path(name).name for name in read_demo_config(DEMO / "demo.yaml").classifiers[0].examples]
    files = [str(tmp_path / name) for name in names]
    (tmp_path / "text.png").write_text("no image")
    found = by_agreement([str(tmp_path / "text.png"), *files], base, adapted)
    assert found == {DIFFER: files[:differing], AGREE: files[differing:]}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr(demo_build, "RECIPES", folder)
    return folder


def test_build_stops_at_a_failure(tmp_path: Path, recipes: Path) -> None:
    with pytest.raises(InputError, match=r"target_pretrain\.py ended with exit code 2, its reason is above"):
        demo_build.build(tmp_path / "outputs", 3)  # Python finds no such file


def test_a_failure_in_one_row_of_recipes_keeps_the_other_from_going_on(tmp_path: Path, recipes: Path) -> None:
    (recipes / "good.py").write_text("print('done')")
    stop, log = threading.Event(), tmp_path / "log"
    demo_build.run_row([["good.py"]], stop, log)
    with pytest.raises(InputError, match=r"bad\.py ended with exit code 2, its reason is in .*log"):
        demo_build.run_row([["bad.py"], ["good.py"]], stop, log)
    demo_build.run_row([["good.py"]], stop, log)
    assert log.read_text().count("done") == 1


def test_both_classifiers_of_the_built_pair_see_images_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(demo_build, "run_row", lambda row, stop, log=None: ran.extend(row))
    monkeypatch.setattr(demo_build, "load_classifier", lambda folder: None)
    monkeypatch.setattr(demo_build, "write_neighbors", lambda path, classifier: None)
    monkeypatch.setattr(demo_build, "write_examples", lambda folder, base, adapted: None)
    monkeypatch.setattr("tpssl_hf.convert.starter.starter", lambda: {"backbone": "test_resnet", "init": "weights"})
    demo_build.build(tmp_path)
    base = next(command for command in ran if f"--output_dir={tmp_path / 'base_classifier'}" in command)
    assert {"--backbone=test_resnet", "--init=weights", f"--image_size={DIGITS_SIZE}"} <= {*base}


def test_colors_differ_and_the_ground_is_not_painted_over() -> None:
    names = ["ground", *map(str, range(30))]
    colors = colors_of(names)
    assert len(set(colors.values())) == len(names)
    image = image_of(0, 8)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[0, 0] = 5
    changed = (np.asarray(overlay(image, mask, names, colors)) != np.asarray(image)).any(axis=2)
    assert changed[0, 0] and changed.sum() == 1


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 8), (320, 320)), ((4000, 1000), (1024, 256)), ((400, 500), (400, 500))]
)
def test_images_are_shown_at_a_size_for_the_page(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shown(Image.new("RGB", size)).size == expected


@pytest.fixture(autouse=True, scope="module")
def nothing_left_open() -> Iterator[None]:
    yield
    with no_leaked_loops():
        pass
