import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import HfApi, constants
from loopback import TOKEN, LoopbackHub, running
from PIL import Image
from scripts import load_script

TINY = {"backbone": "test_resnet", "max_steps": 2, "precision": "fp32", "log_every": 1}
DIGITS = {"dataset": "digits", "image_size": 32, "limit_images": 160}


def _run(name: str, settings: dict[str, Any], patch: pytest.MonkeyPatch, drawing: tuple[str, ...]) -> None:
    """Run recipes/NAME.py in this process, without the images that take most of its time."""
    recipe = load_script(f"recipes/{name}.py")
    for place in drawing:
        patch.setattr(f"tpssl_hf.tasks.{place}", lambda path, *_, **__: path.write_bytes(b"\x89PNG"))
    patch.setattr(sys, "argv", [f"{name}.py", *(f"--{key}={value}" for key, value in settings.items())])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a run has reasons to warn
        assert recipe.main() == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _scenes(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((36, 48), dtype=np.uint8)
            mask[4:20, 6 + number : 22 + number] = 1
            pixels = random.integers(60, 120, (36, 48, 3)) + 80 * mask[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("ground\nbox")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Finished runs of the three recipes, made by the recipes: adapted, classifier (from adapted) and segmenter."""
    place = tmp_path_factory.mktemp("published")
    found = {name: place / name for name in ("adapted", "classifier", "segmenter")}
    _scenes(place / "boxes", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "datasets-cache")
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        tiny = TINY | {"cache_dir": place / "cache"}
        own = {
            "method": "byol",
            "batch_size": 8,
            "hidden_features": 32,
            "projection_features": 16,
            "output_dir": found["adapted"],
        }
        images = ("pretrain.report.draw_curves", "pretrain.run.draw_views")
        _run("target_pretrain", tiny | DIGITS | own, patch, images)
        own = {"batch_size": 4, "labels": 20, "limit_test_images": 40, "output_dir": found["classifier"]}
        own |= {"select": "last"}
        own |= {"init": found["adapted"] / "model"}
        images = ("classify.report.draw_curves", "classify.report.draw_pseudo_labels", "classify.run.draw_views")
        _run("ssl_classify", tiny | DIGITS | own, patch, images)
        own = {"dataset": place / "boxes", "labels": 4, "crop_height": 32, "crop_width": 48, "batch_size": 2}
        own |= {"decoder_width": 16, "output_dir": found["segmenter"]}
        _run(
            "ssl_segment",
            tiny | own,
            patch,
            ("segment.report.draw_curves", "segment.report.draw_predictions", "segment.run.draw_views"),
        )
        yield found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub on this machine that the client of this process may reach; nothing waits between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with running(TOKEN) as server:
        yield server


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """A client that may write."""
    return HfApi(hub.url, token=TOKEN)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited between attempts; nobody waits."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.fixture
def said() -> tuple[list[str], Callable[[str], None]]:
    """What was said, and who says it."""
    lines: list[str] = []
    return lines, lines.append
