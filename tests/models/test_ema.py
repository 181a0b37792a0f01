import pytest
import torch
from torch import nn

from tpssl_hf.models.ema import cosine_momentum, ema_update, frozen_copy


def test_momentum_rises_from_its_base_to_exactly_one() -> None:
    assert cosine_momentum(0.99, 0.0) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 1.0) == 1.0


def test_update_moves_parameters_by_the_formula_and_leaves_buffers() -> None:
    online = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    target = frozen_copy(online)
    expected = [0.9 * p.detach() + 0.1 * (p.detach() + 1.0) for p in target.parameters()]
    with torch.no_grad():
        for p in online.parameters():
            p.add_(1.0)
    online[1].running_mean.fill_(5.0)
    ema_update(target, online, 0.9)
    for p, e in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(p, e)
    assert target[1].running_mean.tolist() == [0.0, 0.0]


def test_a_copy_is_frozen_and_its_own() -> None:
    online = nn.Linear(2, 2)
    target = frozen_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    ema_update(target, online, 0.0)
    assert target.weight.data_ptr() != online.weight.data_ptr()
