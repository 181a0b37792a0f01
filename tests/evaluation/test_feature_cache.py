from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation import feature_cache as module
from tpssl_hf.evaluation.feature_cache import features_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return load_image_cache(
        load_source("digits", split="test"),
        image_size=32,
        cache_budget=2**30,
        num_workers=1,
        progress=False,
        cache_dir=tmp_path_factory.mktemp("images"),
        limit_images=24,
    )[0]


@pytest.fixture
def asked(store: ImageCache, tmp_path: Path) -> dict[str, Any]:
    return {
        "store": store,
        "indices": np.arange(20),
        "backbone": "test_resnet",
        "init": "random",
        "image_size": 32,
        "device": torch.device("cpu"),
        "cache_dir": tmp_path,
    }


def test_the_second_time_nothing_is_computed(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = features_of(**asked)
    monkeypatch.setattr(module, "extract_features", None)
    second = features_of(**asked)
    assert not first.cached and second.cached
    assert np.array_equal(first.values, second.values) and first.origin == second.origin
    assert first.values.shape[0] == 20 and first.values.dtype == np.float32


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"image_size": 48}, {"statistics": "store"}, {"indices": np.arange(1, 21)}]
)
def test_whatever_changes_the_numbers_is_computed_anew(asked: dict[str, Any], change: dict[str, Any]) -> None:
    change = {name: asked[value] if isinstance(value, str) else value for name, value in change.items()}
    first, other = features_of(**asked), features_of(**asked | change)
    assert not other.cached
    assert not np.array_equal(first.values, other.values)


def test_statistics_measured_anew_are_not_those_of_random_weights(asked: dict[str, Any]) -> None:
    kept, measured = features_of(**asked).values, features_of(**asked, statistics=asked["store"]).values
    assert not np.allclose(kept, measured, rtol=0.01)


def test_statistics_of_other_images_are_kept_apart(asked: dict[str, Any], tmp_path: Path) -> None:
    others = load_image_cache(
        load_source("digits", split="train"),
        image_size=32,
        cache_budget=2**30,
        num_workers=1,
        progress=False,
        cache_dir=tmp_path / "images",
        limit_images=24,
    )[0]
    own, other = features_of(**asked, statistics=asked["store"]), features_of(**asked, statistics=others)
    assert not other.cached and not np.array_equal(own.values, other.values)
    assert features_of(**asked, statistics=others).cached


def test_nothing_half_written_stays(asked: dict[str, Any], tmp_path: Path) -> None:
    features_of(**asked)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def spoil(file: Path) -> None:
    values = np.load(file)
    values[3, 1] = np.nan
    np.save(file, values)


def fewer(file: Path) -> None:
    np.save(file, np.load(file)[:5])


@pytest.mark.parametrize("damage", [truncate, spoil, fewer])
def test_damaged_features_are_computed_again(damage: Any, asked: dict[str, Any], tmp_path: Path) -> None:
    first = features_of(**asked)
    (file,) = tmp_path.iterdir()
    damage(file)
    again = features_of(**asked)
    assert not again.cached and np.array_equal(again.values, first.values) and features_of(**asked).cached


def test_features_that_are_not_finite_are_refused_and_not_kept(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "extract_features", lambda *_: np.array([[0.0, 1.0], [np.inf, 1.0], [0.0, np.nan]]))
    with pytest.raises(
        InputError, match="test_resnet with init random makes numbers that are not finite of 2 of 3 images"
    ):
        features_of(**asked)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_there_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"is not random, timm"):
        features_of(**asked | {"init": "./nowhere"})
