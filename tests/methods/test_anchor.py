import copy

import pytest
import torch
from torch import nn

from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.methods.pretrain.byol import BYOL, BYOLConfig


@pytest.fixture
def anchored(tiny_backbone: nn.Module) -> Anchor:
    return Anchor(BYOL(tiny_backbone, BYOLConfig(hidden_features=32, projection_features=16)), weight=0.5)


def batch() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {"images": {k: torch.randn(6, 3, 32, 32, generator=generator) for k in ("view1", "view2")}}


def test_zero_in_value_and_gradient_at_the_start(anchored: Anchor) -> None:
    losses = anchored(batch(), 0.0)
    assert losses["loss_anchor"] == 0 and losses["drift"] == 0
    losses["loss"].backward()
    with_pull = [p.grad.clone() for p in anchored.deployed.parameters()]
    anchored.zero_grad()
    anchored.inner(batch(), 0.0)["loss"].backward()
    for one, p in zip(with_pull, anchored.deployed.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-4, atol=1e-6)


def test_value_and_gradient_are_those_of_the_sum_of_squares(anchored: Anchor) -> None:
    with torch.no_grad():
        for p in anchored.deployed.parameters():
            p.add_(0.01)
    count = sum(p.numel() for p in anchored.deployed.parameters())
    plain = copy.deepcopy(anchored.inner)
    losses = anchored(batch(), 0.0)
    assert losses["loss_anchor"].item() == pytest.approx(0.5 * count * 0.01**2, rel=1e-3)
    losses["loss"].backward()
    plain(batch(), 0.0)["loss"].backward()
    for p, without in zip(anchored.deployed.parameters(), plain.deployed.parameters(), strict=True):
        torch.testing.assert_close(p.grad - without.grad, torch.full_like(p, 2 * 0.5 * 0.01), rtol=1e-3, atol=1e-5)


def test_heads_statistics_and_target_do_not_count(anchored: Anchor) -> None:
    with torch.no_grad():
        for p in [*anchored.inner.projector.parameters(), *anchored.inner.target_backbone.parameters()]:
            p.add_(1.0)
        for b in anchored.deployed.buffers():
            b.add_(1)
    assert anchored(batch(), 0.0)["drift"] == 0


def test_drift_is_relative_to_the_start(anchored: Anchor) -> None:
    with torch.no_grad():
        for p in anchored.deployed.parameters():
            p.mul_(1.1)
    assert anchored(batch(), 0.0)["drift"].item() == pytest.approx(0.1, rel=1e-3)


def test_a_resumed_run_is_anchored_where_the_first_start_was(anchored: Anchor, tiny_backbone: nn.Module) -> None:
    with torch.no_grad():
        for p in anchored.deployed.parameters():
            p.mul_(1.1)
    torch.manual_seed(7)
    resumed = Anchor(
        BYOL(copy.deepcopy(tiny_backbone), BYOLConfig(hidden_features=32, projection_features=16)), weight=0.5
    )
    resumed.load_state_dict(anchored.state_dict())
    assert resumed(batch(), 0.0)["drift"].item() == pytest.approx(0.1, rel=1e-3)


def test_weight_zero_only_measures(tiny_backbone: nn.Module) -> None:
    anchored = Anchor(BYOL(tiny_backbone, BYOLConfig(hidden_features=32, projection_features=16)), weight=0.0)
    with torch.no_grad():
        for p in anchored.deployed.parameters():
            p.mul_(1.5)
    losses = anchored(batch(), 0.0)
    assert "loss_anchor" not in losses
    assert losses["drift"].item() == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(losses["loss"], losses["loss_byol"])
