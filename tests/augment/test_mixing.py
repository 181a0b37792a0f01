import math

import pytest
import torch

from tpssl_hf.augment.mixing import (
    HALF_BOX_DRAWS,
    UNIMATCH_BOX_DRAWS,
    box_masks,
    class_masks,
    half_boxes,
    mix,
    unimatch_boxes,
    zoom,
)


def numbers(count: int, draws: int) -> torch.Tensor:
    return torch.rand(count, draws, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 32), (256, 512), (321, 321), (7, 5)])
def test_cutmix_boxes_have_half_the_area_up_to_rounding_and_lie_inside(size):
    height, width = size
    boxes = half_boxes(numbers(3000, HALF_BOX_DRAWS), size)
    left, top, right, bottom = boxes.unbind(1)
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    area = ((right - left) * (bottom - top)).double()
    assert (area - height * width / 2).abs().max() <= 0.5 * (height + width) + 0.25
    heights = (bottom - top).double() / height
    assert heights.min() >= 0.5 - 0.5 / height and heights.max() <= 1
    assert heights.log().mean().item() == pytest.approx(math.log(0.5) / 2, abs=0.05)
    assert torch.equal(box_masks(boxes[:50], size).flatten(1).sum(dim=1), area[:50].long())
    if min(size) > 30:
        for low, room in ((left, width - (right - left)), (top, height - (bottom - top))):
            place = low[room > 4] / room[room > 4]
            assert place.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_unimatch_boxes_are_2_to_40_percent_for_half_of_the_images(size):
    boxes = unimatch_boxes(numbers(3000, UNIMATCH_BOX_DRAWS), size)
    area = box_masks(boxes, size).float().mean(dim=(1, 2))
    assert (area == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    drawn = boxes[area > 0]
    assert area[area > 0].min() > 0.015 and area.max() < 0.42
    ratios = (drawn[:, 2] - drawn[:, 0]) / (drawn[:, 3] - drawn[:, 1])
    assert ratios.min() > 0.25 and ratios.max() < 4.0 and ratios.std() > 0.3


def test_mix_takes_the_second_inside_the_mask_for_maps_and_images():
    first, second = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    mask = box_masks(torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0]]), (4, 5))
    mixed = mix(first, second, mask)
    assert torch.equal(mixed, mask[:, None].expand(-1, 3, -1, -1).float())
    assert mask[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]] and not mask[1].any()
    assert torch.equal(mix(first[:, 0], second[:, 0], mask), mask.float())


def some_labels(batch: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 6, (batch, 8, 9), generator=generator)
    for row in range(batch):  # images of one to six classes
        labels[row].clamp_(max=row % 6)
    labels[:, 0] = 255
    return labels


@pytest.mark.parametrize(("background", "more"), [(True, 0), (False, 1)])
def test_classmix_masks_are_unions_of_half_of_the_segments(background, more):
    labels = some_labels()
    masks = class_masks(labels, numbers(40, 7), background=background, more=more)
    for label, mask in zip(labels, masks, strict=True):
        eligible = set(label.unique().tolist()) - {255} - (set() if background else {0})
        chosen = set(label[mask].unique().tolist())
        assert chosen <= eligible, "neither ignored pixels nor what must not be chosen"
        assert len(chosen) == min(len(eligible), len(eligible) // 2 + more)
        assert all(mask[label == number].all() for number in chosen), "whole segments"


def test_every_class_is_chosen_as_often_as_any_other():
    labels = torch.arange(4).repeat(2000, 3, 1)
    masks = class_masks(labels, numbers(2000, 4))
    assert (masks[:, 0].float().mean(dim=0) - 0.5).abs().max() < 0.05
    pairs = {tuple(row) for row in masks[:, 0].tolist()}
    assert len(pairs) == 6


def test_a_image_without_any_class_gives_nothing():
    labels = torch.full((2, 4, 4), 255)
    assert not class_masks(labels, numbers(2, 3), more=1).any()


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of 8 pixels whose color is their class, so that images show where labels should be."""
    rows, columns = torch.arange(32) // 8, torch.arange(48) // 8
    labels = ((rows[:, None] + columns) % 3).expand(200, 32, 48)
    images = 1.0 + labels[:, None].expand(-1, 3, -1, -1).float()
    return images, labels, 0.25 * (1.0 + labels)


def moves(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows)


def test_zooming_by_one_changes_nothing_and_mirrors_where_asked():
    images, labels, weights = (values[:2] for values in scene())
    zoomed = zoom(images, labels, weights, moves((1.0, 0.5, -0.7, 1.0), (1.0, 0.0, 0.0, -1.0)))
    for before, after in zip((images, labels, weights), zoomed, strict=True):
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(after[1], before[1].flip(-1), rtol=0, atol=1e-4)
        assert after.dtype == before.dtype


def test_zoomed_labels_and_weights_stay_where_the_colors_are():
    images, labels, weights = scene()
    draws = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
    sign = torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    chosen = torch.stack((0.75 + draws[:, 0], 2 * draws[:, 1] - 1, 2 * draws[:, 2] - 1, sign), dim=1)
    zoomed, found, carried = zoom(images, labels, weights, chosen)
    inside = found != 255
    assert 0.03 < 1 - inside.float().mean() < 0.3
    torch.testing.assert_close(carried, torch.where(inside, 0.25 * (1.0 + found), 0.0))
    shown = zoomed[:, 0].round().long() - 1
    assert ((shown != found) & inside).float().sum() / inside.sum() < 0.12, "only between blocks"
    assert (zoomed[:, 0][~inside] <= 1.6).all(), "at most half of a color comes over the edge"
    whole = (zoomed[:, 0] - zoomed[:, 0].round()).abs() < 1e-4
    deep = whole & inside & (zoomed[:, 0] > 0.5)
    assert ((shown == found) | ~deep).float().mean() > 0.97


def test_a_zoomed_window_lies_inside_the_image_and_a_shrunk_image_inside_the_frame():
    images, labels, weights = (values[:4] for values in scene())
    corners = moves((1.6, -1.0, -1.0, 1.0), (1.6, 1.0, 1.0, 1.0), (0.8, -1.0, -1.0, 1.0), (0.8, 1.0, 1.0, 1.0))
    _, found, _ = zoom(images, labels, weights, corners)
    assert (found[:2] != 255).all()
    assert found[0, 0, 0] == labels[0, 0, 0] and found[1, -1, -1] == labels[1, -1, -1]
    area = (found[2:] != 255).float().mean(dim=(1, 2))
    assert (area - 0.64).abs().max() < 0.06
    assert found[2, -1, -1] != 255 and found[2, 0, 0] == 255 and found[3, 0, 0] != 255 and found[3, -1, -1] == 255
