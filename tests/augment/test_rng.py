import pytest
import torch

from tpssl_hf.augment.rng import uniform

MASK = (1 << 64) - 1


def numbers(seed=0, index=(0,), epoch=(0,), view=0, count=8):
    return uniform(seed, torch.tensor(index), torch.tensor(epoch), view, count)


def splitmix64(state):
    """The published generator's step, in Python's unbounded integers."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_reference_is_the_published_generator():
    assert splitmix64(1234567) == 6457827717110365317


@pytest.mark.parametrize(("seed", "epoch", "index", "view"), [(0, 0, 0, 0), (17, 3, 50_000, 2), (-5, 1, 2**40, 1)])
def test_equals_the_generator_in_unbounded_integers(seed, epoch, index, view):
    state = splitmix64(seed & MASK)
    for counter in (epoch, index, view):
        state = splitmix64(state ^ counter)
    increment = 0x9E3779B97F4A7C15
    expected = [(splitmix64((state + increment * position) & MASK) >> 40) / 2**24 for position in range(8)]
    assert numbers(seed, (index,), (epoch,), view)[0].tolist() == expected


def test_known_answers():
    expected = [[15143368, 8330592, 8917167], [5706642, 4317536, 16586399]]
    assert (numbers(seed=42, index=(0, 7), epoch=(0, 1), view=1, count=3) * 2**24).long().tolist() == expected


def test_same_sample_in_another_batch_and_position():
    together = numbers(index=(5, 9, 2, 7), epoch=(0, 1, 0, 3))
    assert torch.equal(together[3:], numbers(index=(7,), epoch=(3,)))
    assert torch.equal(together.flip(0), numbers(index=(7, 2, 9, 5), epoch=(3, 0, 1, 0)))


def test_more_numbers_do_not_change_the_first():
    assert torch.equal(numbers(count=40)[:, :8], numbers(count=8))


@pytest.mark.parametrize("change", [{"seed": 1}, {"index": (1,)}, {"epoch": (1,)}, {"view": 1}, {"seed": 1 << 63}])
def test_every_counter_changes_all_numbers(change):
    assert not (numbers(**change) == numbers()).any()


def test_counters_do_not_stand_in_for_each_other():
    variants = [
        numbers(**{name: value}) for name, value in [("index", (1,)), ("epoch", (1,)), ("view", 1), ("seed", 1)]
    ]
    assert len(torch.stack(variants).unique()) == 4 * 8


def test_range_mean_variance_and_histogram():
    drawn = numbers(index=range(5000), epoch=[0] * 5000, count=40)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=3e-3)  # 200,000 numbers: 4.6 standard errors
    assert drawn.var().item() == pytest.approx(1 / 12, abs=1e-3)
    counts = torch.histc(drawn, 100, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-squared of 99 degrees: 1 in 10,000


def test_positions_images_epochs_and_views_are_uncorrelated():
    first = numbers(index=range(4000), epoch=[0] * 4000, count=12)
    others = [
        numbers(index=range(4000), epoch=[1] * 4000, count=12),
        numbers(index=range(4000), epoch=[0] * 4000, view=1, count=12),
        numbers(seed=1, index=range(4000), epoch=[0] * 4000, count=12),
        first.roll(1, dims=0),
    ]
    correlation = torch.corrcoef(torch.cat([first, *others], dim=1).T)
    assert (correlation - torch.eye(len(correlation))).abs().max() < 5 / 4000**0.5
