"""The demo and the metrics as Spaces: what arrives runs there, what could not run or should not be seen is refused."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from loopback import TOKEN, LoopbackHub
from PIL import Image
from published_spaces import RUN, check_demo, write_metric
from scripts import ROOT, load_script

from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import PushError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.metric_modules import publish_metric
from tpssl_hf.hub.spaces import publish_space

DEMO, METRICS = ROOT / "spaces/demo", ROOT / "tpssl_hf/metrics"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A demo.yaml of published models, with local files of everything else; the working directory is another one."""
    work = tmp_path / "work"
    (work / "verdict").mkdir(parents=True)
    monkeypatch.chdir(work)
    sentence = f"Adapted weights are better, as {work}/log.txt says with {TOKEN}."
    results = {"sentence": sentence, "config": {"adapted": str(work / "run"), "cache_dir": "kept here"}}
    (work / "verdict/results.json").write_text(json.dumps(results))
    (work / "verdict/verdict.md").write_text(f"# Verdict of {work}/run\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    for name in ("verdict/verdict", "a", "b", "own"):
        Image.new("RGB", (8, 8), (90, 120, 30)).save(work / f"{name}.png")
    thumbnails = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    np.savez(work / "near.npz", features=np.eye(2), thumbnails=thumbnails, captions=np.array(["0", "1"]))
    return {
        "title": "Mine",
        "sentence": f"Of {work}/run, and either/or.",
        "classifiers": [{"name": "x", "base": "me/base", "adapted": "me/adapted@v1", "neighbors": "near.npz"}],
        "segmenters": [
            {"name": "y", "model": "me/segmenter", "shorter_side": 64, "examples": ["examples/scene_2.png", "own.png"]}
        ],
        "changes": [{"name": "z", "tsne": "a.png", "drift": str(work / "b.png"), "verdict": "verdict"}],
    }


def written(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "work" / "my_demo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_space_arrives_in_one_commit_without_tokens_and_paths(
    content: dict[str, Any], hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    said: list[str] = []
    publish_space(DEMO, written(content, tmp_path), "me/x", PublishConfig(private=True), api=api, say=said.append)
    repository, files = hub.repositories["spaces/me/x"], hub.head("spaces/me/x")
    assert repository.messages == ["initial commit", "Publish a demo of tpssl_hf"]
    assert repository.sdk == "gradio" and repository.private
    assert {"app.py", "uploads.py", "requirements.txt", "tpssl_hf/hub/templates/card.md"} <= files.keys()
    assert (
        files["tpssl_hf/models/segmentation_inference.py"]
        == (ROOT / "tpssl_hf/models/segmentation_inference.py").read_bytes()
    )
    assert not [name for name in files if "__pycache__" in name or "outputs" in name or name.endswith(".pyc")]
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["models"] == ["me/adapted", "me/base", "me/segmenter"] and front["python_version"] == "3.11"
    shown = yaml.safe_load(files["demo.yaml"])
    assert shown["sentence"] == "Of run, and either/or."
    assert shown["classifiers"][0] == content["classifiers"][0] | {"neighbors": "data/classifiers_1/neighbors.npz"}
    assert shown["changes"][0]["drift"] == "data/changes_1/drift.png"
    assert shown["segmenters"][0]["examples"] == ["examples/scene_2.png", "data/segmenters_1/example_2.png"]
    verdict = json.loads(files["data/changes_1/verdict/results.json"])
    assert verdict == {
        "sentence": "Adapted weights are better, as log.txt says with <hidden>.",
        "config": {"adapted": "run"},
    }
    everything = b"".join(files.values())
    assert TOKEN.encode() not in everything and str(tmp_path).encode() not in everything
    assert any("for all to see" in line for line in said)


def test_what_a_former_push_left_goes_and_what_is_not_ours_stays(
    content: dict[str, Any], hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    path = written(content, tmp_path)
    address = publish_space(DEMO, path, "me/x", api=api, say=str)
    assert publish_space(DEMO, path, "me/x", api=api, say=str) == address  # the same again is no commit
    repository = hub.repositories["spaces/me/x"]
    repository.add("main", hub.head("spaces/me/x") | {"notes.txt": b"mine", "tpssl_hf/old.py": b""}, "by hand")
    publish_space(DEMO, written(content | {"changes": []}, tmp_path), "me/x", api=api, say=str)
    left = hub.head("spaces/me/x").keys()
    assert "notes.txt" in left and "tpssl_hf/old.py" not in left and len(repository.messages) == 4
    assert [name for name in left if name.startswith("data/")] == [
        "data/classifiers_1/neighbors.npz",
        "data/segmenters_1/example_2.png",
    ]


def test_a_failed_push_says_how_to_push_again(
    content: dict[str, Any], hub: LoopbackHub, api: HfApi, tmp_path: Path, waits: list[float]
) -> None:
    path = written(content, tmp_path)
    hub.fail("POST /api/spaces/me/x/commit", "500")
    with pytest.raises(PushError, match="status 500") as caught:
        publish_space(DEMO, path, "me/x", api=api, say=str)
    assert f"tpssl-hf publish --space {DEMO} --demo_config {path} --repo me/x" in str(caught.value)
    hub.fail("POST /api/repos/create", "403")
    command = "tpssl-hf publish --metric .*/tpssl_segmentation --repo me/tpssl_segmentation"
    with pytest.raises(PushError, match=command):
        publish_metric(METRICS / "tpssl_segmentation", "me/tpssl_segmentation", api=api, say=str)
    assert hub.repositories["spaces/me/x"].messages == ["initial commit"]


@pytest.fixture
def own_metric(tmp_path: Path) -> Path:
    """A metric that imports from its folder."""
    return write_metric(tmp_path / "own_metric")


@pytest.fixture(scope="module")
def recipe() -> Any:
    """recipes/publish.py as a module."""
    return load_script("recipes/publish.py")


def test_what_is_published_runs_without_the_repository(
    content: dict[str, Any],
    own_metric: Path,
    recipe: Any,
    hub: LoopbackHub,
    api: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [f"--space={DEMO}", f"--demo_config={written(content, tmp_path)}", "--repo=me/x"]
    monkeypatch.setattr(sys, "argv", ["publish.py", *arguments, f"--dry_run={tmp_path / 'out'}"])
    assert recipe.main() == 0
    snippets = [
        snippet
        for folder in (METRICS / "tpssl_classification", METRICS / "tpssl_segmentation", own_metric)
        for snippet in re.findall(r"```python\n(.*?)```", published_card(folder, hub, api), re.DOTALL)
    ]
    (tmp_path / "snippets.txt").write_text("#####".join(snippets))
    shutil.rmtree(tmp_path / "work")
    variables = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": ""}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    variables.pop("HF_TOKEN", None)
    gradio = "with gradio" if importlib.util.find_spec("gradio") else "without"  # an extra that may be missing
    command = [sys.executable, "-c", RUN, gradio]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    classified, segmented, own = found["scores"]
    assert classified["accuracy"] == pytest.approx(2 / 3) and classified["per_class_accuracy"] == [1, 0.5, None]
    assert segmented["pixel_accuracy"] == 0.8 and segmented["per_class_iou"] == pytest.approx([2 / 3, 2 / 3])
    assert own == {"right": 1}
    if "demo" in found:
        check_demo(found["demo"], tmp_path / "out")


def published_card(folder: Path, hub: LoopbackHub, api: HfApi) -> str:
    """Publish a metric and return its card."""
    publish_metric(folder, f"me/{folder.name}", api=api, say=str)
    repository = hub.repositories[f"spaces/me/{folder.name}"]
    files = hub.head(f"spaces/me/{folder.name}")
    helpers = {"helping.py"} if folder.name == "own_metric" else set()
    assert files.keys() == {".gitattributes", "README.md", "index.html", f"{folder.name}.py"} | helpers
    assert f"evaluate.load(&quot;me/{folder.name}&quot;)".encode() in files["index.html"]
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"] == ["evaluate", "metric"] and front["sdk"] == repository.sdk == "static"
    return card


def test_a_space_that_could_not_run_is_refused(content: dict[str, Any], api: HfApi, tmp_path: Path) -> None:
    for change, sentence in [
        (
            {"classifiers": [{"name": "x", "base": "out/base/model", "adapted": "me/a"}]},
            "'x': base out/base/model is a",
        ),
        ({"segmenters": [{"name": "y", "model": "verdict"}]}, "model verdict is a path.*publish the model first"),
        ({"segmenters": [{"name": "y", "model": "me/x", "tsne": "a.png"}]}, "Option 'tsne' is not accepted"),
        ({"classifiers": [{"name": "x", "base": "me/a", "adapted": "me/a", "neighbors": "no.npz"}]}, "no.npz is not"),
        ({"changes": [{"name": "z", "verdict": "."}]}, "holds no results.json"),
        ({"changes": [{"name": "z", "drift": "verdict"}]}, "drift verdict is no file"),
        ({"segmenters": [{"name": "y", "model": "me/x", "examples": ["no.png"]}]}, "examples no.png is not there"),
    ]:
        with pytest.raises(InputError, match=sentence):
            publish_space(DEMO, written(content | change, tmp_path), "me/x", api=api)
    (tmp_path / "work/me").mkdir()
    (tmp_path / "work/me/segmenter").mkdir()  # as good as a Hub id by its looks
    with pytest.raises(InputError, match="me/segmenter is a path"):
        publish_space(DEMO, written(content, tmp_path), "me/x", api=api)


def test_a_copy_with_a_token_or_without_its_files_is_refused(
    content: dict[str, Any], api: HfApi, tmp_path: Path
) -> None:
    path, copy = written(content, tmp_path), tmp_path / "copy"
    shutil.copytree(DEMO, copy)
    (copy / ".env").write_text(f"HF_TOKEN={TOKEN}")  # hidden files stay at home
    (copy / "outputs").mkdir()
    (copy / "outputs/log.txt").write_text(TOKEN)
    publish_space(copy, path, "me/x", PublishConfig(dry_run=str(tmp_path / "out")), api=api, say=str)
    assert not (tmp_path / "out/.env").exists() and not (tmp_path / "out/outputs").exists()
    (copy / "uploads.py").write_text(f"login({TOKEN!r})")
    with pytest.raises(InputError, match="uploads.py holds an access token") as caught:
        publish_space(copy, path, "me/x", api=api)
    assert TOKEN not in str(caught.value)
    (copy / "README.md").write_text("---\ntitle: x\n---\n")
    with pytest.raises(InputError, match="names no `sdk`"):
        publish_space(copy, path, "me/x", api=api)
    (copy / "app.py").unlink()
    with pytest.raises(InputError, match="holds no app.py"):
        publish_space(copy, path, "me/x", api=api)


def test_a_metric_that_would_not_load_is_refused(own_metric: Path, api: HfApi) -> None:
    with pytest.raises(InputError, match="name the repository me/own_metric"):
        publish_metric(own_metric, "me/other", api=api)
    with pytest.raises(InputError, match="holds no metrics.py"):
        publish_metric(METRICS, "me/metrics", api=api)
    module, helper = own_metric / "own_metric.py", own_metric / "helping.py"
    helper.write_text("from .more import x\n")
    with pytest.raises(InputError, match=r"helping.py imports from its folder too"):
        publish_metric(own_metric, "me/own_metric", api=api)
    helper.unlink()
    with pytest.raises(InputError, match="holds no helping.py"):
        publish_metric(own_metric, "me/own_metric", api=api)
    for line in ("import datasets, evaluate", "from . import helping", "from .helping.more import x"):
        module.write_text(f"{line}\n")
        with pytest.raises(InputError, match=f"'{line}', which `evaluate` misreads"):
            publish_metric(own_metric, "me/own_metric", api=api)
    (own_metric / "README.md").unlink()
    with pytest.raises(InputError, match="README.md cannot be read"):
        publish_metric(own_metric, "me/own_metric", api=api)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["outputs/x", "--metric=m", "--repo=me/x"], "run and metric are given"),
        (["--demo_config=x.yaml", "--metric=m", "--repo=me/x"], "without `--space FOLDER`"),
        ([f"--space={DEMO}"], "no repository is given"),
        ([f"--space={DEMO}", "--repo=me/x", "--license=mit"], "license is for the card of a run, .* of a space"),
        ([f"--space={DEMO}", "--repo=me/x"], "outputs/demo/base_classifier/model is a path"),
        ([f"--metric={METRICS / 'tpssl_segmentation'}", "--repo=me"], "names no owner"),
    ],
)
def test_the_recipe_publishes_one_thing(
    arguments: list[str], sentence: str, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
    with pytest.raises(InputError, match=sentence):
        recipe.main()
