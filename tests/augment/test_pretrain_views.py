from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tpssl_hf.augment import color as color
from tpssl_hf.augment import pretrain_views as policies
from tpssl_hf.augment.pretrain_views import (
    BYOL_VIEW_1,
    BYOL_VIEW_2,
    ViewPolicy,
    ViewSettings,
    eval_view,
    make_view,
    two_views,
)
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = ViewSettings(32, MEAN, STD, seed=3)
PLAIN = ViewPolicy(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, jitter=0, grayscale=0, blur=0, solarize=0)
SIZES = [(40, 50), (64, 30), (32, 32), (1, 1), (1, 50), (50, 64), (9, 9), (33, 47)]


def select(images, rows):
    return ImageBatch(images.pixels[rows], images.sizes[rows], images.index[rows], images.epoch[rows])


@pytest.mark.parametrize("policy", [BYOL_VIEW_1, BYOL_VIEW_2])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_shape_layout_range_and_no_gradient(make_images, policy, size):
    settings = replace(SETTINGS, image_size=size)
    images, geometry = make_view(make_images(SIZES), policy, settings, view=1)
    assert images.shape == (len(SIZES), 3, size, size)
    assert images.dtype == geometry.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.requires_grad
    lowest, highest = (torch.tensor([(value - m) / s for m, s in zip(MEAN, STD, strict=True)]) for value in (0, 1))
    assert (images >= lowest[:, None, None] - 1e-4).all()
    assert (images <= highest[:, None, None] + 1e-4).all()
    assert geometry.shape == (len(SIZES), 4)
    assert ((geometry >= 0) & (geometry <= 1)).all()
    assert (geometry[:, 1] < geometry[:, 3]).all()


def test_same_sample_same_view_whatever_batch_and_position(make_images):
    images = make_images(SIZES)
    together = two_views(images, (BYOL_VIEW_1, BYOL_VIEW_2), SETTINGS)
    rows = torch.tensor([6, 0, 5])
    apart = two_views(select(images, rows), (BYOL_VIEW_1, BYOL_VIEW_2), SETTINGS)
    assert set(together) == {"view1", "view2", "geometry1", "geometry2"}
    for name, values in together.items():
        assert (values[rows] - apart[name]).abs().max() <= 1e-5


@pytest.mark.parametrize("policy", [BYOL_VIEW_1, replace(BYOL_VIEW_2, blur=0.5, solarize=0.5)])
def test_chunks_do_not_matter(make_images, monkeypatch, policy):
    images = make_images(SIZES * 4)
    results = []
    for images_at_a_time in (1, 5, 32):
        monkeypatch.setattr(policies, "_CHUNK_BYTES", images_at_a_time * 12 * 32 * 32)
        results.append(make_view(images, policy, SETTINGS, view=1)[0])
    assert (results[0] - results[1]).abs().max() <= 1e-5
    assert (results[0] - results[2]).abs().max() <= 1e-5


def test_route_without_reading_draws_gives_the_same(make_images, monkeypatch):
    images, policy = make_images(SIZES * 4), replace(BYOL_VIEW_2, blur=0.5, solarize=0.5)
    expected, _ = make_view(images, policy, SETTINGS, view=1)
    monkeypatch.setattr(color, "host_can_look", lambda values: False)
    assert (make_view(images, policy, SETTINGS, view=1)[0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("change", ["epoch", "seed", "view", "index"])
def test_everything_that_should_change_a_view_does(make_images, change):
    images = make_images([(48, 48)] * 4)
    first, _ = make_view(images, BYOL_VIEW_1, SETTINGS, view=1)
    settings = replace(SETTINGS, seed=4) if change == "seed" else SETTINGS
    if change in ("epoch", "index"):
        images = replace(images, **{change: getattr(images, change) + 10})
    second, _ = make_view(images, BYOL_VIEW_1, settings, view=2 if change == "view" else 1)
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_padding_never_shows(make_images):
    dark, bright = (make_images(SIZES, padding=value) for value in (0, 255))
    for policy in (BYOL_VIEW_1, BYOL_VIEW_2):
        assert torch.equal(make_view(dark, policy, SETTINGS, 1)[0], make_view(bright, policy, SETTINGS, 1)[0])
    assert torch.equal(eval_view(dark, SETTINGS), eval_view(bright, SETTINGS))


@pytest.mark.parametrize(
    ("policy", "probability"),
    [
        (replace(PLAIN, flip=0.5), 0.5),
        (replace(PLAIN, jitter=0.8), 0.8),
        (replace(PLAIN, grayscale=0.2), 0.2),
        (replace(PLAIN, blur=0.1, blur_sigma=(1.0, 2.0)), 0.1),
        (replace(PLAIN, solarize=0.2), 0.2),
        (replace(PLAIN, flip=1.0), 1.0),
        (PLAIN, 0.0),
    ],
)
def test_fraction_of_images_changed(make_images, policy, probability):
    images = make_images([(12, 12)] * 400)
    plain = eval_view(images, SETTINGS)
    changed = (make_view(images, policy, SETTINGS, view=1)[0] - plain).abs().amax(dim=(1, 2, 3)) > 1e-3
    tolerance = 4 * (probability * (1 - probability) / 400) ** 0.5
    assert changed.float().mean().item() == pytest.approx(probability, abs=tolerance + 1e-9)


def test_no_flip_where_mirroring_changes_the_meaning(make_images):
    settings = replace(SETTINGS, horizontal_flip=False)
    _, geometry = make_view(make_images([(20, 20)] * 64), BYOL_VIEW_1, settings, view=1)
    assert (geometry[:, 0] < geometry[:, 2]).all()
    _, geometry = make_view(make_images([(20, 20)] * 64), BYOL_VIEW_1, SETTINGS, view=1)
    assert 16 < (geometry[:, 0] > geometry[:, 2]).sum() < 48


def test_distortions_come_in_the_papers_order(make_images):
    """Grayscale, blur, solarize: blurring after solarising would give something else."""
    images = make_images([(32, 32)])
    policy = replace(PLAIN, grayscale=1.0, blur=1.0, blur_sigma=(1.0, 1.0), solarize=1.0)
    pixels = images.pixels.permute(0, 3, 1, 2).float()
    blurred = color.gaussian_blur(color.grayscale(pixels), torch.ones(1), color.blur_width(32))
    result, _ = make_view(images, policy, ViewSettings(32, (0, 0, 0), (1, 1, 1), seed=0), view=1)
    assert (result - color.solarize(blurred) / 255).abs().max() < 1e-4


def test_byol_policies_are_the_papers():
    assert (BYOL_VIEW_1.blur, BYOL_VIEW_1.solarize) == (1.0, 0.0)
    assert (BYOL_VIEW_2.blur, BYOL_VIEW_2.solarize) == (0.1, 0.2)
    for policy in (BYOL_VIEW_1, BYOL_VIEW_2):
        assert (policy.crop_scale, policy.crop_ratio, policy.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
        assert (policy.brightness, policy.contrast, policy.saturation, policy.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (policy.jitter, policy.grayscale, policy.blur_sigma) == (0.8, 0.2, (0.1, 2.0))
        assert policy.interpolation == "bicubic"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_view_is_the_resized_center(make_images, interpolation):
    images = make_images([(40, 60), (64, 64)])
    result = eval_view(images, ViewSettings(32, (0, 0, 0), (1, 1, 1), seed=0, interpolation=interpolation)) * 255
    method = getattr(Image.Resampling, interpolation.upper())
    for row, (size, box) in enumerate([((40, 60), (10, 0, 50, 40)), ((64, 64), (0, 0, 64, 64))]):
        image = Image.fromarray(images.pixels[row, : size[0], : size[1]].numpy())
        expected = np.asarray(image.crop(box).resize((32, 32), method)).astype(float)
        difference = np.abs(expected - result[row].permute(1, 2, 0).numpy())
        assert difference.max() <= 2 + 1e-3
        assert (difference > 1 + 1e-3).mean() < 1e-3


def test_autocast_around_it_does_not_coarsen(make_images):
    images = make_images(SIZES)
    expected, _ = make_view(images, BYOL_VIEW_1, SETTINGS, view=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(make_view(images, BYOL_VIEW_1, SETTINGS, view=1)[0], expected)


def test_empty_batch(make_images):
    images, geometry = make_view(select(make_images(SIZES), slice(0, 0)), BYOL_VIEW_1, SETTINGS, view=1)
    assert images.shape == (0, 3, 32, 32)
    assert geometry.shape == (0, 4)


@pytest.mark.parametrize("change", [{"image_size": 0}, {"std": (0.2, 0.0, 0.2)}])
def test_settings_that_cannot_be_used_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        replace(SETTINGS, **change)


def test_interpolation_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="lanczos"):
        ViewPolicy(interpolation="lanczos")


@pytest.mark.gpu
def test_gpu_gives_the_same_views_without_making_the_host_wait(make_images):
    images = make_images(SIZES * 4)
    expected = two_views(images, (BYOL_VIEW_1, BYOL_VIEW_2), SETTINGS)
    on_device = images.to("cuda")
    two_views(on_device, (BYOL_VIEW_1, BYOL_VIEW_2), SETTINGS)  # libraries initialize, which does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = two_views(on_device, (BYOL_VIEW_1, BYOL_VIEW_2), SETTINGS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, values in views.items():
        assert (values.cpu() - expected[name]).abs().mean() < 5e-3  # in standard deviations; one level is 0.017
