from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tpssl_hf.augment import color as color
from tpssl_hf.augment import segment_views as segmentation
from tpssl_hf.augment.segment_views import (
    ColorPolicy,
    SegmentViewSettings,
    distort_colors,
    draw_scales,
    segment_views,
    zoom_draws,
)
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = SegmentViewSettings((24, 40), MEAN, STD, seed=3, scale=(0.5, 1.5))
PLAIN = SegmentViewSettings((24, 40), (0, 0, 0), (1, 1, 1), seed=3, scale=(0.5, 1.5))
SIZES = [(40, 50), (64, 30), (24, 40), (1, 1), (1, 50), (50, 64), (9, 9), (33, 47)]
COLORS = {"one": ColorPolicy(blur=0.5), "two": ColorPolicy(jitter=1.0)}


def with_masks(images: ImageBatch, seed: int = 0) -> ImageBatch:
    masks = torch.randint(0, 21, images.pixels.shape[:3], generator=torch.Generator().manual_seed(seed))
    return replace(images, masks=masks.to(torch.uint8))


def select(images: ImageBatch, rows: Tensor | slice) -> ImageBatch:
    return images._each(lambda tensor: tensor[rows])


def checkered(count: int = 60) -> ImageBatch:
    """Blocks of 16 pixels, black where the mask is 0 and white where it is 1, in images of several sizes."""
    rows, columns = torch.arange(64) // 16, torch.arange(80) // 16
    masks = ((rows[:, None] + columns) % 3 == 0).to(torch.uint8).expand(count, 64, 80)
    sizes = torch.stack((32 + torch.arange(count) % 33, 80 - torch.arange(count) % 40), dim=1)
    index = torch.arange(count)
    return ImageBatch(masks[..., None].expand(-1, -1, -1, 3) * 255, sizes, index, torch.zeros_like(index), masks)


@pytest.fixture(params=["on the host", "on a device"])
def route(request, monkeypatch):
    """Both ways of computing; the second is the one that never reads a value."""
    if request.param == "on a device":
        for module in (color, segmentation):
            monkeypatch.setattr(module, "host_can_look", lambda values: False)
    return request.param


def test_shapes_types_and_layout(make_images, route):
    views = segment_views(with_masks(make_images(SIZES)), SETTINGS, 1, COLORS)
    assert set(views) == {"images", "one", "two", "masks", "valid"}
    for name in ("images", "one", "two"):
        assert views[name].shape == (8, 3, 24, 40) and views[name].dtype == torch.float32
        assert views[name].is_contiguous(memory_format=torch.channels_last)
    assert views["masks"].shape == views["valid"].shape == (8, 24, 40)
    assert views["masks"].dtype == torch.int64 and views["valid"].dtype == torch.bool


@pytest.mark.parametrize("spacing", ["tenths", "uniform", "log"])
def test_masks_stay_where_the_colors_are(route, spacing):
    """A wrong offset, scale or flip in one of the two would put a third of the pixels under the wrong class."""
    views = segment_views(checkered(), replace(PLAIN, scale_spacing=spacing), 1)
    white = views["images"][:, 0] > 0.5
    wrong = (white != (views["masks"] == 1)) & views["valid"]
    assert 0.2 < (views["masks"] == 1).float().mean() < 0.5
    assert wrong.float().sum() / views["valid"].sum() < 0.02, "only where interpolation rounds to the other side"
    clear = (views["images"][:, 0] < 0.02) | (views["images"][:, 0] > 0.98)
    assert not (wrong & clear).any()


def test_padding_is_zero_after_normalization_and_255(make_images, route):
    images = with_masks(make_images([(10, 12), (60, 70)], padding=255))
    views = segment_views(images, replace(SETTINGS, scale=(1.0, 1.0), horizontal_flip=False), 1, COLORS)
    inside = torch.zeros(24, 40, dtype=torch.bool)
    inside[:10, :12] = True
    assert torch.equal(views["valid"], torch.stack((inside, torch.ones_like(inside))))
    for name in ("images", "one", "two"):
        assert (views[name][0][:, ~inside] == 0).all() and (views[name][0][:, inside] != 0).any()
    assert (views["masks"][0][~inside] == 255).all() and (views["masks"][0][inside] < 21).all()
    assert torch.equal(views["masks"][0, :10, :12], images.masks[0, :10, :12].long())


def test_a_crop_of_the_images_own_size_is_the_image(make_images, route):
    images = with_masks(make_images([(24, 40)] * 3))
    views = segment_views(images, replace(PLAIN, scale=(1.0, 1.0), horizontal_flip=False), 1, {"same": NOTHING})
    expected = images.pixels.permute(0, 3, 1, 2)
    assert torch.equal((views["images"] * 255).round().byte(), expected)
    assert torch.equal(views["same"], views["images"])
    assert torch.equal(views["masks"], images.masks.long()) and views["valid"].all()


NOTHING = ColorPolicy(jitter=0.0, grayscale=0.0)


def test_a_scaled_image_is_pillows_and_flips_mirror_it(photographs, route):
    original = np.array(photographs[0].resize((60, 45)))
    count = 8
    pixels = torch.from_numpy(original).expand(count, -1, -1, -1)
    index = torch.arange(count)
    masks = pixels[..., 0]
    images = ImageBatch(pixels, torch.tensor([[45, 60]]).expand(count, 2), index, torch.zeros_like(index), masks)
    settings = replace(PLAIN, crop_size=(27, 36), scale=(0.6, 0.6))
    views = segment_views(images, settings, 1)
    expected = np.asarray(Image.fromarray(original).resize((36, 27), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    nearest = np.asarray(Image.fromarray(original[..., 0]).resize((36, 27), Image.Resampling.NEAREST))
    mirrored = 0
    for image, mask in zip((views["images"] * 255).numpy(), views["masks"].numpy(), strict=True):
        flipped = not np.array_equal(mask, nearest)
        mirrored += flipped
        assert np.array_equal(mask[:, ::-1] if flipped else mask, nearest)
        assert np.abs((image[:, :, ::-1] if flipped else image) - expected).max() <= 2.01
    assert 0 < mirrored < count


def test_no_flips_where_mirroring_is_not_allowed(make_images):
    pixels = torch.arange(0, 240, 6, dtype=torch.uint8)[None, None, :, None].expand(100, 24, 40, 3)
    index = torch.arange(100)
    batch = ImageBatch(pixels, torch.tensor([[24, 40]]).expand(100, 2), index, torch.zeros_like(index))
    for allowed, share in ((True, 0.5), (False, 0.0)):
        images = segment_views(batch, replace(PLAIN, scale=(1.0, 1.0), horizontal_flip=allowed), 1)["images"]
        falls = images[:, 0, 0, 0] > images[:, 0, 0, -1]
        assert falls.float().mean() == pytest.approx(share, abs=0.15 if allowed else 0)


def test_crops_reach_every_part_of_the_image(route):
    rows = torch.arange(48, dtype=torch.uint8)[:, None] * 5
    pixels = torch.stack(torch.broadcast_tensors(rows, torch.arange(64, dtype=torch.uint8) * 3, rows), dim=2)
    index = torch.arange(400)
    images = ImageBatch(
        pixels.expand(400, -1, -1, -1), torch.tensor([[48, 64]]).expand(400, 2), index, torch.zeros_like(index)
    )
    views = segment_views(images, replace(PLAIN, scale=(1.0, 1.0), horizontal_flip=False), 1)["images"] * 255
    tops, lefts = (views[:, 0, 0, 0] / 5).round().long(), (views[:, 1, 0, 0] / 3).round().long()
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 24, 0, 24)
    assert tops.bincount().min() > 2 and lefts.bincount().min() > 2


@pytest.mark.parametrize(
    ("spacing", "middle"), [("tenths", 1.0), ("uniform", 1.0), ("log", 0.75**0.5)], ids=lambda value: str(value)
)
def test_scales_follow_their_distribution(spacing, middle):
    numbers = torch.rand(4001, generator=torch.Generator().manual_seed(0))
    scales = draw_scales(numbers, (0.5, 1.5), spacing)
    assert scales.min() >= 0.5 and scales.max() <= 1.5
    assert scales.median().item() == pytest.approx(middle, abs=0.05)
    if spacing == "tenths":
        values, counts = (scales * 10).unique(return_counts=True)
        assert values.tolist() == list(range(5, 16)) and counts.min() > 280
    assert draw_scales(torch.tensor([0.0, 1 - 2.0**-24]), (1.0, 1.0), spacing).tolist() == [1.0, 1.0]


def test_same_sample_same_view_whatever_the_batch(make_images, route):
    images = with_masks(make_images(SIZES * 2))
    together = segment_views(images, SETTINGS, 1, COLORS)
    rows = torch.tensor([6, 14, 5, 1])
    for name, value in segment_views(select(images, rows), SETTINGS, 1, COLORS).items():
        torch.testing.assert_close(value, together[name][rows], rtol=0, atol=1e-5, msg=name)


def test_both_routes_give_the_same(make_images, monkeypatch):
    images = with_masks(make_images(SIZES * 2))
    expected = segment_views(images, PLAIN, 1, COLORS)
    for module in (color, segmentation):
        monkeypatch.setattr(module, "host_can_look", lambda values: False)
    result = segment_views(images, PLAIN, 1, COLORS)
    assert torch.equal(result["masks"], expected["masks"]) and torch.equal(result["valid"], expected["valid"])
    difference = (result["images"] - expected["images"]).abs() * 255
    assert difference.max() <= 2.01 and difference.mean() < 0.1
    for name in COLORS:
        assert (result[name] - expected[name]).abs().mean() * 255 < 0.3


class NothingIsRead(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("route", ["on a device"], indirect=True)
def test_the_route_of_devices_reads_no_value(make_images, route):
    images = with_masks(make_images(SIZES))
    with NothingIsRead():
        segment_views(images, SETTINGS, 1, COLORS)


@pytest.mark.parametrize("change", ["epoch", "seed", "view", "index"])
def test_everything_that_should_change_a_view_does(make_images, change):
    images = make_images([(48, 64)] * 20)
    first = segment_views(images, SETTINGS, 1, COLORS)
    settings = replace(SETTINGS, seed=4) if change == "seed" else SETTINGS
    if change in ("epoch", "index"):
        images = replace(images, **{change: getattr(images, change) + 100})
    second = segment_views(images, settings, 2 if change == "view" else 1, COLORS)
    for name in ("images", "one", "two"):
        assert ((first[name] - second[name]).abs().amax(dim=(1, 2, 3)) > 0.1).float().mean() > 0.9


def test_distortions_share_the_geometry_and_not_the_draws(make_images):
    images = make_images([(48, 64)] * 12)
    views = segment_views(images, SETTINGS, 1, {"one": ColorPolicy(jitter=1.0), "two": ColorPolicy(jitter=1.0)})
    assert (views["one"] - views["two"]).abs().amax(dim=(1, 2, 3)).gt(0.1).all()
    bright = ColorPolicy(jitter=1.0, contrast=0.0, saturation=0.0, hue=0.0, grayscale=0.0)
    plain = replace(PLAIN, scale=(1.0, 1.0))
    views = segment_views(images, plain, 1, {"one": bright})
    ratios = views["one"].mean(dim=(1, 2, 3)) / views["images"].mean(dim=(1, 2, 3))
    torch.testing.assert_close(
        views["one"], (views["images"] * ratios[:, None, None, None]).clamp(max=1), atol=0.1, rtol=0
    )
    assert ratios.min() > 0.6 and ratios.max() < 1.41 and ratios.std() > 0.1


def test_zooms_are_drawn_for_their_share_of_the_images(make_images):
    index = torch.arange(2000)
    images = ImageBatch(torch.zeros(2000, 1, 1, 3), torch.ones(2000, 2).long(), index, torch.zeros_like(index))
    moves = zoom_draws(images, SETTINGS, 1, 0.8, (0.75, 1.75))
    factors = moves[:, 0]
    assert (factors != 1).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (
        factors.min() >= 0.75
        and factors.max() <= 1.75
        and factors[factors != 1].mean() == pytest.approx(1.25, abs=0.03)
    )
    assert moves[:, 1:3].abs().max() <= 1 and moves[:, 1:3].mean(dim=0).abs().max() < 0.05
    assert set(moves[:, 3].tolist()) == {-1.0, 1.0}
    assert (zoom_draws(images, replace(SETTINGS, horizontal_flip=False), 1, 0.8, (0.75, 1.75))[:, 3] == 1).all()
    assert (zoom_draws(images, SETTINGS, 2, 0.8, (0.75, 1.75)) != moves).any(dim=1).float().mean() > 0.9
    assert torch.equal(zoom_draws(images[5:9], SETTINGS, 1, 0.8, (0.75, 1.75)), moves[5:9])


def test_blur_takes_oblong_images(route):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 255
    policy = ColorPolicy(jitter=0.0, grayscale=0.0, blur=1.0, blur_sigma=(1.0, 1.0))
    before = images.clone()
    blurred = distort_colors(images, torch.full((2, 12), 0.5), policy)
    assert torch.equal(images, before)
    kernel = torch.tensor([-1.0, 0.0, 1.0]).square().mul(-0.5).softmax(0)  # a tenth of 24 pixels wide
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    expected = torch.nn.functional.conv2d(
        padded.flatten(0, 1)[:, None], (kernel[:, None] * kernel)[None, None]
    ).view_as(images)
    torch.testing.assert_close(blurred, expected, rtol=1e-4, atol=1e-2)


def test_without_masks_all_pixels_are_ignored_and_autocast_changes_nothing(make_images):
    images = make_images(SIZES)
    views = segment_views(images, SETTINGS, 1)
    assert (views["masks"] == 255).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(segment_views(images, SETTINGS, 1)["images"], views["images"])


def test_empty_batch(make_images):
    views = segment_views(with_masks(select(make_images(SIZES), slice(0, 0))), SETTINGS, 1, COLORS)
    assert views["images"].shape == (0, 3, 24, 40) and views["masks"].shape == (0, 24, 40)


@pytest.mark.parametrize(
    "change", [{"crop_size": (0, 4)}, {"std": (0, 1, 1)}, {"scale": (1.5, 0.5)}, {"scale_spacing": "odd"}]
)
def test_settings_that_cannot_be_used_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        replace(SETTINGS, **change)


@pytest.mark.gpu
def test_gpu_gives_the_same_views_without_making_the_host_wait(make_images):
    images = with_masks(make_images(SIZES * 4))
    on_device = images.to("cuda")
    expected = segment_views(images, SETTINGS, 1, COLORS)
    segment_views(on_device, SETTINGS, 1, COLORS)  # libraries initialize, which does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = segment_views(on_device, SETTINGS, 1, COLORS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result["masks"].cpu(), expected["masks"])
    for name in ("images", *COLORS):
        assert (result[name].cpu() - expected[name]).abs().mean() < 0.02
