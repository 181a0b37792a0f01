import torch
from torch import nn

from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.evaluation_mode import evaluation_mode


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
