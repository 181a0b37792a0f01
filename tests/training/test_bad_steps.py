"""Steps whose loss or gradient is not finite leave no trace in weights, optimizer, statistics, teachers and queues."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_loop import Toy, batches, steps_of
from torch import Tensor, nn
from torch.optim import Optimizer

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch, Losses
from tpssl_hf.models.queue import KeyQueue
from tpssl_hf.training.checkpoint import pack_optimizer, unpack_optimizer
from tpssl_hf.training.loop import LoopSettings
from tpssl_hf.training.nonfinite_guard import NonFiniteGuard
from tpssl_hf.training.optim import build_optimizer


class Stateful(Toy):
    """With a queue that is filled after the step, and weights that move there."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = KeyQueue(97, 3)
        self.new: list[Tensor] = []

    def forward(self, batch: Batch, progress: float) -> Losses:
        self.new.append(batch["images"]["x"])
        return super().forward(batch, progress)

    def after_step(self, progress: float) -> None:
        self.queue.enqueue(torch.cat(self.new))
        self.new = []
        super().after_step(progress)
        with torch.no_grad():
            self.linear.weight.mul_(0.99)  # as the decoupled pull of the anchor does


@pytest.fixture
def bad_memory() -> Iterator[None]:
    """Memory that nobody has written to holds no numbers."""
    torch.use_deterministic_algorithms(True)  # which has torch.empty filled with NaN
    yield
    torch.use_deterministic_algorithms(False)


def optimizer_of(name: str, method: nn.Module) -> Optimizer:
    return build_optimizer(name, method, weight_decay=0.1, momentum=0.9)


def learn(method: nn.Module, optimizer: Optimizer, numbers: list[int], bad: set[int], parts: int = 1) -> None:
    """Train on the batches of these numbers, ``parts`` to a step; one feature of a bad one is not a number."""
    poison = dict.fromkeys(bad, float("nan"))
    source = (next(batches(poison, start=number)) for number in numbers)
    settings = LoopSettings(len(numbers) // parts, 8 * parts, accumulation_steps=parts)
    list(steps_of(method, optimizer, source, settings))


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.usefixtures("bad_memory")
@pytest.mark.parametrize("steps", [{0, 1}, {1, 2}, {0, 2, 3}], ids=str)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("reading_is_free", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_training_is_as_if_bad_steps_had_not_been(
    reading_is_free: bool, name: str, parts: int, steps: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NonFiniteGuard, "reading_is_free", reading_is_free)
    numbers = list(range(6 * parts))
    good = [number for number in numbers if number // parts not in steps]
    bad = {parts * step + step % parts for step in steps}  # now the first part of a step, now the last
    method, other = Stateful(), Stateful()
    optimizer, other_optimizer = optimizer_of(name, method), optimizer_of(name, other)
    learn(method, optimizer, numbers, bad, parts)
    learn(other, other_optimizer, good, set(), parts)
    assert_same(method.state_dict(), other.state_dict())
    assert_same(optimizer.state_dict(), other_optimizer.state_dict())
    assert not torch.equal(method.linear.weight, Toy().linear.weight) and method.queue.position > 0


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.usefixtures("bad_memory")
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_three_bad_steps_at_the_very_start_leave_everything_as_it_was(name: str) -> None:
    method = Stateful()
    optimizer = optimizer_of(name, method)
    with pytest.raises(InputError, match="the weights are still those from before"):
        learn(method, optimizer, [0, 1, 2], {0, 1, 2})
    assert_same(method.state_dict(), Stateful().state_dict())
    assert all(not torch.as_tensor(v).any() for state in optimizer.state.values() for v in state.values())


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.usefixtures("bad_memory")
@pytest.mark.parametrize("before", [[], [0]], ids=["never stepped", "skipped its only step"])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_an_optimizer_resumed_without_a_good_step_goes_on_like_a_new_one(name: str, before: list[int]) -> None:
    methods = [Stateful() for _ in range(3)]
    first, resumed, new = (optimizer_of(name, method) for method in methods)
    learn(methods[0], first, before, set(before))
    unpack_optimizer(resumed, *pack_optimizer(first))
    learn(methods[1], resumed, [1, 2, 3], {1})
    learn(methods[2], new, [2, 3], set())
    assert_same(methods[1].state_dict(), methods[2].state_dict())
    assert_same(resumed.state_dict(), new.state_dict())


@pytest.mark.filterwarnings("ignore:step")
def test_a_loss_that_is_not_finite_in_an_early_part_is_noticed() -> None:
    class OnlyAtFirst(Toy):
        """An infinite loss with a gradient that is not."""

        def forward(self, batch: Batch, progress: float) -> Losses:
            losses = super().forward(batch, progress)
            return {"loss": losses["loss"] + (math.inf if len(self.seen) == 1 else 0.0)}

    method = OnlyAtFirst()
    learn(method, optimizer_of("sgd", method), [0, 1], set(), parts=2)
    assert_same(method.state_dict(), Toy().state_dict())
