import math

import pytest
import torch
from timm.optim import Lars
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.training.optim import (
    LARS,
    build_optimizer,
    cosine_7_16,
    cosine_decay,
    four_steps,
    parameter_groups,
    poly,
    warmup_cosine,
)


def slow_lars(
    weights: list[Tensor], gradients: list[list[Tensor]], excluded: list[bool], wd: float, lr: float
) -> None:
    """METHODS §1.8, one number at a time."""
    momentum = [torch.zeros_like(w) for w in weights]
    for step in gradients:
        for position, (weight, gradient) in enumerate(zip(weights, step, strict=True)):
            g = gradient if excluded[position] else gradient + wd * weight
            norm_w, norm_g = weight.norm().item(), g.norm().item()
            trust = 1e-3 * norm_w / (norm_g + 1e-8) if norm_w > 0 and norm_g > 0 and not excluded[position] else 1.0
            momentum[position] = 0.9 * momentum[position] + trust * g
            weight -= lr * momentum[position]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_lars_equals_the_slow_reference(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "gpu":  # its way, with what is there
        monkeypatch.setattr(LARS, "_step_of_one", lambda self, group, p: self._step_together(group, [p]))
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2, 3, 3), (3, 3)]
    start = [torch.randn(s) for s in shapes]
    start[3].zero_()  # a zero weight has no norm to adapt to
    gradients = [[torch.randn(s) for s in shapes] for _ in range(4)]
    expected = [w.clone() for w in start]
    slow_lars(expected, gradients, [len(s) == 1 for s in shapes], wd=0.01, lr=0.5)
    parameters = [nn.Parameter(w.clone()) for w in start]
    module = nn.Module()
    for number, parameter in enumerate(parameters):
        module.register_parameter(f"p{number}", parameter)
    optimizer = LARS(parameter_groups(module, 0.01), lr=0.5)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-5, atol=1e-7)


def test_lars_skips_a_step_as_on_a_gpu() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=1.0)
    for found, moves in ((0.0, True), (1.0, False), (0.0, True)):
        for step in (optimizer.step, lambda: optimizer._step_together(optimizer.param_groups[0], [weight])):
            before = weight.detach().clone()
            weight.grad = torch.full((2, 2), torch.nan if found else 1.0)
            optimizer.found_inf = torch.tensor(found)
            with torch.no_grad():
                step()
            assert bool((weight != before).any()) == moves
            assert bool(torch.isfinite(optimizer.state[weight]["momentum_buffer"]).all())


@pytest.mark.parametrize(("excluded", "factor"), [(False, 1.0), (True, 10.0)])
def test_lars_update_is_scale_free_unless_excluded(excluded: bool, factor: float) -> None:
    updates = []
    for scale in (1.0, 10.0):
        weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        weight.grad = scale * torch.tensor([[0.3, -0.2], [0.1, 0.7]])
        before = weight.detach().clone()
        LARS([{"params": [weight], "lars_exclude": excluded}], lr=1.0, weight_decay=0.0).step()
        updates.append(weight.detach() - before)
    torch.testing.assert_close(updates[1], factor * updates[0], rtol=1e-4, atol=1e-8)


def test_lars_adapts_without_weight_decay() -> None:
    weight = nn.Parameter(torch.full((3, 3), 2.0))
    weight.grad = torch.full((3, 3), 100.0)
    LARS([weight], lr=1.0, weight_decay=0.0).step()
    assert weight.detach().sub(2.0).norm().item() == pytest.approx(1e-3 * 6.0, rel=1e-4)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def timm_lars(module: nn.Module, weight_decay: float) -> Lars:
    groups = parameter_groups(module, weight_decay)
    for group in groups:
        group["always_adapt"] = not group.pop("lars_exclude")
    return Lars(groups, lr=0.3, momentum=0.9)


@pytest.mark.parametrize(("weight_decay", "alike"), [(0.0, True), (0.1, False)])
def test_lars_is_that_of_timm_but_for_weight_decay(weight_decay: float, alike: bool) -> None:
    ours, theirs = small_network(), small_network()
    optimizers = LARS(parameter_groups(ours, weight_decay), lr=0.3), timm_lars(theirs, weight_decay)
    for step in range(5):
        images = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            module(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in pairs) == alike


def test_lars_of_timm_lets_a_bad_step_through() -> None:
    """The reason for ours: a release in which this fails would do instead."""
    module = small_network()
    optimizer = timm_lars(module, 0.0)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(value.isnan().any() for value in module.parameters())


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_step_changes_nothing_and_the_next_good_one_is_as_if_it_had_not_been(name: str, bad: float) -> None:
    torch.manual_seed(0)
    runs = []
    for with_bad in (False, True):
        module = nn.Linear(3, 2)
        with torch.no_grad():
            module.weight.copy_(torch.arange(6.0).reshape(2, 3))
            module.bias.fill_(1.0)
        optimizer = build_optimizer(name, module, weight_decay=0.1, momentum=0.9)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        good = torch.ones(2, 3), torch.ones(2)
        for kind in ["good", "bad", "good"] if with_bad else ["good", "good"]:
            module.weight.grad, module.bias.grad = good[0].clone(), good[1].clone()
            if kind == "bad":
                module.weight.grad[0, 0] = bad
            optimizer.found_inf = torch.tensor(1.0 if kind == "bad" else 0.0)
            before = module.weight.detach().clone()
            optimizer.step()
            assert (kind == "bad") == torch.equal(module.weight, before)
        runs.append([module.weight.detach(), module.bias.detach()])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_vectors_get_neither_decay_nor_scaling_and_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    module[2].weight.requires_grad_(False)
    weights, vectors = parameter_groups(module, 0.5)
    assert [tuple(p.shape) for p in weights["params"]] == [(4, 3, 3, 3)]
    assert weights["weight_decay"] == 0.5 and not weights["lars_exclude"]
    assert len(vectors["params"]) == 4 and vectors["weight_decay"] == 0.0 and vectors["lars_exclude"]


def test_schedule_rises_in_a_line_and_falls_in_a_cosine() -> None:
    rates = [warmup_cosine(step, base=2.0, max_steps=110, warmup_steps=10) for step in range(111)]
    assert rates[0] == 0.0 and rates[5] == 1.0 and rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(0, base=2.0, max_steps=10, warmup_steps=0) == 2.0


def test_cosine_decay_at_the_quarter() -> None:
    assert cosine_decay(0.25) == pytest.approx(0.5 + math.sqrt(0.5) / 2)


def test_a_faster_head_gets_groups_of_its_own_that_the_rate_is_multiplied_in() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    groups = parameter_groups(module, 0.5, heads=module[2].parameters(), head_lr_multiplier=10.0)
    assert [group.get("lr_multiplier", 1.0) for group in groups] == [1.0, 1.0, 10.0, 10.0]
    assert [len(group["params"]) for group in groups] == [1, 3, 1, 1]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5, 0.0]
    assert len(parameter_groups(module, 0.5, heads=module[2].parameters())) == 2  # a factor of one needs none


def test_nesterov_is_that_of_torch() -> None:
    moved = []
    for build in (
        lambda p: build_optimizer("sgd", nn.ParameterList([p]), weight_decay=0.0, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True),
    ):
        parameter = nn.Parameter(torch.ones(2, 2))
        optimizer = build(parameter)
        optimizer.param_groups[0]["lr"] = 0.1
        for step in range(3):
            parameter.grad = torch.full((2, 2), 1.0 + step)
            optimizer.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(*moved)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(InputError, match="nesterov needs a momentum above 0"):
        build_optimizer("sgd", nn.Linear(2, 2), weight_decay=0.0, momentum=0.0, nesterov=True)


def test_fixmatch_schedule_ends_at_a_fifth() -> None:
    assert cosine_7_16(0.0) == 1.0 and cosine_7_16(1.0) == pytest.approx(0.19509, abs=1e-5)


def test_self_tuning_schedule_steps_where_its_source_does() -> None:
    steps = [four_steps(step / 27005) for step in (0, 5999, 6001, 12001, 18001, 24001, 27004)]
    assert steps == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.0001, 0.0001])


def test_poly_schedule_falls_almost_in_a_line_to_nothing() -> None:
    assert poly(0.0) == 1.0 and poly(1.0) == poly(1.5) == 0.0
    assert poly(0.5) == pytest.approx(0.535887)
