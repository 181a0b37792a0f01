"""What every pretraining method must keep, checked for each by its name in PRETRAIN."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_teacher import tiny_teacher
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.methods.base import Batch
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.training.optim import build_optimizer

SMALL = {
    "byol": {"hidden_features": 32, "projection_features": 16},
    "moco": {"queue_size": 16, "projection_features": 16},
    "simclr": {"projection_features": 16},
    "densecl": {"queue_size": 16, "hidden_features": 32, "projection_features": 16},
    "distill": {"teacher": tiny_teacher(), "queue_size": 16},
    "pixpro": {"hidden_features": 32, "projection_features": 16},
}
DENSE = {"densecl", "pixpro"}  # need feature maps, which a ViT has not
SIDE = {name: 64 if name in DENSE else 32 for name in PRETRAIN}  # of their views
BACKBONES = {"test_resnet": {}, "test_convnext": {}, "test_vit": {"img_size": 32}}
CASES = [(n, b) for n in sorted(PRETRAIN) for b in BACKBONES if not (n in DENSE and b == "test_vit")]


@pytest.fixture(params=CASES, ids=[f"{n}-{b}" for n, b in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(case: tuple[str, str]) -> str:
    return case[0]


@cache
def new_backbone(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **BACKBONES[architecture])
    return model


def make_backbone(architecture: str) -> nn.Module:
    return copy.deepcopy(new_backbone(architecture))


@pytest.fixture
def tiny_backbone(case: tuple[str, str]) -> nn.Module:
    return make_backbone(case[1])


def build(name: str, backbone: nn.Module) -> Anchor:
    torch.manual_seed(1)
    spec = PRETRAIN[name]
    return Anchor(spec.build(backbone, replace(spec.config(), **SMALL[name])), weight=0.01).train()


@cache
def batch_of(name: str, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = ImageBatch(
        torch.randint(0, 256, (count, 40, 36, 3), dtype=torch.uint8, generator=generator),
        torch.tensor([[40, 36]]).expand(count, 2),
        torch.arange(count),
        torch.zeros(count, dtype=torch.int64),
    )
    spec = PRETRAIN[name]
    settings = ViewSettings(SIDE[name], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0)
    return {stream: view(images) for stream, view in spec.views(settings, spec.config()).items()}


def step(method: Anchor, optimizer: torch.optim.Optimizer, batch: Batch, progress: float) -> Tensor:
    losses = method(batch, progress)
    losses["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress)
    return losses["loss"].detach()


def optimizer_of(method: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer("sgd", method, weight_decay=1e-4, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    return optimizer


def test_loss_is_a_finite_scalar_and_everything_else_a_detached_one(name: str, tiny_backbone: nn.Module) -> None:
    losses = build(name, tiny_backbone)(batch_of(name), 0.3)
    assert losses["loss"].requires_grad
    for key, value in losses.items():
        assert value.ndim == 0 and torch.isfinite(value), key
        assert key == "loss" or not value.requires_grad, key


def test_every_trainable_parameter_gets_a_gradient_and_no_other(name: str, tiny_backbone: nn.Module) -> None:
    method = build(name, tiny_backbone)
    step(method, optimizer_of(method), batch_of(name), 0.0)  # away from timm's zero-initialized residual branches
    method(batch_of(name), 0.3)["loss"].backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key


def test_no_state_lives_outside_the_state_dict(name: str, case: tuple[str, str], tiny_backbone: nn.Module) -> None:
    one = build(name, tiny_backbone)
    optimizer = optimizer_of(one)
    for number in range(2):
        step(one, optimizer, batch_of(name), 0.1 * number)
    other = build(name, make_backbone(case[1]))
    other.load_state_dict(one.state_dict())
    again = optimizer_of(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(one, optimizer, batch_of(name), 0.5), step(other, again, batch_of(name), 0.5))
    after = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, after[key]), key


def test_steps_do_not_depend_on_the_clock_or_a_global_stream(name: str, tiny_backbone: nn.Module) -> None:
    losses = []
    for seed in (5, 6):
        method = build(name, copy.deepcopy(tiny_backbone))
        torch.manual_seed(seed)
        losses.append(step(method, optimizer_of(method), batch_of(name), 0.2))
    assert torch.equal(*losses)


def test_gradient_steps_lower_the_loss(name: str, tiny_backbone: nn.Module) -> None:
    """On one batch, with teachers and queues standing still."""
    method = build(name, tiny_backbone)
    optimizer, batch = build_optimizer("adamw", method, weight_decay=0.0, momentum=0.9), batch_of(name)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    series = []
    for _ in range(5):
        losses = method(batch, 0.0)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        series.append(losses["loss"].item())
    assert series[-1] < series[0]


@torch.inference_mode()
def test_the_deployed_network_saves_and_loads_bit_identically(
    name: str, case: tuple[str, str], tiny_backbone: nn.Module, tmp_path: Path
) -> None:
    method = build(name, tiny_backbone)
    folder = save_timm_folder(
        method.deployed, tmp_path / "model", preprocessing=Preprocessing(SIDE[name]), provenance={}
    )
    loaded = timm.create_model(case[1], pretrained=False, num_classes=0, **BACKBONES[case[1]])
    loaded.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(2, 3, SIDE[name], SIDE[name])
    assert torch.equal(loaded.eval()(images), method.deployed.eval()(images))


def test_the_hyper_parameters_say_where_they_come_from(name: str) -> None:
    assert PRETRAIN[name].config.__doc__ and "20" in PRETRAIN[name].config.__doc__, "cite a paper and its year"
