"""The size of the images where a budget decides."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import Accelerator

from tpssl_hf.tasks import budgeted_size
from tpssl_hf.tasks.budgeted_size import budgeted_data
from tpssl_hf.tasks.pretrain.config import parse_pretrain


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine that takes 10 ms for an image of 64 pixels; the sides it was timed with."""
    sides: list[int] = []

    def seconds_per_image(data: Any, model: Any, side: int, processes: int) -> float:
        sides.append(side)
        return 0.01

    monkeypatch.setattr(budgeted_size, "seconds_per_image", seconds_per_image)
    return sides


def size(folder: Path, images: float = 10_000, **keys: Any) -> int:
    named = {"dataset": "digits", "config": None, "backbone": "resnet18", "output_dir": str(folder), **keys}
    args = parse_pretrain({name: value for name, value in named.items() if value is not None})
    return budgeted_data(args, Accelerator(cpu=True), images).image_size


@pytest.mark.parametrize(
    ("budget", "side"), [("30s", 64), ("170s", 64), ("10m", 96), ("20m", 160), ("30m", 192), ("1h", 224)]
)
def test_a_longer_budget_has_larger_images(measured: list[int], tmp_path: Path, budget: str, side: int) -> None:
    assert size(tmp_path, budget=budget) == side and measured == [64]


def test_it_is_said_and_can_be_overruled(
    measured: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert size(tmp_path, budget="10m") == 96
    assert "images of 96 px: the 224 px of the weights" in capsys.readouterr().out
    assert size(tmp_path, budget="10m", image_size=224) == 224
    assert size(tmp_path) == 224 and measured == [64]


def test_vision_transformers_and_small_weights_keep_their_own(measured: list[int], tmp_path: Path) -> None:
    assert size(tmp_path, budget="1m", backbone="vit_tiny_patch16_224") == 224
    assert not measured


def test_a_run_that_has_begun_keeps_its_size(measured: list[int], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"budget": "10m", "max_steps": 7, "image_size": 128}))
    assert size(tmp_path, budget="10m") == 128 and not measured
    assert size(tmp_path, budget="20m") == 160
