import copy
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.affine import AFFINE_DRAWS, AffinePolicy, draw_affine, validity
from tpssl_hf.augment.pretrain_views import PIXPRO_VIEW_1, PIXPRO_VIEW_2, ViewSettings, two_views
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import nearby_cells
from tpssl_hf.methods.base import Batch
from tpssl_hf.methods.pretrain import pixpro
from tpssl_hf.methods.pretrain.pixpro import PixPro, PixProConfig
from tpssl_hf.models.feature_maps import feature_maps
from tpssl_hf.models.heads import PixelPropagation, pixpro_head

SMALL = PixProConfig(hidden_features=32, projection_features=16)
SETTINGS = ViewSettings(128, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0)


@pytest.fixture
def method(tiny_backbone: nn.Module) -> PixPro:
    torch.manual_seed(1)
    return PixPro(tiny_backbone, SMALL).train()


def images(count: int = 4) -> ImageBatch:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    pixels = F.interpolate(coarse, (96, 80), mode="bilinear").permute(0, 2, 3, 1).mul(255).byte()
    index = torch.arange(count)
    return ImageBatch(pixels, torch.tensor([[96, 80]]).expand(count, 2), index, torch.zeros_like(index))


def batch(config: PixProConfig = SMALL, count: int = 4) -> dict[str, dict[str, Tensor]]:
    return {name: view(images(count)) for name, view in pixpro.views(SETTINGS, config).items()}


def plain_pixpro(method: PixPro, images: dict[str, Tensor]) -> Tensor:
    """PixPro without a trace of affine transforms, written from its equations."""
    directions = []
    online, target = [], []
    for number in (1, 2):
        cells = method.projector(feature_maps(method.backbone, images[f"view{number}"])).flatten(2)
        similarities = F.normalize(cells, dim=1).transpose(1, 2) @ F.normalize(cells, dim=1)
        values = F.normalize(
            F.conv1d(cells, method.propagation.values.weight[..., 0], method.propagation.values.bias), dim=1
        )
        online.append(torch.einsum("bij,bdj->bdi", similarities.relu() ** 2, values))
        with torch.no_grad():
            target.append(method.target_projector(feature_maps(method.target_backbone, images[f"view{number}"])))
    for ours, theirs in ((0, 1), (1, 0)):
        boxes = images[f"geometry{ours + 1}"], images[f"geometry{theirs + 1}"]
        near = nearby_cells(*boxes, (4, 4), 0.7)
        cosines = torch.einsum(
            "bdi,bdj->bij", F.normalize(online[ours], dim=1), F.normalize(target[theirs].flatten(2), dim=1)
        )
        directions.append(-((cosines * near).sum(dim=(1, 2)) / (near.sum(dim=(1, 2)) + 1e-6)).mean())
    return torch.stack(directions).mean()


def test_without_affine_transforms_it_is_pixpro(tiny_backbone: nn.Module) -> None:
    config = replace(SMALL, affine_probability=0.0, empty_pairs="count")
    torch.manual_seed(1)
    method = PixPro(tiny_backbone, config).train()
    made = two_views(images(), (PIXPRO_VIEW_1, PIXPRO_VIEW_2), SETTINGS)
    loss, expected = loss_of(method, batch(config)), plain_pixpro(method, made)
    assert all(method(way, 0.0)["positive_pairs"] > 1 for way in method.ways(batch(config)))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    method.zero_grad()
    expected.backward()
    for one, other in zip(gradients, (p.grad for p in method.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_identity_matrices_and_probability_zero_are_bit_equal(method: PixPro) -> None:
    made = two_views(images(), (PIXPRO_VIEW_1, PIXPRO_VIEW_2), SETTINGS)
    identity = torch.eye(3).expand(4, 3, 3)
    handmade = {"images": {**made, "affine1": identity, "affine2": identity}}
    drawn = batch(replace(SMALL, affine_probability=0.0))
    results = [copy.deepcopy(method)(views, 0.0) for views in (handmade, drawn)]
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def loss_of(method: PixPro, batch: Batch) -> Tensor:
    return torch.stack([method(way, 0.0)["loss"] for way in method.ways(batch)]).mean()


def test_swapping_the_views_leaves_the_loss_unchanged(method: PixPro) -> None:
    images = batch()["images"]
    swapped = {name[:-1] + {"1": "2", "2": "1"}[name[-1]]: value for name, value in images.items()}
    torch.testing.assert_close(loss_of(method, {"images": images}), loss_of(method, {"images": swapped}))


def test_the_other_way_exchanges_all_that_is_numbered(method: PixPro) -> None:
    one, other = (way["images"] for way in method.ways(batch()))
    for name in ("view", "geometry", "affine"):
        assert other[f"{name}1"] is one[f"{name}2"] and other[f"{name}2"] is one[f"{name}1"]


class Ramps(nn.Module):
    """A backbone that is perfectly equivariant: its maps are its images, averaged over cells."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.weight * F.avg_pool2d(images, 4)


def test_unwarping_undoes_what_the_augmentation_did() -> None:
    """With an equivariant network the same crop, warped in two ways, agrees; not unwarped, it does not."""
    config = PixProConfig(hidden_features=8, projection_features=3, gamma=60.0)
    method = PixPro(Ramps(), config)
    method.projector = method.target_projector = nn.Identity()
    nn.init.dirac_(method.propagation.values.weight)
    nn.init.zeros_(method.propagation.values.bias)
    count, side = 16, 56
    y, x = torch.linspace(-1, 1, side)[:, None], torch.linspace(-1, 1, side)
    crop = torch.stack(torch.broadcast_tensors(3 * x, 3 * y, torch.ones(()))).expand(count, 3, side, side)
    from tpssl_hf.augment.affine import warp

    images = {}
    for number in (1, 2):
        draws = torch.rand(count, AFFINE_DRAWS, generator=torch.Generator().manual_seed(number))
        matrix = draw_affine(draws, AffinePolicy(probability=1.0))
        images |= {f"affine{number}": matrix, f"view{number}": warp(crop, matrix)}
        images[f"geometry{number}"] = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).expand(count, 4)
    right = method({"images": images}, 0.0)["loss"]
    identity = torch.eye(3).expand(count, 3, 3)
    wrong = method({"images": {**images, "affine1": identity, "affine2": identity}}, 0.0)["loss"]
    swapped = method({"images": {**images, "affine1": images["affine2"], "affine2": images["affine1"]}}, 0.0)["loss"]
    assert right < -0.99
    assert wrong > right + 0.02 and swapped > right + 0.02


def test_gradients_reach_the_online_side_through_unwarping_and_never_the_target(method: PixPro) -> None:
    views = batch()
    assert not torch.equal(views["images"]["affine1"], torch.eye(3).expand(4, 3, 3))
    method(views, 0.0)["loss"].backward()
    for name, parameter in method.named_parameters():
        if name.startswith("target_"):
            assert parameter.grad is None and not parameter.requires_grad, name
    for part in (method.backbone, method.projector, method.propagation):
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0


def test_pairs_are_counted_after_masking(method: PixPro) -> None:
    images = batch(replace(SMALL, affine_probability=1.0))["images"]
    near = nearby_cells(images["geometry1"], images["geometry2"], (4, 4), 0.7)
    kept = [validity(images[f"affine{n}"], 4, 4).flatten(1) >= 0.5 for n in (1, 2)]
    expected = (near & kept[0][:, :, None] & kept[1][:, None]).sum(dim=(1, 2)).float().mean()
    assert method({"images": images}, 0.0)["positive_pairs"] == expected < near.sum(dim=(1, 2)).float().mean()


def test_the_target_starts_as_the_online_network_and_follows_it(method: PixPro) -> None:
    assert torch.equal(method.projector[0].weight, method.target_projector[0].weight)
    with torch.no_grad():
        for p in [*method.backbone.parameters(), *method.projector.parameters()]:
            p.add_(1.0)
    targets = [*method.target_backbone.parameters(), *method.target_projector.parameters()]
    before = [p.clone() for p in targets]
    method.after_step(0.0)
    for old, new in zip(before, targets, strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.01), rtol=1e-3, atol=1e-5)


def test_propagation_equals_a_double_loop() -> None:
    torch.manual_seed(0)
    module, maps, mask = PixelPropagation(5, 2.0), torch.randn(2, 5, 2, 3), torch.rand(2, 1, 2, 3)
    result = module(maps, mask).flatten(2)
    values = module.values(maps).flatten(2)
    for row in range(2):
        for i in range(6):
            expected = torch.zeros(5)
            for j in range(6):
                x, y, value = maps[row].flatten(1)[:, i], maps[row].flatten(1)[:, j], values[row, :, j]
                similarity = max(float(x @ y / (x.norm() * y.norm())), 0.0)
                expected = expected + mask[row].flatten()[j] * similarity**2 * value / value.norm()
            torch.testing.assert_close(result[row, :, i], expected, rtol=1e-4, atol=1e-5)


def test_gamma_zero_points_every_cell_along_the_sum_of_values() -> None:
    module, maps = PixelPropagation(5, 0.0), torch.randn(2, 5, 3, 3)
    total = F.normalize(module.values(maps), dim=1).sum(dim=(2, 3))
    torch.testing.assert_close(module(maps, torch.ones(2, 1, 3, 3)), total[:, :, None, None].expand(-1, -1, 3, 3))


def test_masked_cells_enter_into_no_other() -> None:
    module, maps = PixelPropagation(5, 2.0), torch.randn(1, 5, 3, 3)
    mask = torch.ones(1, 1, 3, 3)
    mask[..., 2] = 0.0
    other = maps.clone()
    other[..., 2] = torch.randn(1, 5, 3)
    torch.testing.assert_close(module(maps, mask)[..., :2], module(other, mask)[..., :2])
    assert not torch.allclose(module(maps, torch.ones(1, 1, 3, 3)), module(other, torch.ones(1, 1, 3, 3)))


def test_propagation_computes_similarities_in_float32_under_autocast() -> None:
    module, maps = PixelPropagation(16, 2.0), torch.randn(1, 16, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(maps, torch.ones(1, 1, 3, 3))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, module(maps, torch.ones(1, 1, 3, 3)), rtol=0.02, atol=0.02)


def test_convolutions_of_the_heads_have_biases() -> None:
    head = pixpro_head(4, 8, 3)
    assert head[0].bias is not None and head[3].bias is not None and PixelPropagation(3, 2.0).values.bias is not None


@pytest.mark.parametrize(
    ("changes", "image_size", "message"),
    [
        ({}, 32, "1 x 1 cells.*at least 64"),
        ({}, 16, "smaller than the stride 32"),
        ({"gamma": 0.5}, 64, "gamma is 0.5"),
        ({"distance_threshold": 0.0}, 64, "distance_threshold is 0.0"),
        ({"affine_probability": 1.1}, 64, "affine_probability is 1.1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tiny_backbone: nn.Module, changes: dict[str, float], image_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        pixpro.check(tiny_backbone, replace(SMALL, **changes), image_size, 8)
    assert "\n" not in str(refused.value)


def test_what_fits_is_not_refused(tiny_backbone: nn.Module) -> None:
    pixpro.check(tiny_backbone, SMALL, 64, 1)


def test_a_backbone_without_maps_is_refused() -> None:
    vit = timm.create_model("test_vit", pretrained=False, num_classes=0)
    with pytest.raises(InputError, match="not maps"):
        pixpro.check(vit, SMALL, 160, 8)


def test_a_batch_of_one_works(method: PixPro) -> None:
    assert torch.isfinite(method(batch(count=1), 0.0)["loss"])
