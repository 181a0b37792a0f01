"""BatchNorm over two processes against torch's own over the joined batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from forked_runs import Forks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.models.batchnorm import SyncedBatchNorm, fair_random, freeze_statistics, synchronize_batchnorm

CPU = torch.device("cpu")
FORWARDS = 3


class Case:
    """A layer, and the inputs and output gradients of the joined batch."""

    def __init__(self, layer: Callable[[], nn.Module], *shape: int, dtype: torch.dtype = torch.float32) -> None:
        self.layer, self.shape, self.dtype = layer, shape, dtype

    def make(self) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        layer = self.layer()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        inputs, gradients = (
            [(torch.randn(self.shape, generator=generator) * 2 + 1).to(self.dtype) for _ in range(FORWARDS)]
            for _ in range(2)
        )
        if len(self.shape) == 4:
            inputs = [values.contiguous(memory_format=torch.channels_last) for values in inputs]
        return layer, inputs, gradients


CASES = {
    "vectors": Case(lambda: nn.BatchNorm1d(3), 8, 3),
    "sequences": Case(lambda: nn.BatchNorm1d(3), 8, 3, 5),
    "images": Case(lambda: nn.BatchNorm2d(3, eps=1e-3, momentum=0.3), 8, 3, 5, 4),
    "one_each": Case(lambda: nn.BatchNorm2d(3), 2, 3, 2, 2),
    "not_affine": Case(lambda: nn.BatchNorm2d(3, affine=False), 8, 3, 5, 4),
    "no_statistics": Case(lambda: nn.BatchNorm2d(3, track_running_stats=False), 8, 3, 5, 4),
    "plain_mean": Case(lambda: nn.BatchNorm2d(3, momentum=None), 8, 3, 5, 4),
    "bfloat16": Case(lambda: nn.BatchNorm2d(3), 8, 3, 5, 4, dtype=torch.bfloat16),
}


def results(layer: nn.Module, inputs: list[Tensor], gradients: list[Tensor], own: slice) -> dict[str, Tensor]:
    """Everything a layer gives for the rows ``own`` of each batch, in training and then in evaluation."""
    found: dict[str, Tensor] = {}
    for number, (values, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        part = values[own].clone().requires_grad_()
        output = layer(part)
        output.backward(gradient[own])
        assert part.grad is not None and output.dtype == part.dtype
        found |= {f"output_{number}": output.detach(), f"input_gradient_{number}": part.grad}
    layer.eval()
    found["evaluated"] = layer(inputs[0][own]).detach()
    found |= {f"gradient_{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    found |= {f"buffer_{name}": b for name, b in layer.named_buffers()}
    return {name: value.contiguous() for name, value in found.items()}


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, case in CASES.items():
        layer, inputs, gradients = case.make()
        half = case.shape[0] // 2
        synced = synchronize_batchnorm(nn.Sequential(layer), CPU)[0]  # type: ignore[index]
        mine = results(synced, inputs, gradients, slice(rank * half, (rank + 1) * half))
        found |= {f"{name}/{key}": value for key, value in mine.items()}
    save_file(found, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def halves(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("halves")
    forks.call(__file__, "one_of_two", folder, [0, str(folder)], [1, str(folder)])
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_halves_are_normalized_as_one_batch(halves: list[dict[str, Tensor]], name: str) -> None:
    layer, inputs, gradients = CASES[name].make()
    expected = results(layer, inputs, gradients, slice(None))
    if name == "no_statistics":
        expected.pop("evaluated")  # made from the batch at hand, and evaluation does not synchronize
    exact = CASES[name].dtype == torch.float32
    for key, value in expected.items():
        first, second = (half[f"{name}/{key}"] for half in halves)
        if key.startswith("buffer"):
            assert torch.equal(first, second)
            joined = first
        else:
            joined = first + second if key.startswith("gradient") else torch.cat([first, second])
        torch.testing.assert_close(
            joined, value, rtol=1e-5 if exact else 2e-2, atol=1e-5 if exact else 2e-2, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_halves_alone_would_be_something_else(halves: list[dict[str, Tensor]]) -> None:
    layer, inputs, gradients = CASES["images"].make()
    alone = results(layer, inputs, gradients, slice(0, 4))
    assert (alone["output_0"] - halves[0]["images/output_0"]).abs().max() > 0.1


def test_conversion_keeps_keys_values_freezing_and_evaluation(tiny_backbone: nn.Module) -> None:
    tiny_backbone.bn1.requires_grad_(False)  # type: ignore[union-attr]
    tiny_backbone.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, former = tiny_backbone(images), copy.deepcopy(tiny_backbone)
        synced = synchronize_batchnorm(tiny_backbone, CPU)
        assert torch.equal(synced(images), before)
    layers = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert layers and all(isinstance(layer, SyncedBatchNorm) and not layer.training for layer in layers)
    assert list(synced.state_dict()) == list(former.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(synced.state_dict().values(), former.state_dict().values(), strict=True)
    )
    asked = [p.requires_grad for p in synced.parameters()]
    assert asked == [p.requires_grad for p in former.parameters()] and asked.count(False) == 2


def test_layer_that_is_fused_with_its_activation_is_refused() -> None:
    fused = timm.create_model("test_efficientnet", pretrained=False, num_classes=0)
    with pytest.raises(
        InputError, match="BatchNormAct2d cannot share statistics on a CPU; set sync_batchnorm to false"
    ):
        synchronize_batchnorm(fused, CPU)


def test_frozen_statistics_stay_in_training_in_copies_and_beside_heads_that_learn() -> None:
    class Wrapped(Method):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
            freeze_statistics(self.backbone)
            self.copy, self.head = copy.deepcopy(self.backbone), nn.BatchNorm1d(4)

        def forward(self, batch: Any, progress: float) -> Any:
            both = self.backbone(batch) + self.copy(batch)
            return {"loss": self.head(both.mean(dim=(2, 3))).square().mean()}

        @property
        def deployed(self) -> nn.Module:
            return self.backbone

    method = Wrapped().train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(torch.randn(8, 3, 5, 5), 0.0)["loss"].backward()
    after = method.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"head.running_mean", "head.running_var", "head.num_batches_tracked"}
    assert method.backbone[1].weight.grad is not None, "γ and β learn"


def test_layers_with_frozen_statistics_share_none() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    freeze_statistics(network[0])
    synced = synchronize_batchnorm(network, torch.device("cpu"))
    assert type(synced[0]) is nn.BatchNorm2d and isinstance(synced[1], SyncedBatchNorm)


def test_a_fair_random_network_answers_to_its_input() -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        flat, fair = network(images), fair_random(network)(images)
        torch.manual_seed(0)
        wanted = timm.create_model("resnet18", pretrained=False, num_classes=0, zero_init_last=False).eval()(images)
    torch.testing.assert_close(fair, wanted)
    assert not torch.allclose(flat, fair) and network.layer1[0].bn2.weight.abs().max() == 0, "the network itself stays"
