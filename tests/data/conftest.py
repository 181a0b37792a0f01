"""Small images and data sets of every kind, made where the test runs."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

CLASS_NAMES = ["cat", "dog", "fox"]


def _image(number: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="session")
def image() -> Callable[..., np.ndarray]:
    """Random pixels (H, W, 3), the same for the same number."""
    return _image


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """The bytes of an image file."""
    return _encode


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    # `datasets` waits several seconds at the end of every epoch of streamed parquet, and when a stream is closed
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of ``count`` PNG files of three different sizes."""

    def make(count: int, name: str = "images") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            size = [(20, 24), (31, 17), (64, 48)][number % 3]
            (folder / f"{number:04d}.png").write_bytes(_encode(_image(number, *size)))
        return folder

    return make


@pytest.fixture
def table() -> Callable[..., datasets.Dataset]:
    """Make a data set of ``count`` encoded images with class labels; image ``n`` is filled with the value n."""

    def make(count: int, first: int = 0, label_of: Callable[[int], Any] = lambda number: number % 3) -> Any:
        numbers = range(first, first + count)
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASS_NAMES))
        cells = [{"bytes": _encode(np.full((8, 9, 3), n % 256, np.uint8)), "path": None} for n in numbers]
        return datasets.Dataset.from_dict({"image": cells, "label": [label_of(n) for n in numbers]}, features=features)

    return make
