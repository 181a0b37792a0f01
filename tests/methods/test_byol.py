import pytest
import torch
from torch import nn

from tpssl_hf.losses.contrastive import negative_cosine
from tpssl_hf.methods.base import Batch
from tpssl_hf.methods.pretrain.byol import BYOL, BYOLConfig


@pytest.fixture
def byol(tiny_backbone: nn.Module) -> BYOL:
    return BYOL(tiny_backbone, BYOLConfig(hidden_features=32, projection_features=16)).train()


def views() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    view1, view2 = (torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2))
    return {"images": {"view1": view1, "view2": view2}}


def loss_of(byol: BYOL, batch: Batch) -> torch.Tensor:
    return torch.stack([byol(way, 0.0)["loss"] for way in byol.ways(batch)]).mean()


def test_swapping_the_views_leaves_the_loss_unchanged(byol: BYOL) -> None:
    batch = views()["images"]
    swapped = {"view1": batch["view2"], "view2": batch["view1"]}
    torch.testing.assert_close(loss_of(byol, {"images": batch}), loss_of(byol, {"images": swapped}))


def test_loss_is_the_mean_of_both_directions(byol: BYOL) -> None:
    view1, view2 = views()["images"].values()
    online = [byol.predictor(byol.projector(byol.backbone(v))) for v in (view1, view2)]
    target = [byol.target_projector(byol.target_backbone(v)) for v in (view1, view2)]
    expected = (negative_cosine(online[0], target[1]) + negative_cosine(online[1], target[0])) / 2
    torch.testing.assert_close(loss_of(byol, views()), expected)


def test_loss_scale_multiplies_the_gradient_and_not_the_log(tiny_backbone: nn.Module) -> None:
    values = []
    for scale in (1.0, 4.0):
        torch.manual_seed(0)
        config = BYOLConfig(hidden_features=32, projection_features=16, loss_scale=scale)
        values.append(BYOL(tiny_backbone, config)(views(), 0.0))
    torch.testing.assert_close(values[1]["loss"], 4 * values[0]["loss"])
    torch.testing.assert_close(values[1]["loss_byol"], values[0]["loss_byol"])


def test_the_target_starts_as_the_online_network(byol: BYOL) -> None:
    for online, target in ((byol.backbone, byol.target_backbone), (byol.projector, byol.target_projector)):
        for one, other in zip(online.state_dict().values(), target.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_the_target_keeps_running_statistics_of_its_own(byol: BYOL) -> None:
    before = {k: v.clone() for k, v in byol.target_backbone.named_buffers() if k.endswith("running_mean")}
    byol(views(), 0.0)
    after = dict(byol.target_backbone.named_buffers())
    assert any(not torch.equal(after[k], v) for k, v in before.items()), "the target runs in training mode"
    copied = {k: v.clone() for k, v in after.items()}
    byol.after_step(0.0)
    assert all(torch.equal(dict(byol.target_backbone.named_buffers())[k], v) for k, v in copied.items())


def test_the_target_moves_by_the_momentum_of_the_progress(byol: BYOL) -> None:
    with torch.no_grad():
        for p in byol.backbone.parameters():
            p.add_(1.0)
    before = [p.clone() for p in byol.target_backbone.parameters()]
    byol.after_step(0.0)
    for old, new in zip(before, byol.target_backbone.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 0.01), rtol=1e-3, atol=1e-5)
    before = [p.clone() for p in byol.target_backbone.parameters()]
    byol.after_step(1.0)
    assert all(torch.equal(old, new) for old, new in zip(before, byol.target_backbone.parameters(), strict=True))


def test_the_last_linears_have_no_bias(byol: BYOL) -> None:
    assert byol.projector[-1].bias is None and byol.predictor[-1].bias is None
