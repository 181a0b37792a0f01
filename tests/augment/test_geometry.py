import numpy as np
import pytest
import torch
from PIL import Image

from tpssl_hf.augment.geometry import (
    CROP_DRAWS,
    _crop_by_matrices,
    _crop_one_by_one,
    central_boxes,
    normalized_boxes,
    random_resized_crop_boxes,
)

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
CROPS = {"on the host": _crop_one_by_one, "on a device": _crop_by_matrices}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(params=CROPS)
def crop(request):
    return CROPS[request.param]


def smooth(side):
    ramp = np.linspace(0, 255, side)
    return np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=2).round().astype(np.uint8)


def as_array(images):
    return images.permute(0, 2, 3, 1).numpy()


def boxes_of(count, size):
    sizes = torch.tensor([size]).expand(count, 2)
    numbers = torch.rand(count, CROP_DRAWS, generator=torch.Generator().manual_seed(0))
    return random_resized_crop_boxes(numbers, sizes, SCALE, RATIO)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("source", "size"), [(32, 64), (32, 224), (256, 224), (500, 64)])
def test_equals_pillow(crop, photographs, source, size, interpolation):
    real = np.asarray(photographs[0].resize((source, source)))
    pixels = torch.from_numpy(np.stack([smooth(source), real]))
    boxes = torch.tensor([[0, 0, source, source], [source // 5, source // 7, source - 3, source // 2]])
    result = as_array(crop(pixels, boxes, torch.tensor([False, False]), size, interpolation))
    for image, box, ours in zip(pixels.numpy(), boxes.tolist(), result, strict=True):
        expected = Image.fromarray(image).crop(box).resize((size, size), FILTERS[interpolation])
        difference = np.abs(np.asarray(expected).astype(float) - ours)
        # Both round between the two axes and a value in thousands that falls on either side can add up to 2 levels.
        assert difference.max() <= 2
        assert (difference > 1).mean() < 1e-3
        assert difference.mean() < 0.1


@pytest.mark.parametrize("interpolation", FILTERS)
def test_nothing_outside_the_box_shows(crop, interpolation):
    pixels = torch.full((1, 40, 50, 3), 255, dtype=torch.uint8)
    pixels[:, 10:20, 5:30] = 100
    result = crop(pixels, torch.tensor([[5, 10, 30, 20]]), torch.tensor([False]), 16, interpolation)
    assert (result == 100).all()


def test_flip_mirrors_left_to_right_only_where_asked(crop, photographs):
    pixels = torch.from_numpy(np.array(photographs[1].resize((40, 30)))).repeat(2, 1, 1, 1)
    boxes = torch.tensor([[3, 2, 33, 28]]).repeat(2, 1)
    plain, mirrored = crop(pixels, boxes, torch.tensor([False, True]), 24, "bicubic")
    assert (mirrored - plain.flip(-1)).abs().max() <= 1
    assert (mirrored - plain).abs().max() > 20


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(crop, size):
    pixels = torch.randint(0, 256, (4, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = crop(pixels, boxes_of(4, size), torch.tensor([True, False] * 2), 8, "bicubic")
    assert result.shape == (4, 3, 8, 8)
    assert ((result >= 0) & (result <= 255)).all()
    if size == (1, 1):
        assert (result == pixels.permute(0, 3, 1, 2)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (32, 32), (100, 64), (20, 300), (427, 640)])
def test_boxes_lie_inside_the_image(size):
    left, top, right, bottom = boxes_of(2000, size).unbind(1)
    assert ((left >= 0) & (left < right) & (right <= size[1])).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= size[0])).all()


def test_boxes_follow_torchvisions_distribution():
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    transform, image = RandomResizedCrop(8, SCALE, RATIO), torch.empty(3, 150, 200)
    theirs = [transform.make_params([image]) for _ in range(3000)]
    theirs = torch.tensor([[p["left"], p["top"], p["width"], p["height"]] for p in theirs]).double()
    ours = boxes_of(3000, (150, 200)).double()
    ours[:, 2:] -= ours[:, :2]
    assert (ours[:, 2:].prod(dim=1).mean() / theirs[:, 2:].prod(dim=1).mean()).item() == pytest.approx(1, abs=0.05)
    for column in range(4):
        values = torch.cat((ours[:, column], theirs[:, column])).unique()
        shares = [(sample[:, column, None] <= values).double().mean(dim=0) for sample in (ours, theirs)]
        # Kolmogorov and Smirnov: equal distributions differ by this much once in 10,000 times.
        assert (shares[0] - shares[1]).abs().max() < 2.23 * (2 / 3000) ** 0.5


def test_extreme_numbers_stay_inside():
    largest = torch.full((1, CROP_DRAWS), 1 - 2.0**-24)
    for numbers in (largest, torch.zeros(1, CROP_DRAWS)):
        left, top, right, bottom = random_resized_crop_boxes(numbers, torch.tensor([[30, 40]]), SCALE, RATIO)[
            0
        ].tolist()
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 100), [43, 0, 56, 10]), ((100, 10), [0, 43, 10, 56]), ((30, 30), [0, 0, 30, 30])]
)
def test_falls_back_to_the_largest_permitted_central_box(size, expected):
    numbers = torch.full((1, CROP_DRAWS), 0.5)
    boxes = random_resized_crop_boxes(numbers, torch.tensor([size]), (1.0, 1.0), RATIO)
    assert boxes.tolist() == [expected]


def test_central_boxes():
    assert central_boxes(torch.tensor([[4, 10], [11, 4], [5, 5]])).tolist() == [
        [3, 0, 7, 4],
        [0, 3, 4, 7],
        [0, 0, 5, 5],
    ]


def test_normalized_boxes_swap_ends_where_flipped():
    boxes = torch.tensor([[10, 5, 30, 20], [10, 5, 30, 20]])
    result = normalized_boxes(boxes, torch.tensor([False, True]), torch.tensor([[20, 40], [20, 40]]))
    assert result.tolist() == [[0.25, 0.25, 0.75, 1.0], [0.75, 0.25, 0.25, 1.0]]


def test_geometry_tells_where_a_pixel_of_the_view_came_from(crop):
    """An image whose red channel is its column number: the view must show the column that its geometry names."""
    pixels = torch.zeros(2, 200, 200, 3, dtype=torch.uint8)
    pixels[..., 0] = torch.arange(200)
    boxes, flip = torch.tensor([[20, 10, 120, 150], [20, 10, 120, 150]]), torch.tensor([False, True])
    view = crop(pixels, boxes, flip, 50, "bilinear")[:, 0]
    start, _, end, _ = normalized_boxes(boxes, flip, torch.tensor([[200, 200]] * 2))[:, :, None].unbind(1)
    named = (start + (torch.arange(50) + 0.5) * (end - start) / 50) * 200 - 0.5
    assert (view[:, 25, 1:-1] - named[:, 1:-1]).abs().max() <= 1
