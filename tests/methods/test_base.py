"""What the base class of methods asks for, and what it gives."""

import pytest
import torch
from torch import Tensor, nn

from tpssl_hf.methods.base import Batch, Losses, Method


class WithoutDeployed(Method):
    def forward(self, batch: Batch, progress: float) -> Losses:
        return {"loss": torch.zeros(())}


class Least(WithoutDeployed):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2, 2)

    @property
    def deployed(self) -> nn.Module:
        return self.network


def test_a_method_without_a_deployed_network_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="WithoutDeployed.*deployed"):
        WithoutDeployed()  # type: ignore[abstract]


def test_a_method_without_a_forward_pass_cannot_be_built() -> None:
    class WithoutForward(Method):
        @property
        def deployed(self) -> nn.Module:
            return self

    with pytest.raises(TypeError, match="WithoutForward.*forward"):
        WithoutForward()  # type: ignore[abstract]


def test_the_rest_has_defaults_that_do_nothing() -> None:
    method = Least()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.after_step(0.5)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert method.pseudo_labels is None and method.moved() == {}


def test_what_no_optimizer_trains_is_a_teacher() -> None:
    method = Least()
    assert method.scored == "student"
    method.network.requires_grad_(False)
    assert method.scored == "teacher"


def test_a_method_is_a_module_like_any_other() -> None:
    one, other = Least(), Least()
    other.load_state_dict(one.state_dict())
    outputs: list[Tensor] = [method({}, 0.0)["loss"] for method in (one, other)]
    assert torch.equal(*outputs)
