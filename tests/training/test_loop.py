import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch, Losses, Method
from tpssl_hf.training.loop import LoopSettings, Step, agreed, training_steps, with_progress_bar
from tpssl_hf.training.optim import build_optimizer


class Toy(Method):
    """Least squares behind a BatchNorm, with a teacher, so that every kind of poison has something to poison."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)
        self.teacher = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.seen: list[float] = []

    def forward(self, batch: Batch, progress: float) -> Losses:
        self.seen.append(progress)
        loss = self.linear(self.norm(batch["images"]["x"])).square().mean()
        return {"loss": loss, "extra": torch.rand(()) * 0 + 2.0}

    def after_step(self, progress: float) -> None:
        self.teacher.lerp_(self.linear.weight.detach()[0], 0.5)

    @property
    def deployed(self) -> nn.Module:
        return self.linear


def batches(poison: dict[int, float] | None = None, start: int = 0, size: int = 8) -> Iterator[Batch]:
    step = start
    while True:
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(step))
        if poison and step in poison:
            x[0, 0] = poison[step]
        yield {"images": {"x": x}}
        step += 1


def run(
    method: Toy,
    *,
    steps: int = 12,
    poison: dict[int, float] | None = None,
    **settings: int,
) -> tuple[int, list[tuple[int, dict[str, float]]], list[int]]:
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    made = list(steps_of(method, optimizer, batches(poison), LoopSettings(steps, 8, **settings)))
    logged = [(step.done, step.losses) for step in made if step.losses is not None]
    return made[-1].done, logged, [step.done for step in made if step.save_due]


def steps_of(
    method: nn.Module,
    optimizer: Optimizer,
    source: Iterator[Batch],
    settings: LoopSettings,
    *,
    start_step: int = 0,
    learning_rate: float = 0.05,
) -> Iterator[Step]:
    return training_steps(
        Accelerator(cpu=True), method, optimizer, lambda step: learning_rate, source, settings, start_step=start_step
    )


def finite(method: nn.Module) -> bool:
    return all(torch.isfinite(v).all() for v in method.state_dict().values())


def test_it_trains_logs_and_saves_when_it_should() -> None:
    done, logged, saved = run(Toy(), steps=62, log_every=30, save_every=25)
    assert done == 62
    assert [step for step, _ in logged] == [30, 60, 62]
    assert saved == [25, 50, 62]
    assert logged[-1][1]["loss"] < 0.1 * logged[0][1]["loss"]
    assert set(logged[0][1]) == {"loss", "extra", "learning_rate", "gradient_norm", "images_per_second"}


def test_progress_is_step_over_length() -> None:
    method = Toy()
    run(method, steps=4)
    assert method.seen == [0.0, 0.25, 0.5, 0.75]


def test_each_step_says_what_is_due_after_it() -> None:
    method, settings = Toy(), LoopSettings(7, 8, log_every=2, save_every=3)
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    made = list(steps_of(method, optimizer, batches(start=2), settings, start_step=2))
    assert [(step.done, step.losses is not None, step.save_due) for step in made] == [
        (3, False, True),
        (4, True, False),
        (5, False, False),
        (6, True, True),
        (7, True, True),
    ]
    assert all(step.may_stop for step in made)  # a single process need not ask others


def test_several_processes_may_stop_only_where_a_log_line_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "reduce", lambda self, tensor, how: tensor)
    method = Toy()
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    made = list(steps_of(method, optimizer, batches(), LoopSettings(5, 8, log_every=2)))
    assert [step.done for step in made if step.may_stop] == [2, 4, 5]
    assert agreed(Accelerator(cpu=True), True) and not agreed(Accelerator(cpu=True), False)


def test_who_stops_taking_steps_ends_the_training() -> None:
    method = Toy()
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    for step in steps_of(method, optimizer, batches(), LoopSettings(12, 8)):
        if step.done == 3:
            break
    assert len(method.seen) == 3


def test_the_bar_counts_the_images_of_the_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    method, settings = Toy(), LoopSettings(6, 8)
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    steps = steps_of(method, optimizer, batches(start=2), settings, start_step=2)
    shown = list(with_progress_bar(steps, settings, title="toy", shown=True, start_step=2))
    assert [step.done for step in shown] == [3, 4, 5, 6]
    last = capsys.readouterr().err.split("\r")[-1]
    assert "toy: 100%" in last and "48/48" in last


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_non_finite_step_reaches_nothing(value: float) -> None:
    method, untouched = Toy(), Toy()
    with pytest.warns(RuntimeWarning, match="step 1: loss or gradient not finite"):
        run(method, steps=1, poison={0: value})
    for (name, one), other in zip(method.state_dict().items(), untouched.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_training_goes_on_after_two_bad_steps() -> None:
    method = Toy()
    with pytest.warns(RuntimeWarning):
        done, _, _ = run(method, steps=8, poison={3: float("nan"), 4: float("inf")})
    assert done == 8 and finite(method)


@pytest.mark.filterwarnings("ignore:step")
def test_three_bad_steps_in_a_row_stop_with_step_rate_and_advice() -> None:
    method = Toy()
    with pytest.raises(
        InputError, match=r"3 steps in a row up to step 5 \(learning rate 0.05\).*Lower the learning rate"
    ):
        run(method, steps=8, poison={2: float("nan"), 3: float("nan"), 4: float("nan")})
    assert finite(method)


@pytest.mark.filterwarnings("ignore:step")
def test_three_bad_steps_that_are_not_in_a_row_do_not_stop() -> None:
    assert run(Toy(), steps=9, poison={1: float("nan"), 3: float("nan"), 5: float("nan")})[0] == 9


def test_accumulation_averages_the_parts() -> None:
    """Without BatchNorm two halves give the gradient of the whole."""

    class Plain(Toy):
        def forward(self, batch: Batch, progress: float) -> Losses:
            return {"loss": self.linear(batch["images"]["x"]).square().mean()}

    def halves() -> Iterator[Batch]:
        for batch in batches():
            x: Tensor = batch["images"]["x"]
            yield {"images": {"x": x[:4]}}
            yield {"images": {"x": x[4:]}}

    results = []
    for source, parts in ((batches(), 1), (halves(), 2)):
        method = Plain()
        optimizer = build_optimizer("sgd", method.linear, weight_decay=0.0, momentum=0.9)
        list(steps_of(method, optimizer, source, LoopSettings(5, 8, accumulation_steps=parts)))
        results.append(method.linear.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


class TwoWays(Toy):
    """A method that goes two ways, and counts the tensors kept for a backward pass whenever it goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        self.kept: list[int] = []

    def ways(self, batch: Batch) -> tuple[Batch, ...]:
        return batch, {"images": {"x": 2.0 * batch["images"]["x"]}}

    def forward(self, batch: Batch, progress: float) -> Losses:
        self.kept.append(len(self.alive))
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor):
            losses = super().forward(batch, progress)
        self.kept.append(len(self.alive))
        return losses | {"size": batch["images"]["x"].square().mean()}

    def _keep(self, tensor: Tensor) -> "Kept":
        kept = Kept(tensor)
        self.alive.add(kept)
        return kept


@dataclass(eq=False)
class Kept:
    tensor: Tensor


def test_a_step_is_the_mean_of_its_ways_and_holds_the_activations_of_one() -> None:
    method, expected = TwoWays().eval(), Toy()  # in evaluation mode: a normalized input forgets its scale
    expected.norm.eval()
    x = next(batches())["images"]["x"]
    losses = [expected({"images": {"x": scale * x}}, 0.0)["loss"] for scale in (1.0, 2.0)]
    torch.stack(losses).mean().backward()
    gradient = torch.stack([p.grad.norm() for p in expected.parameters() if p.grad is not None]).norm()

    method.train = lambda mode=True: method  # type: ignore[method-assign, assignment]
    _, ((_, logged),), _ = run(method, steps=1, log_every=1)
    assert logged["loss"] == pytest.approx(torch.stack(losses).mean().item())
    assert logged["size"] == pytest.approx(2.5 * x.square().mean().item())
    assert logged["gradient_norm"] == pytest.approx(gradient.item())
    assert method.kept[0] == method.kept[2] == 0 < method.kept[1] == method.kept[3]


def test_layers_that_draw_randomly_do_not_depend_on_where_the_run_was_resumed() -> None:
    class Dropped(Toy):
        def forward(self, batch: Batch, progress: float) -> Losses:
            return {"loss": nn.functional.dropout(self.linear(batch["images"]["x"]), 0.5).square().mean()}

    def losses_from(method: Toy, start: int, steps: int) -> list[float]:
        optimizer = build_optimizer("sgd", method.linear, weight_decay=0.0, momentum=0.0)
        settings = LoopSettings(steps, 8, log_every=1)
        made = steps_of(method, optimizer, batches(start=start), settings, start_step=start, learning_rate=0.0)
        return [step.losses["loss"] for step in made if step.losses is not None]

    whole = losses_from(Dropped(), 0, 6)
    torch.rand(17)
    assert losses_from(Dropped(), 3, 6) == whole[3:]


def test_a_group_with_a_rate_factor_learns_so_many_times_as_fast() -> None:
    toy = Toy()
    optimizer = build_optimizer(
        "sgd", toy, weight_decay=0.0, momentum=0.0, heads=toy.linear.parameters(), head_lr_multiplier=10.0
    )
    list(steps_of(toy, optimizer, batches(), LoopSettings(1, 8), learning_rate=0.01))
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.1])


def test_a_long_gradient_is_cut_and_a_short_one_is_left() -> None:
    moved = {}
    for limit in (None, 1e9, 1e-3):
        toy = Toy()
        before = toy.linear.weight.detach().clone()
        optimizer = build_optimizer("sgd", toy, weight_decay=0.0, momentum=0.0)
        steps = steps_of(toy, optimizer, batches(), LoopSettings(1, 8, max_gradient_norm=limit), learning_rate=1.0)
        [step] = list(steps)
        moved[limit] = toy.linear.weight.detach() - before
        assert step.losses is not None and step.losses["gradient_norm"] > 1e-2, "the log has it uncut"
    assert torch.equal(moved[None], moved[1e9])
    assert moved[1e-3].norm() <= 1e-3
    direction = [moved[limit] / moved[limit].norm() for limit in (1e-3, None)]
    torch.testing.assert_close(*direction, atol=1e-3, rtol=0)  # so short a step is rounded
