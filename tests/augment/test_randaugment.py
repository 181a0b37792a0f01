"""Pillow's own operations on 8-bit images are the reference, to the bit."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tpssl_hf.augment import color as color
from tpssl_hf.augment import randaugment
from tpssl_hf.augment.randaugment import (
    CUTOUT_DRAWS,
    OPERATION_DRAWS,
    OPERATIONS,
    RandAugmentPolicy,
    apply_operations,
    cutout,
    rand_augment,
    strengths,
)
from tpssl_hf.errors import InputError

LEVELS, SIGNS = range(1, 10), (-1, 1)
GRAY = (127, 127, 127)


def shifted(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GRAY)


# Of an image, a level of 10 and a sign; FixMatch's ranges, written down a second time.
PILLOW = {
    "AutoContrast": lambda image, v, s: ImageOps.autocontrast(image),
    "Brightness": lambda image, v, s: ImageEnhance.Brightness(image).enhance(0.05 + 0.9 * v / 10),
    "Color": lambda image, v, s: ImageEnhance.Color(image).enhance(0.05 + 0.9 * v / 10),
    "Contrast": lambda image, v, s: ImageEnhance.Contrast(image).enhance(0.05 + 0.9 * v / 10),
    "Equalize": lambda image, v, s: ImageOps.equalize(image),
    "Identity": lambda image, v, s: image,
    "Posterize": lambda image, v, s: ImageOps.posterize(image, 4 + int(4 * v / 10)),
    "Rotate": lambda image, v, s: image.rotate(s * 30 * v / 10, fillcolor=GRAY),
    "Sharpness": lambda image, v, s: ImageEnhance.Sharpness(image).enhance(0.05 + 0.9 * v / 10),
    "ShearX": lambda image, v, s: shifted(image, (1, s * 0.3 * v / 10, 0, 0, 1, 0)),
    "ShearY": lambda image, v, s: shifted(image, (1, 0, 0, s * 0.3 * v / 10, 1, 0)),
    "Solarize": lambda image, v, s: ImageOps.solarize(image, 256 - int(256 * v / 10)),
    "TranslateX": lambda image, v, s: shifted(image, (1, 0, s * 0.3 * v / 10 * image.width, 0, 1, 0)),
    "TranslateY": lambda image, v, s: shifted(image, (1, 0, 0, 0, 1, s * 0.3 * v / 10 * image.width)),
}


def as_images(arrays):
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().contiguous()


def as_image(image):
    return Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy())


def all_levels(images, name):
    """Every image at every level to either side in one batch, and Pillow's results."""
    combinations = list(product(range(len(images)), LEVELS, SIGNS))
    rows, levels, signs = (torch.tensor(column) for column in zip(*combinations, strict=True))
    operation = torch.full_like(rows, OPERATIONS.index(name))
    strength = strengths(operation, levels.double(), signs.double(), images.shape[-1])
    batch = [as_image(image) for image in images]
    expected = as_images([np.asarray(PILLOW[name](batch[row], v, s)) for row, v, s in combinations])
    return images[rows], operation, strength, expected


@pytest.fixture(params=["looking", "not looking"])
def _route(request, monkeypatch):
    """Both ways to compute: that of a CPU, which picks out rows, and that of a GPU."""
    if request.param == "not looking":
        monkeypatch.setattr(color, "host_can_look", lambda values: False)


@pytest.fixture
def images_of(photographs):
    def make(size):
        crops = [photograph.crop((100, 0, 527, 427)).resize((size, size)) for photograph in photographs]
        return as_images([np.asarray(crop) for crop in crops])

    return make


def numbers(count, columns, seed=0):
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))


def test_there_are_fourteen_operations():
    assert set(OPERATIONS) == set(PILLOW) and len(OPERATIONS) == 14


@pytest.mark.parametrize("size", [32, 33, 96])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.usefixtures("_route")
def test_equals_pillow(images_of, name, size):
    images, operation, strength, expected = all_levels(images_of(size), name)
    result = apply_operations(images.clone(), operation, strength)
    assert torch.equal(result, expected)
    assert result.dtype == torch.float32 and result.is_contiguous()
    assert torch.equal(expected, images) == (name == "Identity")


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast", "Color", "Sharpness"])
@pytest.mark.usefixtures("_route")
def test_equals_pillow_on_images_of_few_values(name):
    generator = np.random.default_rng(0)
    dark = generator.integers(3, 40, (32, 32, 3))
    two = np.where(generator.random((32, 32, 3)) < 0.1, 17, 200)
    rare = np.where(generator.random((32, 32, 3)) < 0.01, generator.integers(0, 256, (32, 32, 3)), 90)
    noise = generator.integers(0, 256, (32, 32, 3))
    flat = np.full((32, 32, 3), 77)
    images = as_images([image.astype(np.uint8) for image in (dark, two, rare, noise, flat)])
    images, operation, strength, expected = all_levels(images, name)
    assert torch.equal(apply_operations(images.clone(), operation, strength), expected)


@pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast", "Sharpness"])
def test_factors_above_one_equal_pillow(images_of, name):
    images = images_of(32)
    factors = torch.tensor([1.9, 1.4]).double()
    result = apply_operations(images.clone(), torch.full((2,), OPERATIONS.index(name)), factors)
    enhanced = [
        getattr(ImageEnhance, name)(as_image(image)).enhance(factor.item())
        for image, factor in zip(images, factors, strict=True)
    ]
    assert torch.equal(result, as_images([np.asarray(original) for original in enhanced]))


@pytest.mark.usefixtures("_route")
def test_each_image_of_a_batch_gets_its_own(images_of):
    alone = [all_levels(images_of(32), name) for name in OPERATIONS]
    images, operation, strength, expected = (torch.cat(parts) for parts in zip(*alone, strict=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    result = apply_operations(images[order], operation[order], strength[order])
    assert torch.equal(result, expected[order])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.usefixtures("_route")
def test_tiny_images(images_of, size):
    for name in OPERATIONS:
        images, operation, strength, expected = all_levels(images_of(size), name)
        assert torch.equal(apply_operations(images.clone(), operation, strength), expected), name


def drawn(monkeypatch, draws, policy):
    """The operations, levels and signs that come of ``draws``, a row per turn."""
    turns = []

    def record(operation, level, sign, size):
        turns.append((operation, level, sign))
        return strengths(operation, level, sign, size)

    monkeypatch.setattr(randaugment, "strengths", record)
    rand_augment(torch.zeros(len(draws), 3, 2, 2), draws, policy)
    return [torch.stack(column) for column in zip(*turns, strict=True)]


def test_operations_levels_and_signs_are_drawn_evenly(monkeypatch):
    count = 8000
    operation, level, sign = drawn(monkeypatch, numbers(count, RandAugmentPolicy().draws), RandAugmentPolicy())
    assert operation.shape == (2, count)
    for turn in range(2):
        shares = torch.bincount(operation[turn], minlength=14) / count
        assert shares[0].item() == pytest.approx(0.5 + 0.5 / 14, abs=0.025)
        assert (shares[1:] - 0.5 / 14).abs().max() < 0.01
        assert level[turn].unique().tolist() == list(LEVELS)
        assert (torch.bincount(level[turn].long(), minlength=10)[1:] / count - 1 / 9).abs().max() < 0.015
        assert sign[turn].unique().tolist() == [-1, 1]
        assert abs(sign[turn].mean()) < 0.05
    both = (operation != 0).all(dim=0).float().mean().item()
    assert both == pytest.approx((0.5 * 13 / 14) ** 2, abs=0.025)
    again = (operation[0] == operation[1])[(operation != 0).all(dim=0)].float().mean().item()
    assert again == pytest.approx(1 / 13, abs=0.03)  # with replacement
    for one, other in ((level[0], level[1]), (level[0], sign[0]), (operation[0].double(), level[0])):
        assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 0.05


def test_probability_and_number_of_operations_are_the_policys(monkeypatch, images_of):
    policy = RandAugmentPolicy(operations=3, probability=1.0)
    operation, _, _ = drawn(monkeypatch, numbers(4000, policy.draws), policy)
    assert operation.shape == (3, 4000)
    assert (operation == 0).float().mean().item() == pytest.approx(1 / 14, abs=0.02)
    images = images_of(32)
    for policy in (RandAugmentPolicy(operations=0), RandAugmentPolicy(probability=0.0)):
        assert torch.equal(rand_augment(images.clone(), numbers(2, policy.draws), policy), images)


@pytest.mark.parametrize(("value", "expected"), [(0.0, (0, 1, -1)), (1 - 2.0**-24, (13, 9, 1))])
def test_largest_and_smallest_numbers_are_within_range(monkeypatch, value, expected):
    policy = RandAugmentPolicy(operations=1, probability=1.0)
    assert tuple(column.item() for column in drawn(monkeypatch, torch.full((1, 4), value), policy)) == expected


@pytest.mark.usefixtures("_route")
def test_same_image_same_result_in_every_batch(images_of):
    policy = RandAugmentPolicy()
    images, draws = images_of(32).repeat(40, 1, 1, 1), numbers(80, policy.draws)
    together = rand_augment(images.clone(), draws, policy)
    assert (together != images).flatten(1).any(dim=1).float().mean() > 0.5
    for row in range(80):
        alone = rand_augment(images[row : row + 1].clone(), draws[row : row + 1], policy)
        assert torch.equal(alone[0], together[row])


def test_all_operations_leave_whole_numbers(images_of):
    policy = RandAugmentPolicy(operations=4, probability=1.0)
    result = rand_augment(images_of(32).repeat(50, 1, 1, 1), numbers(100, policy.draws), policy)
    assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 255


@pytest.mark.parametrize(
    ("middle", "rows", "columns"),
    [
        ((16, 16), (8, 24), (8, 24)),
        ((0, 0), (0, 8), (0, 8)),
        ((31, 31), (23, 32), (23, 32)),
        ((3, 20), (0, 11), (12, 28)),
    ],
)
def test_cutout_is_a_gray_square_cut_off_at_the_border(images_of, middle, rows, columns):
    images = images_of(32)[:1]
    result = cutout(images, (torch.tensor([middle]) + 0.5) / 32, 0.5)
    expected = images.clone()
    expected[:, :, slice(*rows), slice(*columns)] = 127
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("size", "share", "side"), [(32, 0.5, 16), (224, 0.5, 112), (32, 0.25, 8), (15, 1 / 3, 5)])
def test_side_of_the_cutout(size, share, side):
    result = cutout(torch.zeros(1, 3, size, size), torch.full((1, CUTOUT_DRAWS), 0.5), share)
    assert ((result == 127).all(dim=1).any(dim=1).sum(), (result == 127).any(dim=1).sum()) == (side, side**2)
    assert torch.equal(cutout(result, torch.full((1, CUTOUT_DRAWS), 0.5), 0.0), result)


def test_cutout_is_anywhere_and_each_images_own():
    size, count = 32, 4000
    hidden = (cutout(torch.zeros(count, 3, size, size), numbers(count, CUTOUT_DRAWS), 0.5) == 127).all(dim=1)
    area = hidden.flatten(1).sum(dim=1)
    assert area.min() == 8 * 8 and area.max() == 16 * 16
    seen = hidden.float().mean(dim=0)  # a middle within 8 pixels covers; there are fewer of those near the border
    assert seen[16, 16].item() == pytest.approx(0.25, abs=0.03)
    assert seen[0, 0].item() == pytest.approx((9 / 32) ** 2, abs=0.02)
    assert (seen - seen.T).abs().max() < 0.05


def test_empty_batch():
    policy = RandAugmentPolicy()
    images = rand_augment(torch.zeros(0, 3, 32, 32), torch.zeros(0, policy.draws), policy)
    assert cutout(images, torch.zeros(0, CUTOUT_DRAWS), 0.5).shape == (0, 3, 32, 32)


def test_the_policy_tells_how_many_numbers_it_takes():
    assert RandAugmentPolicy().draws == 2 * OPERATION_DRAWS + CUTOUT_DRAWS
    assert (RandAugmentPolicy().operations, RandAugmentPolicy().probability, RandAugmentPolicy().cutout) == (
        2,
        0.5,
        0.5,
    )


@pytest.mark.parametrize("change", [{"operations": -1}, {"probability": 1.5}, {"cutout": -0.1}])
def test_policies_that_cannot_be_used_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        RandAugmentPolicy(**change)
