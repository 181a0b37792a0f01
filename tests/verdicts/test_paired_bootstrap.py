"""Intervals of paired differences, on simulated answers whose truth is known."""

import math

import numpy as np
import pytest

from tpssl_hf.verdicts import paired_bootstrap as paired
from tpssl_hf.verdicts.paired_bootstrap import Difference, paired_difference, required_sample_size


def answers(
    seed: int, *, draws: int, questions: int, truth: float, of_draws: float, of_questions: float, left: float
) -> np.ndarray:
    """Differences (S, Q) of two scores with these standard deviations around ``truth``."""
    random = np.random.default_rng(seed)
    rows, columns = random.normal(0, of_draws, (draws, 1)), random.normal(0, of_questions, questions)
    return truth + rows + columns + random.normal(0, left, (draws, questions))


def difference(matrix: np.ndarray, **settings: float) -> Difference:
    return paired_difference(matrix, np.where(np.isnan(matrix), np.nan, 0.0), **settings)  # type: ignore[arg-type]


def made(**changes: float | None) -> Difference:
    """A difference of these numbers; 10 draws, 1,000 questions."""
    numbers = {"mean": 0.02, "draw_variance": 1e-3, "question_variance": 0.1, "residual_variance": 0.2} | changes
    facts = {"low": -1.0, "high": 1.0, "level": 0.95, "standard_error": 0.02, "questions": 1000, "overlap": 0.0}
    return Difference(draws=(0.0,) * 10, **(facts | numbers))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spread",
    [
        {"of_draws": 0.05, "of_questions": 0.1, "left": 0.3},  # draws matter most
        {"of_draws": 0.0, "of_questions": 0.5, "left": 0.3},  # questions do
        {"of_draws": 0.03, "of_questions": 0.3, "left": 0.5},
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    spread: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 250)
    held = 0
    for seed in range(200):
        found = difference(answers(seed, draws=8, questions=150, truth=0.03, **spread))
        held += found.low <= 0.03 <= found.high
    assert 0.90 <= held / 200 <= 0.99  # 95 % ± three standard errors of 200


def test_draws_from_one_small_pool_hold_the_truth_only_with_their_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 250)
    pool, taken = 90, 30
    held = {0.0: 0, taken / (pool - taken): 0}
    for seed in range(150):
        random = np.random.default_rng(seed)
        effects = random.normal(0, 1, pool)
        rows = [effects[random.permutation(pool)[:taken]].mean() for _ in range(20)]
        matrix = np.array(rows)[:, None] + random.normal(0, 0.1, (20, 50))
        for overlap in held:
            found = difference(matrix, overlap=overlap)
            held[overlap] += found.low <= 0 <= found.high
    without, with_overlap = (count / 150 for count in held.values())
    assert without < 0.75 and 0.88 <= with_overlap <= 1.0


def test_variances_are_those_that_were_put_in() -> None:
    matrix = answers(0, draws=200, questions=800, truth=0.1, of_draws=0.2, of_questions=0.4, left=0.6)
    found = difference(matrix)
    assert found.draw_variance == pytest.approx(0.04, rel=0.2)
    assert found.question_variance == pytest.approx(0.16, rel=0.2)
    assert found.residual_variance == pytest.approx(0.36, rel=0.02)
    expected = math.sqrt(0.04 / 200 + 0.16 / 800 + 0.36 / (200 * 800))
    assert found.standard_error == pytest.approx(expected, rel=0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_the_mean_is_that_of_all_answers_and_draws_keep_their_order() -> None:
    one, other = np.array([[1, 1, 0], [1, 0, 1]]), np.array([[0, 1, 0], [0, 0, 0]])
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.5) and found.draws == pytest.approx((1 / 3, 2 / 3))
    back = paired_difference(other, one)
    assert back.mean == -found.mean


def test_equal_answers_differ_by_exactly_nothing() -> None:
    matrix = np.random.default_rng(0).integers(0, 2, (6, 40))
    found = paired_difference(matrix, matrix)
    assert found.mean == found.low == found.high == found.standard_error == 0.0
    assert found.sign == 0 and required_sample_size(found) is None


def test_pairing_makes_the_interval_narrow() -> None:
    random = np.random.default_rng(0)
    hard = random.random(500) < 0.5  # questions nobody answers
    one = (random.random((8, 500)) < 0.9) & ~hard
    other = one & (random.random((8, 500)) < 0.95)
    paired_width, unpaired_width = (
        found.high - found.low
        for found in (paired_difference(one, other), paired_difference(one, random.permuted(other, axis=1)))
    )
    assert paired_width < unpaired_width / 2


def test_a_higher_level_and_fewer_draws_make_it_wider() -> None:
    matrix = answers(0, draws=20, questions=100, truth=0.0, of_draws=0.1, of_questions=0.1, left=0.3)
    widths = [
        found.high - found.low
        for found in (difference(matrix), difference(matrix, level=0.99), difference(matrix[:5], level=0.99))
    ]
    assert widths == sorted(widths)


def test_the_same_seed_gives_the_same_interval() -> None:
    matrix = answers(0, draws=6, questions=60, truth=0.0, of_draws=0.1, of_questions=0.1, left=0.3)
    assert difference(matrix, seed=3) == difference(matrix, seed=3)
    assert difference(matrix, seed=3) != difference(matrix, seed=4)


def test_questions_of_its_own_for_every_draw_count_where_they_were_asked() -> None:
    matrix = np.full((4, 6), np.nan)
    matrix[[0, 1, 2, 3], [0, 1, 2, 3]], matrix[:, 4] = 1.0, [0, 0, 1, 0]
    found = difference(matrix, overlap=0.5)
    assert found.mean == pytest.approx(5 / 8) and found.draw_variance is None
    assert found.draws == pytest.approx((0.5, 0.5, 1.0, 0.5)) and found.low < found.mean < found.high


def test_splits_of_few_images_hold_the_truth() -> None:
    """Splits of one small set are no independent evidence, however many there are."""
    held = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        effects = random.normal(0, 1, 40)  # of one image, the same in each split that asks about it
        matrix = np.full((20, 40), np.nan)
        for row in matrix:
            asked = random.permutation(40)[:10]
            row[asked] = effects[asked]
        found = difference(matrix, overlap=1 / 3)
        held += found.low <= 0 <= found.high
    assert held >= 90


@pytest.mark.parametrize("other", [np.zeros((3, 5)), np.array([[0.0, np.nan], [0.0, 0.0]])])
def test_answers_to_other_questions_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not of the same questions"):
        paired_difference(np.zeros((2, 2)), other)


def test_more_draws_settle_what_draws_leave_open() -> None:
    found = required_sample_size(made(draw_variance=0.01, question_variance=0.0, residual_variance=0.0, mean=0.04))
    assert found is not None
    assert (found.draws, found.questions) == (25, 1000)  # 1.96² · 0.01 / 0.04² = 24.01


def test_more_questions_settle_what_questions_leave_open() -> None:
    found = required_sample_size(made(draw_variance=0.0, question_variance=0.25, residual_variance=0.0, mean=0.02))
    assert found is not None
    assert (found.draws, found.questions) == (10, 2401)  # 1.96² · 0.25 / 0.02²


def test_what_is_said_to_settle_it_does() -> None:
    for changes in ({}, {"mean": 0.012}, {"draw_variance": 0.004, "overlap": 0.01, "mean": 0.03}):
        wanted, open_one = required_sample_size(made(**changes)), made(**changes)
        assert wanted is not None
        of_draws, of_questions = open_one.draw_variance or 0.0, open_one.question_variance or 0.0
        left = (open_one.residual_variance or 0.0) / (wanted.draws * wanted.questions)
        variance = of_draws * (1 / wanted.draws + open_one.overlap) + of_questions / wanted.questions + left
        assert 1.9599 * math.sqrt(variance) <= abs(open_one.mean)
        assert wanted.draws >= 10 and wanted.questions >= 1000


@pytest.mark.parametrize("changes", [{"mean": 0.001}, {"mean": 0.0}, {"overlap": 1.0, "draw_variance": 0.01}])
def test_nothing_practical_settles_a_tiny_difference(changes: dict[str, float]) -> None:
    assert required_sample_size(made(**changes)) is None


def test_labels_in_all_settle_splits_of_a_few() -> None:
    none = {"draw_variance": None, "question_variance": None, "residual_variance": None}
    found = required_sample_size(made(**none, questions=40, standard_error=0.05, mean=0.049))
    assert found is not None
    assert found.questions == pytest.approx(40 * (1.96 * 0.05 / 0.049) ** 2, abs=1)
    assert required_sample_size(made(**none, questions=40, standard_error=0.05, mean=0.0001)) is None
