"""What is deployed, decided from made-up answers."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from tpssl_hf.data.labeled import Labeled
from tpssl_hf.tasks.classify.deployment import is_usable
from tpssl_hf.tasks.classify.selection import (
    FINETUNED,
    PROBE,
    SPREADING,
    choose,
    cross_validated,
    plan_folds,
    saved_sentence,
)
from tpssl_hf.tasks.label_seeds import spread_of_candidates

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs" / "ssl_classify"


def right(of_ten: int) -> list[int]:
    """Answers to 40 labels, so many in ten of them right."""
    return [int(number % 10 < of_ten) for number in range(40)]


@pytest.mark.parametrize(
    ("finetuned", "probe", "spreading", "deployed"),
    [
        (8, 6, 7, FINETUNED),
        (6, 6, 6, FINETUNED),
        (4, 7, 6, PROBE),
        (4, 6, 7, SPREADING),
        (4, 7, 7, PROBE),
        (6, 7, 5, PROBE),  # 0.1 with an error of 0.05
    ],
)
def test_the_finetuned_stays_unless_a_baseline_is_better_beyond_an_error(
    finetuned: int, probe: int, spreading: int, deployed: str
) -> None:
    answers = {FINETUNED: right(finetuned), PROBE: right(probe), SPREADING: right(spreading)}
    assert choose(answers, usable=True) == deployed


def test_a_difference_within_one_standard_error_changes_nothing() -> None:
    before, after = [1, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 1, 1, 0]
    assert sum(after) > sum(before) and choose({FINETUNED: before, PROBE: after}, usable=True) == FINETUNED


def test_an_unusable_network_is_not_deployed_whatever_the_folds_say() -> None:
    answers = {FINETUNED: right(9), PROBE: right(3), SPREADING: right(4)}
    assert choose(answers, usable=False) == SPREADING
    assert choose({}, usable=False) == PROBE and choose({}, usable=True) == FINETUNED


def test_usable_are_finite_answers_of_more_than_one_class() -> None:
    answers = np.array([[0.9, 0.1], [0.2, 0.8]])
    one, several = (Labeled(np.arange(2), labels, ("a", "b"), "") for labels in (np.arange(2), np.eye(2, dtype=int)))
    assert is_usable(answers, one) and is_usable(answers, several)
    assert is_usable(np.array([[0.9, 0.1], [0.8, 0.2]]), several), "who has the most is no question of several labels"
    for labeled in (one, several):
        assert not is_usable(answers[[0, 0]], labeled)
        assert not is_usable(np.array([[0.9, 0.1], [np.nan, np.nan]]), labeled)


@pytest.mark.parametrize(
    ("per_class", "count", "steps"),
    [(2, 2, 50), (3, 2, 50), (4, 4, 25), (24, 4, 25), (25, 2, 25)],
)
def test_folds_hold_every_class_in_and_out_and_cost_another_run_at_most(
    per_class: int, count: int, steps: int
) -> None:
    labels = np.repeat(np.arange(5), per_class)
    folds = plan_folds(labels, 100, seed=1)
    assert folds is not None and (folds.count, folds.steps) == (count, steps)
    for number in range(count):
        held = folds.numbers == number
        assert set(labels[held]) == set(labels[~held]) == set(range(5))
        assert abs(held.sum() - len(labels) / count) < 1


def test_folds_follow_the_seed_and_a_short_run_has_steps() -> None:
    labels = np.repeat(np.arange(5), 4)
    one, same, other = (plan_folds(labels, 3, seed=seed) for seed in (1, 1, 2))
    assert one is not None and same is not None and other is not None and one.steps == 1
    assert np.array_equal(one.numbers, same.numbers) and not np.array_equal(one.numbers, other.numbers)


def test_one_label_of_a_class_leaves_nothing_to_compare() -> None:
    assert plan_folds(np.array([0, 0, 0, 1]), 100, seed=1) is None
    saved = {"candidate": FINETUNED, "usable": True, "labels": 4, "cross_validated": {}}
    assert "one label only, so nothing could be compared" in saved_sentence(saved, "uda")


def test_the_sentence_says_what_is_deployed_and_by_how_much() -> None:
    found = cross_validated({FINETUNED: right(4), PROBE: right(7), SPREADING: right(6)})
    assert found[PROBE]["minus_finetuned"]["mean"] == pytest.approx(0.3) and "minus_finetuned" not in found[FINETUNED]
    said = saved_sentence(
        {"candidate": PROBE, "usable": True, "labels": 40, "cross_validated": found}, "fixmatch", "This model"
    )
    assert said.startswith(
        "This model is the frozen probe of the start, not what fixmatch made. Cross-validated on 40"
    )
    assert "fixmatch 40.0 %, the frozen probe 70.0 %, label spreading 60.0 %" in said
    assert "the frozen probe − fixmatch: +30.0 points (" in said


def test_over_label_seeds_each_candidate_has_its_mean_whichever_was_deployed() -> None:
    def part(deployed: str, accuracy: float, **beside: float) -> dict[str, object]:
        return {"saved": {"candidate": deployed}, "metrics": {"accuracy": accuracy}, "beside": beside}

    parts = [part(FINETUNED, 0.8, frozen_probe=0.6), part(PROBE, 0.7, finetuned=0.4)]
    found = spread_of_candidates(parts)
    assert found[FINETUNED]["values"] == [0.8, 0.4] and found[PROBE]["mean"] == pytest.approx(0.65)
    assert spread_of_candidates([*parts, part(FINETUNED, 0.8)]) == {}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_protocol_deploys_what_was_finetuned(path: Path) -> None:
    assert yaml.safe_load(path.read_text()).get("select", "best") == ("best" if "64px" in path.stem else "last")
