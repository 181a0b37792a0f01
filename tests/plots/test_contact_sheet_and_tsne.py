from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tpssl_hf.analysis.tsne import draw_tsne, joint_tsne
from tpssl_hf.errors import InputError
from tpssl_hf.plots.contact_sheet import draw_contact_sheet


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_every_image_is_on_the_sheet_in_its_own_color_and_shape(tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    shapes = [(20, 20), (10, 20), (200, 50)]
    images = [np.full((*shape, 3), color, dtype=np.uint8) for shape, color in zip(shapes, colors, strict=True)]
    draw_contact_sheet(tmp_path / "sheet.png", images, [("1", "a.png"), ("2", "b.png"), ("3", "x" * 90)])
    seen = pixels_of(tmp_path / "sheet.png")
    areas = [int((seen == color).all(axis=2).sum()) for color in colors]
    assert areas == [128 * 128, 128 * 64, 128 * 32]


@pytest.mark.parametrize("count", [1, 9, 41])
def test_a_sheet_of_any_number_of_images_can_be_drawn(count: int, tmp_path: Path) -> None:
    images = [np.zeros((8, 8, 3), dtype=np.uint8)] * count
    draw_contact_sheet(tmp_path / "sheet.png", images, [(str(n), "row 1") for n in range(count)])
    black = (pixels_of(tmp_path / "sheet.png") == 0).all(axis=2).sum()
    assert count * 128 * 128 <= black < count * 128 * 168


def test_names_that_are_too_long_stay_within_their_cell(tmp_path: Path) -> None:
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    draw_contact_sheet(tmp_path / "sheet.png", [white], [("1", "a/very/long/path/to/some/image_0001.png")])
    seen = pixels_of(tmp_path / "sheet.png")
    assert seen.shape[1] == 148 and (seen[:, -9:] == 255).all(), "nothing is written into the margin"


def test_one_plane_holds_all_backbones_and_keeps_clusters_together() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1], 20)
    features = [(random.normal(0, 0.1, (40, 6)) + 5 * groups[:, None]).astype(np.float32) for _ in range(2)]
    placed = joint_tsne(features, perplexity=8, seed=0)
    assert [points.shape for points in placed] == [(40, 2), (40, 2)]
    for points in placed:
        middles = [points[groups == group].mean(axis=0) for group in (0, 1)]
        within = max(np.linalg.norm(points[groups == g] - middles[g], axis=1).mean() for g in (0, 1))
        assert np.linalg.norm(middles[0] - middles[1]) > 2 * within
    assert all(np.array_equal(a, b) for a, b in zip(placed, joint_tsne(features, perplexity=8, seed=0), strict=True))


def test_backbones_of_different_width_and_a_perplexity_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="8, 4 dimensions"):
        joint_tsne([np.zeros((9, 8)), np.zeros((9, 4))], perplexity=2, seed=0)
    with pytest.raises(InputError, match="below the 18 features"):
        joint_tsne([np.zeros((9, 8)), np.zeros((9, 8))], perplexity=18, seed=0)


@pytest.mark.parametrize("classes", [3, 14, 30])
def test_panels_are_drawn_with_and_without_labels(classes: int, tmp_path: Path) -> None:
    points = [np.random.default_rng(n).normal(n, 1, (30, 2)) for n in range(2)]
    labels = np.arange(30) % (classes + 1) - 1
    draw_tsne(tmp_path / "tsne.png", points, ["before", "after"], labels, [f"class {n}" for n in range(classes)])
    assert pixels_of(tmp_path / "tsne.png").std() > 0
