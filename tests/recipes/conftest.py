import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from tpssl_hf.data import sources
from tpssl_hf.tasks import published_path
from tpssl_hf.tasks.pretrain import report, run

ROOT = Path(__file__).parents[2]
RunRecipe = Callable[[Any, Mapping[str, Any]], int]


@pytest.fixture(scope="session")
def load_recipe() -> Callable[[str], Any]:
    """Load recipes/NAME.py as a module."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def embedded() -> dict[str, Any]:
    """The loaders of the embedded data sets, which make each of them once: the half of many a tiny run."""
    return {name: functools.cache(load) for name, load in sources.EMBEDDED_LOADERS.items()}


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the stores of images, which runs on the same images share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def images_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask other libraries about two images, where it is not the point: a quarter of a tiny run is asking about 32."""
    monkeypatch.setattr(published_path, "IMAGES", 2)


@pytest.fixture
def run_recipe(embedded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunRecipe]:
    """Run a loaded recipe in this process with these settings; returns its exit code. One of None is left out."""
    monkeypatch.setattr(sources, "EMBEDDED_LOADERS", embedded)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(recipe: Any, settings: Mapping[str, Any]) -> int:
        chosen = [f"--{name}={value}" for name, value in settings.items() if value is not None]
        monkeypatch.setattr(sys, "argv", [f"{recipe.__name__}.py", *chosen])
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        code: int = recipe.main()
        return code

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def recipe(load_recipe: Callable[[str], Any]) -> Any:
    """recipes/target_pretrain.py as a module."""
    return load_recipe("target_pretrain")


@pytest.fixture
def adapt(run_recipe: Any, recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the recipe in this process on a tiny backbone, with these settings; returns its exit code.

    A setting of None is left out. The two images it draws are left empty: they would take most of the time.
    """
    for module, name in ((run, "draw_views"), (report, "draw_curves")):
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    tiny = {"backbone": "test_resnet", "image_size": 32, "batch_size": 8, "max_steps": 3, "precision": "fp32"}
    tiny |= {"method": "byol", "hidden_features": 32, "projection_features": 16, "cache_dir": tmp_path / "cache"}
    tiny |= {"output_dir": tmp_path / "run"}
    return lambda **settings: run_recipe(recipe, tiny | settings)


def random_image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (20 + number % 3, 24, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of ``count`` PNG and JPEG files, ``broken`` of them damaged, in sub-folders if ``nested``."""

    def make(count: int = 24, name: str = "images", *, nested: bool = False, broken: int = 0) -> Path:
        folder = tmp_path / name
        for number in range(count):
            place = folder / f"part{number % 3}" / "deeper" if nested else folder
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{number:03d}.{'jpg' if number % 2 else 'png'}"
            if number < broken:
                path.write_text("no image")
            else:
                Image.fromarray(random_image(number)).save(path)
        return folder

    return make


@pytest.fixture
def labeled() -> Any:
    """A data set of 32 images of two classes: dark ones and bright ones."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["dark", "bright"]))
    images = [Image.fromarray(random_image(number) // 4 + 180 * (number % 2)) for number in range(32)]
    return datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(32)]}, features=features)
