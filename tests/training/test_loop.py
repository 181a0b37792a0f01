from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Batch, Losses
from tpssl_hf.training.loop import LoopSettings, train
from tpssl_hf.training.optim import build_optimizer


class Toy(nn.Module):
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
    stop_at: int | None = None,
    **settings: int,
) -> tuple[int, list[tuple[int, dict[str, float]]], list[int]]:
    accelerator = Accelerator(cpu=True)
    optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
    logged: list[tuple[int, dict[str, float]]] = []
    saved: list[int] = []
    done = train(
        accelerator,
        method,
        optimizer,
        lambda step: 0.05,
        batches(poison),
        LoopSettings(steps, 8, **settings),
        start_step=0,
        log=lambda step, values: logged.append((step, values)),
        save=saved.append,
        stop=lambda: stop_at is not None and len(method.seen) >= stop_at,
    )
    return done, logged, saved


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


def test_a_stop_saves_first() -> None:
    done, _, saved = run(Toy(), steps=12, stop_at=3)
    assert done == 3 and saved == [3]


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
    with pytest.raises(InputError, match=r"3 steps in a row up to step 5 \(learning rate 0.05\).*--learning_rate"):
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
        train(
            Accelerator(cpu=True),
            method,
            optimizer,
            lambda step: 0.05,
            source,
            LoopSettings(5, 8, accumulation_steps=parts),
            start_step=0,
            log=lambda step, values: None,
            save=lambda step: None,
            stop=lambda: False,
        )
        results.append(method.linear.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_layers_that_draw_randomly_do_not_depend_on_where_the_run_was_resumed() -> None:
    class Dropped(Toy):
        def forward(self, batch: Batch, progress: float) -> Losses:
            return {"loss": nn.functional.dropout(self.linear(batch["images"]["x"]), 0.5).square().mean()}

    def losses_from(method: Toy, start: int, steps: int) -> list[float]:
        seen: list[float] = []
        optimizer = build_optimizer("sgd", method.linear, weight_decay=0.0, momentum=0.0)
        train(
            Accelerator(cpu=True),
            method,
            optimizer,
            lambda step: 0.0,
            batches(start=start),
            LoopSettings(steps, 8, log_every=1),
            start_step=start,
            log=lambda step, values: seen.append(values["loss"]),
            save=lambda step: None,
            stop=lambda: False,
        )
        return seen

    whole = losses_from(Dropped(), 0, 6)
    torch.rand(17)
    assert losses_from(Dropped(), 3, 6) == whole[3:]


def test_a_group_with_a_rate_factor_learns_so_many_times_as_fast() -> None:
    toy = Toy()
    optimizer = build_optimizer(
        "sgd", toy, weight_decay=0.0, momentum=0.0, heads=toy.linear.parameters(), head_lr_multiplier=10.0
    )
    train(
        Accelerator(cpu=True),
        toy,
        optimizer,
        lambda step: 0.01,
        batches(),
        LoopSettings(1, 8),
        start_step=0,
        log=lambda step, values: None,
        save=lambda step: None,
        stop=lambda: False,
    )
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.1])
