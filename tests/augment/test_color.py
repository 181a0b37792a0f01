"""The same functions of torchvision on float tensors are the reference; tolerances are in levels of 255."""

from itertools import permutations

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision_functional

from tpssl_hf.augment import color as color

NAMES = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
IDENTITY = (1.0, 1.0, 1.0, 0.0)


def torchvision_jitter(images, stages, factors):
    """Apply torchvision's functions in the order in which ``stages`` gives them their turns."""
    images = images / 255
    for operation in sorted(range(4), key=lambda operation: stages[operation]):
        images = getattr(torchvision_functional, NAMES[operation])(images, factors[operation])
    return images * 255


def ours(images, stages, factors):
    batch = len(images)
    factors = torch.tensor([factors] * batch) if not isinstance(factors, torch.Tensor) else factors
    steps = color.jitter_steps(torch.tensor([stages] * batch), factors[:, :3])
    return color.jitter(images.clone(), steps, factors[:, 3])


@pytest.mark.parametrize(
    ("operation", "factor"),
    [(0, 0.6), (0, 1.4), (0, 0.0), (1, 0.6), (1, 1.4), (1, 0.0), (2, 0.8), (2, 1.2), (2, 0.0)]
    + [(3, shift) for shift in (-0.5, -0.1, -0.02, 0.02, 0.1, 0.37, 0.5)],
)
def test_each_operation_alone(images, operation, factor):
    factors = [*IDENTITY]
    factors[operation] = factor
    expected = getattr(torchvision_functional, NAMES[operation])(images / 255, factor) * 255
    assert (expected - images).abs().max() > 5
    assert (ours(images, (0, 1, 2, 3), tuple(factors)) - expected).abs().max() < 2e-2


@pytest.mark.parametrize("stages", list(permutations(range(4))))
def test_all_orders(images, stages):
    factors = (1.4, 1.3, 0.8, 0.09)
    expected = torchvision_jitter(images, stages, factors)
    assert (ours(images, stages, factors) - expected).abs().max() < 2e-2


def test_the_order_matters(images):
    factors = (1.4, 1.3, 0.8, 0.09)
    results = torch.stack([ours(images, stages, factors) for stages in permutations(range(4))])
    assert (results[:, None] - results[None]).abs().amax(dim=(2, 3, 4, 5)).gt(0.5).sum() > 0.9 * 24 * 23


def test_each_image_has_its_own_order_and_factors(images):
    stages = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
    factors = torch.tensor([[0.7, 1.2, 1.1, -0.1], [1.3, 0.7, 0.9, 0.05], [1.0, 1.4, 1.2, 0.1]])
    steps = color.jitter_steps(stages, factors[:, :3])
    together = color.jitter(images.clone(), steps, factors[:, 3])
    for row in range(3):
        expected = torchvision_jitter(images[row : row + 1], stages[row].tolist(), factors[row].tolist())
        assert (together[row] - expected[0]).abs().max() < 2e-2


def test_hue_of_grays_and_primaries():
    values = torch.tensor([[0.0, 0, 0], [255, 255, 255], [128, 128, 128], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    images = values[:, :, None, None].expand(-1, -1, 2, 2).contiguous()
    third = color.shift_hue(images, torch.full((6,), 1 / 3))[:, :, 0, 0]
    assert torch.allclose(third[:3], values[:3], atol=1e-3)
    assert torch.allclose(third[3:], values[[4, 5, 3]], atol=1e-2)


def test_hue_of_every_kind_of_color():
    levels = torch.linspace(0, 255, 9)
    images = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27)
    for shift in (-0.5, -0.21, 0.0, 0.05, 0.5):
        expected = torchvision_functional.adjust_hue(images / 255, shift) * 255
        assert (color.shift_hue(images.clone(), torch.tensor([shift])) - expected).abs().max() < 2e-2


def test_grayscale(images):
    expected = torchvision_functional.rgb_to_grayscale(images / 255, 3) * 255
    assert (color.grayscale(images) - expected).abs().max() < 1e-3


def test_solarize(images):
    expected = torchvision_functional.solarize(images.to(torch.uint8), 128)
    assert torch.equal(color.solarize(images.floor()), expected.float())


@pytest.mark.parametrize(("size", "width"), [(224, 23), (96, 9), (64, 7), (32, 3), (8, 1), (1, 1)])
def test_blur_width_is_the_odd_number_near_a_tenth(size, width):
    assert color.blur_width(size) == width


@pytest.mark.parametrize("width", [1, 3, 7, 23])
@pytest.mark.parametrize("route", ["host", "device"])
def test_blur(images, width, route, monkeypatch):
    monkeypatch.setattr(color, "host_can_look", lambda values: route == "host")
    sigma = torch.tensor([0.1, 1.05, 2.0])
    blurred = color.gaussian_blur(images, sigma, width)
    for row in range(3):
        expected = torchvision_functional.gaussian_blur(images[row], [width] * 2, [sigma[row].item()] * 2)
        assert (blurred[row] - expected).abs().max() < 2e-2


def test_only_chosen_images_change_on_either_route(images, monkeypatch):
    chosen = torch.tensor([False, True, False])
    parameters = torch.tensor([1.0, 2.0, 3.0])
    for route in ("host", "device"):
        monkeypatch.setattr(color, "host_can_look", lambda values, route=route: route == "host")
        result = color.where_chosen(chosen, lambda i, p: i.mul_(p[:, None, None, None]), images.clone(), parameters)
        assert torch.equal(result[[0, 2]], images[[0, 2]])
        assert torch.equal(result[1], images[1] * 2)
