import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from tpssl_hf.models.batchnorm import SyncedBatchNorm, keep_statistics

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: nn.BatchNorm2d(3),
    "plain_mean": lambda: nn.BatchNorm2d(3, momentum=None),
    "synced": lambda: SyncedBatchNorm(3),
    "fused": lambda: BatchNormAct2d(3),
    "no_statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}


@pytest.fixture
def one_process(tmp_path: Path):  # type: ignore[no-untyped-def]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.usefixtures("one_process")
def test_a_pass_inside_normalizes_alike_and_leaves_the_buffers(name: str) -> None:
    layer = nn.Sequential(LAYERS[name]()).train()
    other, images = copy.deepcopy(layer), 2.0 + torch.randn(4, 3, 5, 5)
    before = copy.deepcopy(layer.state_dict())
    with keep_statistics(layer):
        kept = layer(images)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(kept, other(images)), "batch statistics, as without the context"
    if before.keys() & {"0.running_mean"}:
        assert not torch.equal(other.state_dict()["0.running_mean"], before["0.running_mean"])
        layer(images)
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", ["torch", "synced", "fused"])
@pytest.mark.usefixtures("one_process")
def test_gradients_are_those_of_a_pass_outside(name: str) -> None:
    layer = nn.Sequential(LAYERS[name]()).train()
    images = torch.randn(4, 3, 5, 5)
    gradients = []
    for inside in (True, False):
        layer.zero_grad()
        if inside:
            with keep_statistics(layer):
                kept = layer(images)
            layer(images)  # moves the statistics before the backward pass of the first
            kept.square().sum().backward()
        else:
            layer(images).square().sum().backward()
        gradients.append(layer[0].weight.grad)
    assert torch.equal(*gradients)


def test_an_evaluated_network_still_uses_its_running_statistics() -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    model(torch.randn(8, 3, 32, 32))
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outside = model(images)
        with keep_statistics(model):
            assert torch.equal(model(images), outside)


def test_an_error_inside_does_not_leave_it_switched_off() -> None:
    layer = nn.BatchNorm1d(2)
    mean = layer.running_mean
    with pytest.raises(ZeroDivisionError), keep_statistics(layer):
        _ = 1 / 0
    assert layer.running_mean is mean
