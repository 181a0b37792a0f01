"""Distillation: a student follows a teacher that stands still and is nowhere in the state."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_teacher import tiny_teacher
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError
from tpssl_hf.losses.distillation import relational_divergence
from tpssl_hf.methods.base import Batch, Method
from tpssl_hf.methods.pretrain import distill
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.methods.pretrain.distill import Distill, DistillConfig
from tpssl_hf.models.heads import fit_ridge
from tpssl_hf.training.optim import build_optimizer

CONFIG = DistillConfig(teacher=tiny_teacher(), queue_size=16)


def batch(count: int = 8, seed: int = 0) -> Batch:
    """Images of smooth random colors, which differ more than noise does."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return {"images": {"view1": F.interpolate(coarse, (48, 48), mode="bilinear")}}


@pytest.fixture
def method(tiny_backbone: nn.Module) -> Distill:
    return distill.build(tiny_backbone, CONFIG).train()


def follow(method: Method, batches: list[Batch], rate: float = 3e-3) -> list[float]:
    """Make a step of AdamW on each batch; returns the losses."""
    optimizer, losses = build_optimizer("adamw", method, weight_decay=0.0, momentum=0.9), []
    for group in optimizer.param_groups:
        group["lr"] = rate
    for part in batches:
        loss = method(part, 0.0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.0)
        losses.append(loss.item())
    return losses


def test_the_loss_is_the_cosine_and_the_weighted_relations_to_the_centered_teacher(method: Distill) -> None:
    method.config = replace(CONFIG, relational_weight=0.5)
    method.begin([batch(seed=1)])
    images, keys = batch()["images"]["view1"], method.queue.keys.clone()
    projections = method.projector(copy.deepcopy(method.backbone)(images))
    targets = method.teacher.features(images) - method.center
    losses = method(batch(), 0.0)
    cosine = 1 - F.cosine_similarity(projections, targets).mean()
    relational = relational_divergence(projections, targets, keys, 0.1, 0.05)
    torch.testing.assert_close(losses["loss"], cosine + 0.5 * relational)
    assert torch.equal(method.queue.keys, keys), "keys are stored after the step"
    method.after_step(0.0)
    torch.testing.assert_close(method.queue.keys[:8], F.normalize(targets, dim=1))
    assert torch.equal(method.queue.keys[8:], keys[8:])


def test_the_teacher_is_in_no_state_and_stays_what_it_is(method: Distill) -> None:
    before = copy.deepcopy(method.teacher.network.state_dict())
    wrapped = Anchor(method, 0.01)
    wrapped.begin([batch()])
    follow(wrapped, [batch(16, seed=1), batch(16, seed=2)])
    after = method.teacher.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in method.teacher.network.parameters()) and not method.teacher.network.training
    shares = {value.data_ptr() for value in after.values()} & {v.data_ptr() for v in wrapped.state_dict().values()}
    own = {name.partition(".")[0] for name in method.state_dict()}
    assert own == {"backbone", "projector", "queue", "center"} and not shares
    assert wrapped.teacher_source == method.teacher.source and method.teacher.source.license == "cc-by-nc-4.0"


def test_it_begins_with_the_teachers_mean_a_fitted_map_and_a_queue_of_real_features(method: Distill) -> None:
    batches = [batch(8, seed=seed) for seed in range(3)]
    at_random = method(batches[0], 0.0)["loss_cosine"]
    method.begin(iter(batches))
    taught = torch.cat([method.teacher.features(part["images"]["view1"]) for part in batches])
    torch.testing.assert_close(method.center, taught.mean(dim=0))
    torch.testing.assert_close(method.queue.keys, F.normalize(taught - method.center, dim=1)[:16])
    fitted = method(batches[0], 0.0)["loss_cosine"]
    assert fitted < 0.5 * at_random


def test_beginning_moves_no_statistics(method: Distill) -> None:
    before = {name: buffer.clone() for name, buffer in method.backbone.named_buffers()}
    method.begin([batch()])
    assert all(torch.equal(buffer, before[name]) for name, buffer in method.backbone.named_buffers())


def test_a_queue_longer_than_the_first_images_repeats_them(method: Distill) -> None:
    method.begin([batch(6)])
    assert torch.equal(method.queue.keys[:6], method.queue.keys[6:12])


def test_ridge_regression_finds_a_linear_map_and_leaves_noise_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features, wanted = torch.randn(200, 6, generator=generator) * 40, torch.randn(6, 3, generator=generator)
    layer = nn.Linear(6, 3)
    fit_ridge(layer, features, features @ wanted + 5.0)
    torch.testing.assert_close(layer.weight, wanted.T, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(layer.bias, torch.full((3,), 5.0), rtol=0.1, atol=0.1)
    fit_ridge(layer, features, torch.randn(200, 3, generator=generator))
    assert (features @ layer.weight.T).detach().std() < 0.2


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of the five nearest neighbors of an image that are the same in both features."""

    def nearest(features: Tensor) -> Tensor:
        unit = F.normalize(features - features.mean(dim=0), dim=1)
        return (unit @ unit.T - 2 * torch.eye(len(unit))).topk(5, dim=1).indices

    return (nearest(one)[:, :, None] == nearest(other)[:, None]).any(dim=2).float().mean().item()


def test_a_random_student_comes_to_follow_its_teacher(tiny_backbone: nn.Module) -> None:
    method = distill.build(tiny_backbone, replace(CONFIG, queue_size=32)).train()
    parts = [batch(16, seed=seed) for seed in range(2)]
    images = torch.cat([part["images"]["view1"] for part in parts])
    taught = method.teacher.features(images)

    @torch.no_grad()
    def of_student() -> Tensor:
        found: Tensor = copy.deepcopy(method.backbone).train()(images)
        return found

    before = agreement(of_student(), taught)
    method.begin(parts)
    losses = follow(method, parts * 20)
    assert losses[-1] < 0.5 * losses[0]
    assert agreement(of_student(), taught) > before + 0.1


def test_both_see_one_view_of_each_image() -> None:
    images = ImageBatch(
        torch.randint(0, 256, (2, 40, 36, 3), dtype=torch.uint8),
        torch.tensor([[40, 36]]).expand(2, 2),
        torch.arange(2),
        torch.zeros(2, dtype=torch.int64),
    )
    settings = ViewSettings(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), seed=0)
    made = distill.views(settings, CONFIG)["images"](images)
    assert set(made) == {"view1", "geometry1"} and made["view1"].shape == (2, 3, 32, 32)
    x0, y0, x1, y1 = made["geometry1"].unbind(1)
    assert (((x1 - x0) * (y1 - y0)).abs() > 0.37).all(), "0.4 of the area, in whole pixels"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"teacher": ""},
            "distill follows a teacher, and random weights are none: add --teacher vit_small_patch14_dinov2",
        ),
        ({"temperature": 0.0}, "temperature is 0.0; give one above 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0; give one above 0"),
        ({"relational_weight": -1.0}, "relational_weight is -1.0; give 0 or more"),
        ({"teacher_image_size": -1}, "teacher_image_size is -1; give a number of pixels"),
        ({"queue_size": 20}, "queue_size 20 is not a multiple of batch_size 8"),
    ],
)
def test_what_means_nothing_is_refused_before_the_first_step(
    changes: dict[str, object], sentence: str, tiny_backbone: nn.Module
) -> None:
    with pytest.raises(InputError, match=sentence):
        distill.check(tiny_backbone, replace(CONFIG, **changes), 32, 8)  # type: ignore[arg-type]


def test_a_student_of_another_kind_follows_too() -> None:
    student = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=48)
    method = distill.build(student, CONFIG).train()
    method.begin([batch()])
    assert torch.isfinite(method(batch(), 0.0)["loss"])
