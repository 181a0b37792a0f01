from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.plots.training import draw_curves, draw_views, headline


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


def test_curves_show_health_where_it_was_logged(tmp_path: Path) -> None:
    entries: list[dict[str, float | None]] = [{"step": step, "loss": 1.0} for step in range(1, 7)]
    draw_curves(tmp_path / "without.png", entries)
    for entry in entries[1::2]:
        entry |= {"health_effective_rank": 60.0, "health_uniformity": -2.0, "health_alignment": 1.0, "health_new": 0.0}
    entries[-1]["health_uniformity"] = None  # as a check of features that are not finite leaves it
    draw_curves(tmp_path / "with.png", entries)
    with Image.open(tmp_path / "without.png") as one, Image.open(tmp_path / "with.png") as other:
        assert other.size[1] == 2 * one.size[1], "three more plots, a second row"


def test_the_headline_says_what_how_far_and_whether_it_is_healthy(tmp_path: Path) -> None:
    entries: list[dict[str, float | None]] = [{"step": step, "loss": 1.0} for step in (10, 1200)]
    assert headline("moco, resnet18 on photos", []) == "moco, resnet18 on photos"
    assert headline("moco", [*entries, {"step": 1300, "drift": 0.1}]) == "moco, 1,200 steps"
    entries[0]["health_collapsed"] = 0.0
    assert headline("moco", entries) == "moco, 1,200 steps, healthy at step 10"
    entries[1]["health_collapsed"] = 1.0
    assert headline("moco", entries) == "moco, 1,200 steps, COLLAPSED at step 1,200"
    draw_curves(tmp_path / "without.png", entries)
    draw_curves(tmp_path / "with.png", entries, what="moco")
    assert (
        colors(tmp_path / "with.png")
        and (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    )
