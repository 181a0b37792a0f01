from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.plots.headline import headline
from tpssl_hf.plots.training import draw_curves, draw_views


def colors(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


def test_views_show_originals_without_padding_and_views_without_normalization(tmp_path: Path) -> None:
    pixels = torch.zeros(2, 10, 10, 3, dtype=torch.uint8)
    pixels[:, :, :, 2] = 255  # padding is blue and must not be shown
    pixels[0, :6, :4] = torch.tensor([255, 0, 0])
    pixels[1] = torch.tensor([255, 0, 0])
    images = ImageBatch(pixels, torch.tensor([[6, 4], [10, 10]]), torch.arange(2), torch.zeros(2, dtype=torch.int64))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    green = (torch.tensor([0.0, 1.0, 0.0]) - torch.tensor(mean)) / torch.tensor(std)
    views = {"view1": green.view(1, 3, 1, 1).expand(2, 3, 8, 8), "geometry1": torch.zeros(2, 4)}
    draw_views(tmp_path / "views.png", images, views, mean=mean, std=std)
    seen = colors(tmp_path / "views.png")
    assert (255, 0, 0) in seen and (0, 255, 0) in seen and (0, 0, 255) not in seen


def test_curves_pass_over_missing_values_and_an_empty_log(tmp_path: Path) -> None:
    draw_curves(tmp_path / "none.png", [])
    entries = [{"step": s, "loss": None if s == 2 else 1.0 / (s + 1), "drift": 0.1 * s} for s in range(5)]
    draw_curves(tmp_path / "some.png", entries)
    with Image.open(tmp_path / "some.png") as image:
        assert image.size[0] > 600


def test_crops_are_drawn_on_the_original_and_the_edge_of_the_crop_on_warped_views(tmp_path: Path) -> None:
    pixels = torch.full((2, 10, 10, 3), 255, dtype=torch.uint8)
    images = ImageBatch(pixels, torch.tensor([[10, 10], [10, 10]]), torch.arange(2), torch.zeros(2, dtype=torch.int64))
    white, identity = torch.ones(2, 3, 8, 8), torch.eye(3).expand(2, 3, 3)
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.8], [0.8, 0.2, 0.2, 0.8]])

    def inked(**fields: torch.Tensor) -> int:
        views = {"view1": white, **fields}
        draw_views(tmp_path / "views.png", images, views, mean=(0.0,) * 3, std=(1.0,) * 3)
        with Image.open(tmp_path / "views.png") as image:
            seen = np.asarray(image.convert("RGB")).astype(int)
        return int((abs(seen - [0xF0, 0xE4, 0x42]).max(axis=2) < 8).sum())

    assert inked() == 0
    crops = inked(geometry1=boxes)
    assert crops > 100
    assert inked(geometry1=boxes, affine1=identity) == crops
    assert inked(geometry1=boxes, affine1=identity * torch.tensor([0.5, 0.5, 1.0])) > crops + 100


def test_four_plots_come_first_and_the_others_have_a_picture_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    titled = Axes.set_title

    def noted(axis: Axes, title: str, **options: Any) -> Any:
        if axis.get_subplotspec().is_first_row() and axis.get_subplotspec().is_first_col():
            shown.append([])
        shown[-1].append(title)
        return titled(axis, title, **options)

    monkeypatch.setattr(Axes, "set_title", noted)
    entries: list[dict[str, float | None]] = [
        {"step": step, "loss": 1.0, "loss_labeled": 1.0, "images_per_second": 9.0} for step in range(1, 7)
    ]
    draw_curves(tmp_path / "curves.png", entries)
    assert shown == [["loss", "images per second"]], "the loss of labeled images is all of the loss"
    assert not (tmp_path / "curves_more.png").exists()
    for entry in entries[1::2]:
        entry |= {"health_embedding_std": 0.6, "health_uniformity": -2.0, "health_alignment": 1.0, "health_new": 0.0}
        entry |= {"drift": 0.1, "choosing_accuracy": 0.5, "stage_drift/one": 0.1, "loss_labeled": 0.9}
    entries[-1]["health_uniformity"] = None  # as a check of features that are not finite leaves it
    shown.clear()
    draw_curves(tmp_path / "curves.png", entries)
    first, more = shown
    assert [title.split(" ")[0] for title in first] == ["right", "loss", "std", "drift"]
    assert more[0] == "loss of labeled images" and more[-1].endswith("by stage") and len(more) == 5
    with Image.open(tmp_path / "curves.png") as one, Image.open(tmp_path / "curves_more.png") as other:
        assert one.size[0] == other.size[0] > 1000
    draw_curves(tmp_path / "curves.png", entries[:1])
    assert not (tmp_path / "curves_more.png").exists(), "it was of another log"


def test_the_headline_says_what_how_far_and_whether_it_is_healthy(tmp_path: Path) -> None:
    entries: list[dict[str, float | None]] = [{"step": step, "loss": 1.0} for step in (10, 1200)]
    assert headline("moco, resnet18 on photos", []) == "moco, resnet18 on photos"
    assert headline("moco", [*entries, {"step": 1300, "drift": 0.1}]) == "moco, 1,200 steps"
    entries[0]["health_collapsed"] = 0.0
    assert headline("moco", entries) == "moco, 1,200 steps, healthy at step 10"
    entries[1]["health_collapsed"] = 1.0
    assert headline("moco", entries) == "moco, 1,200 steps, COLLAPSED at step 1,200"
    draw_curves(tmp_path / "with.png", entries, what="moco")
    assert (0xD5, 0x5E, 0x00) in colors(tmp_path / "with.png"), "the headline in its color of alarm"
