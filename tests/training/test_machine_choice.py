from pathlib import Path

import pytest
import torch

from tpssl_hf.training import machine_choice
from tpssl_hf.training.machine_choice import Setting, Workload, fastest, measure, remembered, sensible, sentence, table

BF16, FP32 = sensible(bf16=True, threads=1, more_threads=None)[::2]
CONTIGUOUS = Setting("fp32", "contiguous", 1)
SMALL = Workload("test_resnet", (32, 32), 4, statistics_frozen=True)


def test_the_default_is_bfloat16_only_where_it_is_multiplied() -> None:
    assert sensible(bf16=False, threads=4, more_threads=None) == [
        Setting("fp32", "channels_last", 4),
        Setting("fp32", "contiguous", 4),
    ]
    assert sensible(bf16=True, threads=4, more_threads=None)[0] == Setting("bf16", "channels_last", 4)


def test_more_threads_are_tried_after_the_default_number() -> None:
    settings = sensible(bf16=True, threads=1, more_threads=2)
    assert [(setting.precision, setting.threads) for setting in settings[::2]] == [
        ("bf16", 1),
        ("fp32", 1),
        ("bf16", 2),
        ("fp32", 2),
    ]


@pytest.mark.parametrize(("other", "chosen"), [(0.95, BF16), (0.89, FP32), (2.0, BF16)])
def test_a_tie_goes_to_the_default(other: float, chosen: Setting) -> None:
    assert fastest({BF16: 1.0, FP32: other}) == chosen


def test_other_threads_must_gain_more() -> None:
    more = Setting("fp32", "channels_last", 2)
    assert fastest({BF16: 1.0, FP32: 0.5, more: 0.42}) == FP32
    assert fastest({BF16: 1.0, FP32: 0.5, more: 0.39}) == more


def test_the_gain_is_said() -> None:
    times = {BF16: 0.4, FP32: 0.1, CONTIGUOUS: 0.2}
    assert sentence(times) == (
        "measured here: fp32, channels_last, 1 thread; 4.00 times as fast as bf16, channels_last, 1 thread"
    )
    assert sentence({FP32: 0.1, CONTIGUOUS: 0.2}).endswith(
        "as by default; fp32, contiguous, 1 thread is 0.50 times as fast"
    )
    header, best, second, last = table(times).splitlines()
    assert best.split() == ["fp32", "channels_last", "1", "10.0", "4.00", "chosen"]
    assert second.split()[1] == "contiguous" and last.split()[-1] == "1.00"


def test_every_setting_is_timed_and_nothing_else_is_touched() -> None:
    settings = sensible(bf16=False, threads=1, more_threads=2)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    times = measure(SMALL, settings, seconds=0.1)
    assert list(times) == settings and all(0 < taken < 10 for taken in times.values())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_passes_have_as_many_images_as_time_allows_and_the_slow_are_left_out() -> None:
    calls: list[tuple[Setting, int]] = []

    def run(setting: Setting, count: int) -> float:
        calls.append((setting, count))
        return count * (0.001 if setting == FP32 else 0.01)

    times = machine_choice._measured(run, 64, [FP32, CONTIGUOUS], seconds=0.1)
    assert times[FP32] == pytest.approx(0.001) and times[CONTIGUOUS] == pytest.approx(0.01)
    most = max(count for _, count in calls)
    assert 8 <= most <= 64 and calls.count((CONTIGUOUS, most)) == 1 < calls.count((FP32, most))


def test_what_was_measured_is_remembered_by_machine_network_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        machine_choice, "measure", lambda work, settings: seen.append(work) or {BF16: 0.2, FP32: 0.1 * len(seen)}
    )
    first = remembered(tmp_path / "speed", "A", SMALL, [BF16, FP32])
    assert first == ({BF16: 0.2, FP32: 0.1}, True)
    assert remembered(tmp_path / "speed", "A", SMALL, [BF16, FP32]) == (first[0], False)
    for machine, work in (("B", SMALL), ("A", Workload("test_resnet", (64, 64), 4))):
        assert remembered(tmp_path / "speed", machine, work, [BF16, FP32])[1]
    for file in (tmp_path / "speed").iterdir():
        file.write_text("torn")
    assert remembered(tmp_path / "speed", "A", SMALL, [BF16, FP32])[1]
