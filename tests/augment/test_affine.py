import math
from dataclasses import replace

import pytest
import torch

from tpssl_hf.augment.affine import (
    AFFINE_DRAWS,
    AffinePolicy,
    draw_affine,
    invert,
    key_mask,
    unwarp,
    validity,
    warp,
)
from tpssl_hf.augment.pretrain_views import (
    PIXPRO_VIEW_1,
    PIXPRO_VIEW_2,
    ViewSettings,
    two_affine_views,
    two_views,
)
from tpssl_hf.errors import InputError

POLICIES = PIXPRO_VIEW_1, PIXPRO_VIEW_2
SETTINGS = ViewSettings(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=3)
COMPONENTS = ("scale", "rotation", "shear", "translation")


def numbers(count, seed=0):
    return torch.rand(count, AFFINE_DRAWS, generator=torch.Generator().manual_seed(seed))


def only(component, **changes):
    """A policy that always draws one component and never anything visible of the others."""
    off = {"scale": (1.0, 1.0), "rotation": 0.0, "shear": 0.0, "translation": 0.0}
    return replace(AffinePolicy(probability=1.0), **{k: v for k, v in off.items() if k != component}, **changes)


def rotation(degrees):
    draws = torch.ones(1, AFFINE_DRAWS)
    draws[:, :4] = 0
    return draw_affine(draws, only("rotation", rotation=degrees))


def smooth(height, width):
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    return torch.stack(torch.broadcast_tensors(x, y, x * y, torch.cos(x + y)))[None]


def test_nothing_drawn_is_exactly_the_identity():
    matrix = draw_affine(numbers(64), AffinePolicy(probability=0.0))
    assert torch.equal(matrix, torch.eye(3).expand(64, 3, 3))


def test_each_component_comes_half_of_the_time_and_by_itself():
    count = 4000
    matrix = draw_affine(numbers(count), AffinePolicy())
    moved = (matrix[:, :2, 2] != 0).all(dim=1)
    assert torch.equal(moved, (matrix[:, :2, 2] != 0).any(dim=1))  # one coin for both
    plain = (matrix[:, :2, :2] == torch.eye(2)).all(dim=2).all(dim=1)
    assert moved.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert plain.float().mean().item() == pytest.approx(1 / 8, abs=0.02)
    assert (plain & ~moved).float().mean().item() == pytest.approx(1 / 16, abs=0.02)
    for component in COMPONENTS[:3]:
        alone = draw_affine(numbers(count), replace(only(component), probability=0.5))
        on = (alone[:, :2, :2] != torch.eye(2)).flatten(1).any(dim=1)
        assert on.float().mean().item() == pytest.approx(0.5, abs=0.03), component


def test_ranges_are_kept_and_filled():
    count = 4000
    scale = draw_affine(numbers(count), only("scale"))[:, 0, 0]
    assert scale.min() >= 0.8 and scale.max() <= 1.25
    assert scale.log().mean().item() == pytest.approx(0.0, abs=0.01)  # as often half as large as twice
    turned = draw_affine(numbers(count), only("rotation"))
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).rad2deg()
    assert angle.abs().max() <= 30.001 and angle.min() < -29 and angle.max() > 29
    sheared = draw_affine(numbers(count), only("shear"))
    assert sheared[:, [0, 1], [1, 0]].abs().max() <= math.tan(math.radians(15)) + 1e-6
    assert (sheared[:, [0, 1], [0, 1]] == 1).all()
    moved = draw_affine(numbers(count), only("translation"))[:, :2, 2]
    assert 0.19 < moved.abs().max() <= 0.2
    everything = draw_affine(numbers(count), AffinePolicy())
    determinant = torch.linalg.det(everything)
    assert determinant.min() > 0.55 and determinant.max() < 1.7


def test_matrix_is_translation_after_rotation_after_shear_after_scaling():
    draws = numbers(16)
    draws[:, :4] = 0
    together = draw_affine(draws, AffinePolicy())
    scale, turn, shear, move = (draw_affine(draws, only(component)) for component in COMPONENTS)
    torch.testing.assert_close(together, move @ turn @ shear @ scale)


def test_inverse():
    matrix = draw_affine(numbers(64), AffinePolicy(probability=1.0))
    torch.testing.assert_close(matrix @ invert(matrix), torch.eye(3).expand(64, 3, 3), atol=1e-5, rtol=0)


def test_four_quarter_turns_are_the_identity():
    maps, turn = torch.rand(1, 2, 9, 9), rotation(90.0)
    turned = warp(maps, turn)
    # y points down, so x turns towards y clockwise, which is torch.rot90 with -1
    torch.testing.assert_close(turned, torch.rot90(maps, -1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(warp(warp(turned, turn), turn), turn), maps, atol=1e-5, rtol=0)
    torch.testing.assert_close(unwarp(turned, turn), maps, atol=1e-5, rtol=0)


def test_a_bright_pixel_lands_where_the_matrix_says():
    """With sampling matrices the wrong way round it would land at T⁻¹ p."""
    side = 21
    for seed in range(20):
        matrix = draw_affine(numbers(1, seed), AffinePolicy(probability=1.0))
        maps = torch.zeros(1, 1, side, side)
        row, column = 7, 12
        maps[0, 0, row, column] = 1.0
        point = torch.tensor([(2 * column + 1) / side - 1, (2 * row + 1) / side - 1, 1.0])
        expected = ((matrix[0] @ point)[:2] + 1) * side / 2 - 0.5
        warped = warp(maps, matrix)[0, 0]
        weights = warped / warped.sum()
        x = (weights.sum(dim=0) * torch.arange(side)).sum()
        y = (weights.sum(dim=1) * torch.arange(side)).sum()
        assert torch.dist(torch.stack((x, y)), expected) < 0.35
        back = unwarp(warp(maps, matrix), matrix)[0, 0]
        assert divmod(int(back.argmax()), side) == (row, column)


def test_rotations_of_oblong_images_keep_angles_between_pixels():
    draws = torch.ones(1, AFFINE_DRAWS)
    draws[:, :4] = 0
    height, width = 10, 20
    matrix = draw_affine(draws, only("rotation", rotation=90.0), width / height)[0]
    pixels = torch.diag(torch.tensor([width / 2, height / 2, 1.0]))
    in_pixels = pixels @ matrix @ pixels.inverse()
    torch.testing.assert_close(in_pixels[:2, :2], torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (20, 36)])
def test_unwarping_a_warped_smooth_map_returns_it_where_it_is_valid(size):
    matrix = draw_affine(numbers(200), AffinePolicy(probability=1.0), size[1] / size[0])
    maps = smooth(*size).expand(200, -1, -1, -1)
    error = (unwarp(warp(maps, matrix), matrix) - maps).abs().amax(dim=1, keepdim=True)
    sure = validity(matrix, *size) >= 0.999
    assert sure.float().mean() > 0.4
    assert error[sure].max() < 0.01
    assert error[~sure].max() > 0.2  # the mask is what makes the difference


def test_at_the_size_of_feature_maps_most_cells_stay():
    matrix = draw_affine(numbers(2000), AffinePolicy())
    mask = validity(matrix, 7, 7)
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    assert (mask >= 0.5).float().mean().item() == pytest.approx(0.90, abs=0.03)
    assert (mask >= 0.999).float().mean().item() == pytest.approx(0.52, abs=0.04)


def test_the_identity_returns_maps_and_full_masks_to_the_bit():
    maps, identity = torch.randn(3, 4, 7, 5), torch.eye(3).expand(3, 3, 3)
    assert torch.equal(warp(maps, identity), maps) and torch.equal(unwarp(maps, identity), maps)
    assert torch.equal(validity(identity, 7, 5), torch.ones(3, 1, 7, 5))
    assert torch.equal(key_mask(identity, 7, 5), torch.ones(3, 1, 7, 5))


def test_masks_are_zero_where_nothing_came_from_the_image():
    matrix = torch.eye(3)[None].clone()
    matrix[0, 0, 2] = 1.0  # half a width to the right
    mask = key_mask(matrix, 4, 8)[0, 0]
    assert torch.equal(mask, torch.tensor([0.0] * 4 + [1.0] * 4).expand(4, 8))
    kept = validity(matrix, 4, 8)[0, 0]
    assert torch.equal(kept, torch.tensor([1.0] * 4 + [0.0] * 4).expand(4, 8))


def test_gradients_flow_through_both_directions():
    maps = torch.randn(2, 3, 6, 6, dtype=torch.float32, requires_grad=True)
    matrix = draw_affine(numbers(2), AffinePolicy(probability=1.0))
    unwarp(warp(maps, matrix), matrix).square().sum().backward()
    assert maps.grad is not None and torch.isfinite(maps.grad).all() and (maps.grad != 0).float().mean() > 0.8
    # Sampling is linear: its gradient is the transpose of the map it computes.
    one, other = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 3, 6, 6)
    (gradient,) = torch.autograd.grad((warp(one, matrix) * other).sum(), one)
    torch.testing.assert_close((gradient * one).sum(), (warp(one, matrix) * other).sum())


def test_autocast_around_it_does_not_move_points():
    maps, matrix = torch.randn(2, 3, 16, 16), draw_affine(numbers(2), AffinePolicy(probability=1.0))
    expected = warp(maps, matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(warp(maps, matrix), expected)
        assert warp(maps.bfloat16(), matrix).dtype == torch.float32


def test_probability_zero_gives_the_plain_views_to_the_bit(make_images):
    images = make_images([(40, 50), (64, 30), (32, 32)])
    plain = two_views(images, POLICIES, SETTINGS)
    views = two_affine_views(images, POLICIES, AffinePolicy(probability=0.0), SETTINGS)
    assert set(views) == {*plain, "affine1", "affine2"}
    for name, values in plain.items():
        assert torch.equal(views[name], values), name


def test_the_warp_comes_last_and_is_each_views_own(make_images):
    images = make_images([(40, 50)] * 16)
    plain = two_views(images, POLICIES, SETTINGS)
    views = two_affine_views(images, POLICIES, AffinePolicy(), SETTINGS)
    for number in (1, 2):
        assert torch.equal(views[f"geometry{number}"], plain[f"geometry{number}"])
        expected = warp(plain[f"view{number}"], views[f"affine{number}"])
        assert torch.equal(views[f"view{number}"], expected)
        assert views[f"view{number}"].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(views["affine1"], views["affine2"])


def test_draws_depend_on_the_sample_and_not_on_its_batch(make_images):
    images = make_images([(40, 50)] * 8)
    together = two_affine_views(images, POLICIES, AffinePolicy(), SETTINGS)
    apart = two_affine_views(images[5:6], POLICIES, AffinePolicy(), SETTINGS)
    assert torch.equal(together["affine1"][5:6], apart["affine1"])
    later = two_affine_views(replace(images, epoch=images.epoch + 1), POLICIES, AffinePolicy(), SETTINGS)
    assert not torch.equal(together["affine1"], later["affine1"])


def test_a_probability_that_is_none_is_named():
    with pytest.raises(InputError, match="affine_probability"):
        AffinePolicy(probability=1.5)


@pytest.mark.gpu
def test_gpu_gives_the_same_without_making_the_host_wait():
    draws = numbers(16)
    maps = torch.randn(16, 3, 24, 24)
    matrix = draw_affine(draws, AffinePolicy())
    expected = unwarp(warp(maps, matrix), matrix) * validity(matrix, 24, 24)
    draws, maps = draws.cuda(), maps.cuda()
    warp(maps, draw_affine(draws, AffinePolicy()))  # libraries initialize, which does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = draw_affine(draws, AffinePolicy())
        result = unwarp(warp(maps, on_device), on_device) * validity(on_device, 24, 24)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=0)
