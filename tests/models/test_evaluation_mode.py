import pytest
import torch
from torch import nn

from tpssl_hf.models import evaluation_mode as module
from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.evaluation_mode import evaluation_mode, every_core


def test_layers_with_frozen_statistics_stay_frozen_after_a_look() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    network.train()
    freeze_statistics(network)
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training and network[2].training and not network[1].training
    before = network[1].running_mean.clone()
    network(torch.randn(2, 3, 4, 4))
    assert torch.equal(network[1].running_mean, before)


def test_a_network_that_is_only_looked_at_has_the_cores_that_training_leaves_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "more_threads", lambda: before + 1)
    with pytest.raises(ValueError, match="of the network"), every_core():
        assert torch.get_num_threads() == before + 1
        raise ValueError("of the network")
    assert torch.get_num_threads() == before


def test_threads_that_were_asked_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for more in (None, before):
        monkeypatch.setattr(module, "more_threads", lambda more=more: more)
        with every_core():
            assert torch.get_num_threads() == before
