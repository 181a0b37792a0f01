import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from tpssl_hf.config.shared import LEFT_TO_BUDGET
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.finetuning_plan import FinetuningPlan, StepBatch, plan_finetuning, step_batches

SMALL, MIDDLE, LARGE = StepBatch(16, 4), StepBatch(32, 7), StepBatch(64, 7)


def planned(budget: float, seconds: Mapping[StepBatch, float], most: int = 10_000, **given: Any) -> FinetuningPlan:
    given = {"clock": lambda: 0.0, "most_steps": lambda batch: most, **given}
    return plan_finetuning(budget, seconds.__getitem__, [SMALL, MIDDLE, LARGE], **given)


@pytest.mark.parametrize(
    ("budget", "most", "batch", "steps"),
    [
        (400, 10_000, SMALL, 360),  # of the middle batch 120 would fit
        (3_000, 10_000, SMALL, 2_700),
        (3_333, 10_000, SMALL, 2_999),  # one step short of 1,000 of the middle batch
        (3_334, 10_000, MIDDLE, 1_000),
        (6_000, 10_000, MIDDLE, 1_800),
        (8_000, 10_000, LARGE, 1_200),
        (400, 50, LARGE, 50),  # all there is, in the largest batch for which there is time
        (30, 10_000, SMALL, 27),
    ],
)
def test_time_makes_first_steps_and_then_larger_batches(
    budget: float, most: int, batch: StepBatch, steps: int
) -> None:
    found = planned(budget, {SMALL: 1.0, MIDDLE: 3.0, LARGE: 6.0}, most)
    assert (found.batch, found.max_steps) == (batch, steps)
    assert found.seconds_expected <= 0.9 * budget
    assert found.at_most == (steps == most)


def test_batches_are_timed_from_the_smallest_up_and_none_in_vain() -> None:
    timed = []

    def seconds(batch: StepBatch) -> float:
        timed.append(batch)
        return batch.batch_size / 16

    given: dict[str, Any] = {"most_steps": lambda batch: 10_000, "clock": lambda: 0.0}
    assert plan_finetuning(1_000, seconds, [SMALL, MIDDLE, LARGE], **given).batch == SMALL
    assert timed == [SMALL]
    assert plan_finetuning(2_000, seconds, [SMALL, MIDDLE, LARGE], **given).batch == SMALL
    assert timed == [SMALL, SMALL, MIDDLE]


def test_several_trainings_share_the_time() -> None:
    seconds = {SMALL: 1.0, MIDDLE: 3.0, LARGE: 6.0}
    one, two = (
        planned(1_000, seconds, overhead_seconds=100),
        planned(1_000, seconds, overhead_seconds=100, trainings=2),
    )
    assert (one.max_steps, two.max_steps) == (800, 400)
    assert one.seconds_expected == two.seconds_expected == 900
    assert "2 times 400 steps" in two.summary()


def test_overhead_and_the_time_of_timing_are_taken_off() -> None:
    moments = iter([0.0, 50.0, 60.0, 60.0])
    found = planned(1_000, {SMALL: 1.0}, overhead_seconds=100, clock=lambda: next(moments))
    assert (found.max_steps, found.overhead_seconds, found.seconds_expected) == (740, 160, 900)


def test_a_batch_that_does_not_fit_in_memory_is_passed_over() -> None:
    found = planned(10_000, {SMALL: 1.0, MIDDLE: math.inf})
    assert (found.batch, found.max_steps) == (SMALL, 9_000)
    with pytest.raises(InputError, match="16 labeled and 64 unlabeled images a step do not fit in memory"):
        planned(10_000, {SMALL: math.inf})


@pytest.mark.parametrize("trainings", [1, 3])
def test_too_little_time_names_the_least_budget_and_that_budget_works(trainings: int) -> None:
    given: dict[str, Any] = {"overhead_seconds": 20.0, "trainings": trainings}
    least = math.ceil((20 + trainings * 70) / 0.9)
    with pytest.raises(InputError, match=f"steps of 16 labeled and 64 unlabeled images; 10 .*--budget {least}s"):
        planned(60, {SMALL: 7.0}, **given)
    assert planned(least, {SMALL: 7.0}, **given).max_steps == 10


def test_the_summary_says_what_and_when() -> None:
    found = planned(900, {SMALL: 1.0}, overhead_seconds=60)
    text = found.summary(datetime(2024, 1, 1, 10, 0))
    assert "plan for 15 min: 750 steps of 16 labeled and 64 unlabeled images at 1 s each" in text
    assert "14 min, ready about 10:13" in text and "10%" in text and "note" not in text
    assert "under 300 steps" in planned(200, {SMALL: 1.0}).summary()
    assert "as long as a run without a budget" in planned(200, {SMALL: 1.0, MIDDLE: 2.0, LARGE: 3.0}, 12).summary()


def test_batches_are_divisible_among_processes() -> None:
    nothing = StepBatch(LEFT_TO_BUDGET, LEFT_TO_BUDGET)
    found = step_batches((16, 32), 4, own=LARGE, asked=nothing, num_processes=3)
    assert found == [StepBatch(18, 4), StepBatch(33, 7), StepBatch(66, 7)]
    assert step_batches((4,), 2, own=StepBatch(8, 2), asked=nothing, num_processes=4) == [StepBatch(8, 2)]
