import copy
from typing import Any

import pytest
import torch
from torch import nn

from tpssl_hf.models.ema import EMATeacher, average_into, mean_share

LATE = torch.tensor(10**15)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def moved(student: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*student.parameters(), student[1].running_mean]:  # type: ignore[index]
            tensor.add_(torch.randn(tensor.shape, generator=generator))
        student[1].num_batches_tracked.add_(1)  # type: ignore[index]
    return student


def test_it_starts_as_an_exact_frozen_copy_of_its_own() -> None:
    student = network()
    teacher = EMATeacher(student, 0.999)
    for key, value in student.state_dict().items():
        copied = teacher.network.state_dict()[key]
        assert torch.equal(copied, value) and copied.data_ptr() != value.data_ptr()
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_that_stands_still_is_not_left() -> None:
    student = network()
    teacher = EMATeacher(student, 0.9)
    for _ in range(5):
        teacher.update(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.network.parameters(), student.parameters(), strict=True))


@pytest.mark.parametrize("momentum", [0.2, 0.999])
def test_parameters_follow_the_formula_and_buffers_are_copied(momentum: float) -> None:
    student = network()
    teacher = EMATeacher(student, momentum)
    expected = [p.detach().clone().double() for p in student.parameters()]
    for k in range(30):
        moved(student, k)
        teacher.update(student)
        now = min(momentum, (1 + k) / (10 + k))
        expected = [now * e + (1 - now) * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
        for found, wanted in zip(teacher.network.parameters(), expected, strict=True):
            torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)
        assert torch.equal(teacher.network[1].running_mean, student[1].running_mean)  # type: ignore[index]
        assert teacher.network[1].num_batches_tracked == k + 1  # type: ignore[index]


def test_early_updates_follow_the_rule_asked_for() -> None:
    student = network()
    teacher = EMATeacher(student, 0.9, early_share=mean_share)
    expected = [p.detach().clone() for p in student.parameters()]
    for k in range(15):
        moved(student, k)
        teacher.update(student)
        now = min(0.9, 1 - 1 / (k + 1))
        expected = [now * e + (1 - now) * p for e, p in zip(expected, student.parameters(), strict=True)]
        for found, wanted in zip(teacher.network.parameters(), expected, strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [100, 300, 1000])
def test_the_average_of_a_short_run_is_of_its_last_tenth_and_not_of_its_start(steps: int) -> None:
    """With momentum 0.999 throughout, 300 steps would leave 74 % of the start in it."""
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, -1e4)
    teacher = EMATeacher(student, 0.999)
    for step in range(steps):
        nn.init.constant_(student.weight, float(step))
        teacher.update(student)
    assert steps - float(teacher.network.weight) == pytest.approx(steps / 10, rel=0.15)


@pytest.mark.parametrize(("buffers", "mean", "count"), [("copy", 1.0, 7), ("average", 0.25, 7), ("keep", 0.0, 0)])
def test_buffers_are_copied_averaged_or_kept(buffers: Any, mean: float, count: int) -> None:
    student = network()
    teacher = EMATeacher(student, 0.75, buffers=buffers)
    teacher.updates.copy_(LATE)
    with torch.no_grad():
        student[1].running_mean.fill_(1.0)  # type: ignore[union-attr]
        student[1].num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    teacher.update(student)
    assert teacher.network[1].running_mean.tolist() == [mean, mean]  # type: ignore[index]
    assert teacher.network[1].num_batches_tracked == count  # type: ignore[index]


def test_a_momentum_of_the_moment_takes_the_place_of_its_own() -> None:
    student = network()
    teacher = EMATeacher(student, 0.75)
    teacher.updates.copy_(LATE)
    before = student[0].weight.detach().clone()
    moved(student, 0)
    teacher.update(student, momentum=1.0)
    assert torch.equal(teacher.network[0].weight, before)  # type: ignore[index]
    teacher.update(student, momentum=0.0)
    torch.testing.assert_close(teacher.network[0].weight, student[0].weight.detach())  # type: ignore[index]


def test_a_long_run_has_the_momentum_asked_for() -> None:
    student = network()
    teacher = EMATeacher(student, 0.999)
    teacher.updates.fill_(1_000_000)
    before = teacher.network[0].weight.clone()  # type: ignore[index]
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher.update(student)
    torch.testing.assert_close(
        teacher.network[0].weight - before,  # type: ignore[index]
        torch.full_like(before, 0.001),
        rtol=1e-3,
        atol=1e-7,
    )


def test_a_resumed_average_goes_on_bit_identically() -> None:
    student = network()
    one = EMATeacher(student, 0.9)
    for k in range(3):
        one.update(moved(student, k))
    other = EMATeacher(network(), 0.9)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    moved(student, 9)
    one.update(student)
    other.update(student)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    assert one.updates == 4


def test_a_network_without_buffers_is_averaged_too() -> None:
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student, 0.5)
    teacher.update(student)
    assert teacher.updates == 1


def test_a_statistic_moves_by_its_formula_and_never_takes_a_value_that_is_not_finite() -> None:
    average = torch.tensor([1.0, 2.0])
    average_into(average, torch.tensor([2.0, 0.0]), 0.9, LATE)
    torch.testing.assert_close(average, torch.tensor([1.1, 1.8]))
    average_into(average, torch.tensor([float("nan"), 0.0]), 0.9, LATE)
    average_into(average, torch.tensor([0.0, float("inf")]), 0.9, LATE)
    torch.testing.assert_close(average, torch.tensor([1.1, 1.8]))


def test_a_statistic_leaves_what_it_was_initialized_to_in_a_few_updates() -> None:
    average = torch.tensor(0.0)
    for k in range(3):
        average_into(average, torch.tensor(1.0), 0.999, torch.tensor(k))
    torch.testing.assert_close(average, torch.tensor(1 - (1 / 10) * (2 / 11) * (3 / 12)))
