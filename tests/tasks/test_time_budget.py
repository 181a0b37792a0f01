import math
from datetime import datetime

import pytest

from tpssl_hf.errors import InputError
from tpssl_hf.tasks.time_budget import measure_seconds_per_step, parse_duration, plan, say_duration


@pytest.mark.parametrize(
    "text, seconds",
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h5s", 3605), ("0.5h", 1800), (" 10M ", 600)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "30 minutes", "-5m", "30m1h", "0s", "1d", "nan", "1e3s"])
def test_other_texts_are_refused_with_examples(text: str) -> None:
    with pytest.raises(InputError, match="1h30m"):
        parse_duration(text)


def test_durations_are_said() -> None:
    assert [say_duration(s) for s in (150, 299.2, 300)] == ["2 min 30 s", "5 min", "5 min"]
    assert [say_duration(s) for s in (44.2, 720, 3540.5, 5400, 7200)] == ["45 s", "12 min", "1 h", "1 h 30 min", "2 h"]


def test_the_preferred_size_is_taken_where_it_gives_enough_steps() -> None:
    found = plan(
        1000, {64: 0.1, 128: 0.2, 256: 0.4}, images=2560, batch_sizes=[64, 128, 256], preferred=256, clock=lambda: 0
    )
    assert (found.batch_size, found.max_steps, found.epochs) == (256, 2250, 225.0)
    assert found.seconds_expected == pytest.approx(900)


def test_a_smaller_size_is_taken_before_too_few_steps() -> None:
    seconds = {64: 1.0, 128: 1.7, 256: 3.0}
    found = plan(1000, seconds, images=5000, batch_sizes=seconds, preferred=256, clock=lambda: 0)
    assert (found.batch_size, found.max_steps) == (128, 529)


def test_where_none_gives_enough_the_one_with_most_steps_is_taken() -> None:
    seconds = {64: 10.0, 128: 17.0, 256: 30.0}
    found = plan(1000, seconds, images=5000, batch_sizes=seconds, preferred=256, clock=lambda: 0)
    assert (found.batch_size, found.max_steps) == (64, 90)
    assert found.epochs == pytest.approx(90 / 78)
    assert "under 500 steps" in found.summary()


def test_sizes_are_timed_from_the_preferred_on_and_none_in_vain() -> None:
    timed = []

    def seconds(size: int) -> float:
        timed.append(size)
        return size / 100

    sizes = [32, 64, 128, 256, 512]
    assert plan(900, seconds, images=5000, batch_sizes=sizes, preferred=256).batch_size == 128
    assert timed == [256, 128]


def test_overhead_and_the_time_of_timing_are_taken_off() -> None:
    moments = iter([0.0, 50.0, 50.0])
    found = plan(
        1000,
        {64: 1.0},
        images=640,
        batch_sizes=[64],
        preferred=64,
        overhead_seconds=100,
        clock=lambda: next(moments),
    )
    assert found.max_steps == 750 and found.overhead_seconds == 150 and found.seconds_expected == 900


def test_sizes_the_method_or_the_images_do_not_allow_are_passed_over() -> None:
    even = plan(
        1000,
        {100: 0.1, 128: 0.1},
        images=500,
        batch_sizes=[100, 128],
        preferred=100,
        allowed=lambda size: 4096 % size == 0,
    )
    assert even.batch_size == 128
    assert plan(1000, {64: 0.1, 512: 0.1}, images=100, batch_sizes=[64, 512], preferred=512).batch_size == 64
    with pytest.raises(InputError, match="suits the method"):
        plan(1000, {64: 0.1}, images=10, batch_sizes=[64], preferred=64)


def test_a_size_that_does_not_fit_in_memory_is_passed_over() -> None:
    seconds = {64: 0.1, 128: math.inf}
    assert plan(1000, seconds, images=500, batch_sizes=seconds, preferred=128).batch_size == 64
    with pytest.raises(InputError, match="memory"):
        plan(1000, {128: math.inf}, images=500, batch_sizes=[128], preferred=128)


def test_too_little_time_names_the_least_budget_and_that_budget_works() -> None:
    for overhead in (0.0, 30.0):
        arguments = {
            "images": 500,
            "batch_sizes": [64],
            "preferred": 64,
            "overhead_seconds": overhead,
            "clock": lambda: 0,
        }
        least = math.ceil((overhead + 70) / 0.9)
        with pytest.raises(InputError, match=f"--budget {least}s"):
            plan(60, {64: 7.0}, **arguments)
        assert plan(least, {64: 7.0}, **arguments).max_steps == 10
    with pytest.raises(InputError, match="steps of 32 images.*--budget 12s"):
        plan(0.5, {32: 1.0, 64: 2.0}, images=500, batch_sizes=[32, 64], preferred=64, clock=lambda: 0)


def test_the_summary_says_what_and_when() -> None:
    found = plan(3600, {64: 1.0}, images=640, batch_sizes=[64], preferred=64, overhead_seconds=60, clock=lambda: 0)
    text = found.summary(datetime(2024, 1, 1, 10, 0))
    assert "plan for 1 h: 3,180 steps of 64 images (318 epochs)" in text
    assert "54 min, ready about 10:54" in text and "10%" in text


def test_timing_discards_the_warm_up_and_takes_the_median() -> None:
    calls = []
    durations = iter([50.0, 0.1, 1.0, 9.0, 1.2])

    def run(batch_size: int, steps: int) -> float:
        calls.append((batch_size, steps))
        return next(durations)

    assert measure_seconds_per_step(run, 32) == pytest.approx(0.12)
    assert calls == [(32, 1), (32, 1), (32, 10), (32, 10), (32, 10)]


def test_a_step_over_a_second_is_timed_once() -> None:
    durations = iter([50.0, 4.0])
    assert measure_seconds_per_step(lambda batch_size, steps: next(durations), 32) == 4.0


def test_a_larger_batch_is_not_timed_where_a_smaller_one_gives_too_few_steps() -> None:
    tried: list[int] = []

    def seconds(size: int) -> float:
        tried.append(size)
        return size / 64

    found = plan(400, seconds, images=5000, batch_sizes=[32, 64, 128, 256], preferred=128, clock=lambda: 0)
    assert tried == [128, 64, 32] and found.batch_size == 32


def test_timing_stops_at_a_tenth_of_the_budget() -> None:
    tried, now = [], iter(range(0, 10_000, 50))

    def seconds(size: int) -> float:
        tried.append(size)
        return size / 64

    found = plan(600, seconds, images=5000, batch_sizes=[32, 64, 128], preferred=128, clock=lambda: next(now))
    assert tried == [128] and found.batch_size == 128
