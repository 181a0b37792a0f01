from dataclasses import replace

import numpy as np
import pytest
import torch

from tpssl_hf.augment import classify_views as weak_strong
from tpssl_hf.augment import color as color
from tpssl_hf.augment.classify_views import STRONG_VIEWS, WEAK_DRAWS, strong_view, weak_view
from tpssl_hf.augment.pretrain_views import ViewPolicy, ViewSettings, eval_view, make_view
from tpssl_hf.augment.randaugment import CUTOUT_DRAWS, RandAugmentPolicy, cutout, rand_augment
from tpssl_hf.augment.rng import uniform
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = ViewSettings(48, MEAN, STD, seed=3, work_size=32)
PLAIN = ViewSettings(32, (0, 0, 0), (1, 1, 1), seed=3)  # views are the images' values divided by 255
NOTHING = RandAugmentPolicy(operations=0, cutout=0.0)
SIZES = [(40, 50), (64, 30), (32, 32), (1, 1), (1, 50), (50, 64), (9, 9), (33, 47)]
VIEWS = [weak_view, strong_view]
CROPS = ["pad", "rrc"]


def select(images, rows):
    return ImageBatch(images.pixels[rows], images.sizes[rows], images.index[rows], images.epoch[rows])


def levels(view):
    return (view * 255).round()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("size", "work_size"), [(48, 32), (32, None), (24, 32), (7, 1), (1, 3)])
def test_shape_layout_range_and_no_gradient(make_images, view, crop, size, work_size):
    settings = replace(SETTINGS, image_size=size, work_size=work_size, crop=crop)
    images = view(make_images(SIZES), settings, 1)
    assert images.shape == (len(SIZES), 3, size, size)
    assert images.dtype == torch.float32 and not images.requires_grad
    assert images.is_contiguous(memory_format=torch.channels_last)
    lowest, highest = (torch.tensor([(value - m) / s for m, s in zip(MEAN, STD, strict=True)]) for value in (0, 1))
    assert (images >= lowest[:, None, None] - 1e-4).all()
    assert (images <= highest[:, None, None] + 1e-4).all()


@pytest.mark.parametrize(
    ("image", "work_size", "size"),
    [((32, 32), 32, 64), ((90, 120), None, 48), ((20, 25), None, 32), ((64, 40), 40, 64)],
)
def test_weak_view_without_shift_and_flip_is_the_eval_view(make_images, monkeypatch, image, work_size, size):
    settings = replace(PLAIN, image_size=size, work_size=work_size)
    images = make_images([image] * 2)
    expected = eval_view(images, settings)
    assert (weak_view(images, settings, 1) - expected).abs().max() * 255 > 20
    monkeypatch.setattr(weak_strong, "uniform", lambda *args: torch.full((2, args[-1]), 0.5))
    assert (weak_view(images, settings, 1) - expected).abs().max() * 255 <= 1 + 1e-3


@pytest.mark.parametrize("horizontal_flip", [True, False])
def test_weak_views_are_crops_of_the_reflected_image(make_images, horizontal_flip):
    """Every view must be one of the 2 x 9 x 9 possible ones, and all shifts must occur."""
    count = 300
    images = select(make_images([(32, 32)]), torch.zeros(count, dtype=torch.long))
    images = replace(images, index=torch.arange(count))
    views = levels(weak_view(images, replace(PLAIN, horizontal_flip=horizontal_flip), 1)).permute(0, 2, 3, 1).numpy()
    found = []
    for mirrored in (False, True):
        image = images.pixels[0].numpy()
        padded = np.pad(image[:, ::-1] if mirrored else image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        for top in range(9):
            for left in range(9):
                same = (views == padded[top : top + 32, left : left + 32]).all(axis=(1, 2, 3))
                found += [(mirrored, top, left)] * same.sum()
    assert len(found) == count
    flips, tops, lefts = np.array(found).T
    assert flips.mean() == pytest.approx(0.5 if horizontal_flip else 0.0, abs=0.12 if horizontal_flip else 0)
    for offsets in (tops, lefts):
        assert np.bincount(offsets, minlength=9).min() > 15  # 33 are expected
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.25


@pytest.mark.parametrize(("size", "pad"), [(1, 0), (3, 0), (4, 0), (12, 2), (96, 12)])
def test_padding_is_an_eighth_of_the_side(size, pad):
    images = torch.arange(float(size)).expand(1, 3, size, size).contiguous()
    for draw, offset in ((0.0, -pad), (1 - 2.0**-24, pad)):
        result = weak_strong._padded_crop(images, torch.full((1, 2), draw))
        assert result[0, 0, 0, size // 2] == size // 2 + offset
        padded = np.pad(np.arange(size), pad, mode="reflect" if pad else "edge")
        assert result[0, 0, 0].tolist() == padded[pad + offset :][:size].tolist()


@pytest.mark.parametrize("view", VIEWS)
def test_flip_never_happens_where_mirroring_changes_the_meaning(view):
    pixels = torch.arange(0, 224, 7, dtype=torch.uint8)[None, None, :, None].expand(200, 32, 32, 3)
    batch = ImageBatch(pixels, torch.full((200, 2), 32), torch.arange(200), torch.zeros(200, dtype=torch.long))
    policy = () if view is weak_view else (NOTHING,)
    for crop in CROPS:
        settings = replace(PLAIN, crop=crop)
        rises = [
            (lambda images: images[:, :, :, 20] > images[:, :, :, 10])(view(batch, chosen, 1, *policy))
            for chosen in (settings, replace(settings, horizontal_flip=False))
        ]
        assert 0.35 < rises[0].float().mean() < 0.65
        assert rises[1].all()


def test_rrc_is_a_random_resized_crop_and_nothing_else(make_images):
    images = make_images(SIZES * 4)
    policy = ViewPolicy(crop_scale=(0.2, 1.0), jitter=0, grayscale=0, blur=0, solarize=0)
    settings = replace(SETTINGS, crop="rrc", work_size=None)
    assert torch.equal(weak_view(images, settings, 1), make_view(images, policy, settings, 1)[0])


def test_strong_view_is_a_weak_view_then_randaugment_then_cutout(make_images):
    images, policy = make_images([(32, 32)] * 40), RandAugmentPolicy()
    weak = levels(weak_view(images, PLAIN, STRONG_VIEWS + 5)).contiguous()
    assert torch.equal(levels(strong_view(images, PLAIN, 5, NOTHING)), weak)
    draws = uniform(PLAIN.seed, images.index, images.epoch, STRONG_VIEWS + 5, WEAK_DRAWS + policy.draws)
    distorted = rand_augment(weak.clone(), draws[:, WEAK_DRAWS:], policy)
    expected = cutout(distorted, draws[:, -CUTOUT_DRAWS:], policy.cutout)
    assert torch.equal(levels(strong_view(images, PLAIN, 5)), expected)
    assert not torch.equal(distorted, weak)


def test_images_are_distorted_at_working_size(make_images):
    images = replace(make_images([(8, 8)] * 20), pixels=torch.zeros(20, 8, 8, 3, dtype=torch.uint8))
    policy, settings = RandAugmentPolicy(operations=0), replace(PLAIN, work_size=8)
    draws = uniform(PLAIN.seed, images.index, images.epoch, STRONG_VIEWS + 1, WEAK_DRAWS + policy.draws)
    cut = cutout(torch.zeros(20, 3, 8, 8), draws[:, WEAK_DRAWS:], policy.cutout).to(torch.uint8)
    expected = eval_view(replace(images, pixels=cut.permute(0, 2, 3, 1)), settings)
    assert torch.equal(strong_view(images, settings, 1, policy), expected)


@pytest.mark.parametrize("view", VIEWS)
def test_working_size_is_image_size_by_default(make_images, view):
    images = make_images(SIZES)
    default, same, other = (replace(PLAIN, work_size=size) for size in (None, 32, 16))
    assert torch.equal(view(images, default, 1), view(images, same, 1))
    assert not torch.equal(view(images, default, 1), view(images, other, 1))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("crop", CROPS)
def test_same_sample_same_view_whatever_batch_and_chunk(make_images, monkeypatch, view, crop):
    settings = replace(SETTINGS, crop=crop)
    images = make_images(SIZES * 4)
    together = view(images, settings, 1)
    rows = torch.tensor([6, 30, 5, 17, 1])
    assert torch.equal(view(select(images, rows), settings, 1), together[rows])
    for row in range(len(images)):
        assert torch.equal(view(images[row : row + 1], settings, 1)[0], together[row])
    for images_at_a_time in (1, 5):
        monkeypatch.setattr(weak_strong, "_CHUNK_BYTES", images_at_a_time * 12 * 48 * 48)
        assert torch.equal(view(images, settings, 1), together)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [32, 48])
def test_route_without_reading_draws_gives_the_same(make_images, monkeypatch, view, size):
    images, settings = make_images(SIZES * 4), replace(SETTINGS, image_size=size)
    expected = view(images, settings, 1)
    for module in (color, weak_strong):
        monkeypatch.setattr(module, "host_can_look", lambda values: False)
    assert torch.equal(view(images, settings, 1), expected)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("change", ["epoch", "seed", "view", "index"])
def test_everything_that_should_change_a_view_does(make_images, view, change):
    images = make_images([(48, 48)] * 40)
    first = view(images, SETTINGS, 1)
    settings = replace(SETTINGS, seed=4) if change == "seed" else SETTINGS
    if change in ("epoch", "index"):
        images = replace(images, **{change: getattr(images, change) + 100})
    second = view(images, settings, 2 if change == "view" else 1)
    changed = (first - second).abs().amax(dim=(1, 2, 3)) > 0.1
    assert changed.float().mean() > 0.9  # one in 162 weak views is drawn twice


def test_weak_part_of_a_strong_view_is_its_own(make_images):
    images = make_images([(48, 48)] * 40)
    views = [strong_view(images, SETTINGS, number, NOTHING) for number in (1, 2)]
    views += [weak_view(images, SETTINGS, number) for number in (1, 2)]
    for first in range(4):
        for second in range(first):
            same = (views[first] == views[second]).flatten(1).all(dim=1)
            assert same.float().mean() < 0.1


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("crop", CROPS)
def test_padding_of_the_store_never_shows(make_images, view, crop):
    settings = replace(SETTINGS, crop=crop)
    dark, bright = (make_images(SIZES, padding=value) for value in (0, 255))
    assert torch.equal(view(dark, settings, 1), view(bright, settings, 1))


@pytest.mark.parametrize("view", VIEWS)
def test_neither_autocast_nor_the_images_are_touched(make_images, view):
    images = make_images(SIZES)
    before = images.pixels.clone()
    expected = view(images, SETTINGS, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(view(images, SETTINGS, 1), expected)
    assert torch.equal(images.pixels, before)


@pytest.mark.parametrize("view", VIEWS)
def test_empty_batch(make_images, view):
    assert view(select(make_images(SIZES), slice(0, 0)), SETTINGS, 1).shape == (0, 3, 48, 48)


@pytest.mark.parametrize("change", [{"work_size": 0}, {"crop": "middle"}])
def test_settings_that_cannot_be_used_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        replace(SETTINGS, **change)


@pytest.mark.gpu
def test_gpu_gives_the_same_views_without_making_the_host_wait(make_images):
    images = make_images(SIZES * 4)
    on_device = images.to("cuda")
    for view in VIEWS:
        expected = view(images, SETTINGS, 1)
        view(on_device, SETTINGS, 1)  # libraries initialize, which does wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            result = view(on_device, SETTINGS, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # Images that have to be resized first may be a level off, which solarising and equalising make more of.
        assert (result.cpu() - expected).abs().mean() < 0.02
