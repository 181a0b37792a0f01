"""What is saved: never worse than the start by the labels at hand, and chosen by others than it is judged by."""

import numpy as np
import pytest
import torch
from torch import nn

from tpssl_hf.evaluation.probes import DRAWS, ProbeSplit, few_of_each_class, probe
from tpssl_hf.tasks.pretrain.selection import (
    BN_ONLY,
    LAST,
    START,
    Selection,
    answers_of,
    choosing_and_judging,
    query_difference,
)


def right(share: float, queries: int = 100, seed: int = 0) -> list[int]:
    """Answers of one kNN and the small banks: so many of them right."""
    random = np.random.default_rng(seed)
    return (random.random(queries * (1 + DRAWS)) < share).astype(int).tolist()


def net(value: float) -> nn.Module:
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, value)
    return module


def test_a_better_snapshot_is_saved_with_its_own_weights_even_if_training_went_on() -> None:
    selection = Selection()
    selection.begin(right(0.5))
    selection.consider("step_10", net(1.0), right(0.8, seed=1), 10)
    selection.consider("step_20", net(2.0), right(0.6, seed=2), 20)
    name, gain = selection.chosen()
    assert name == "step_10" and gain is not None and gain["low"] > 0.2
    assert torch.equal(selection.state["weight"], torch.full((1, 2), 1.0))
    assert [step for step, _ in selection.curve] == [10, 20]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.51])
def test_without_a_gain_beyond_doubt_the_start_is_saved(share: float) -> None:
    selection = Selection()
    selection.begin(right(0.5))
    selection.consider(LAST, net(1.0), right(share, seed=3), 10)
    assert selection.chosen()[0] == START


def test_without_labels_the_last_is_saved() -> None:
    assert Selection().chosen() == (LAST, None)


def test_it_goes_on_where_it_was() -> None:
    selection, other = Selection(), Selection()
    selection.begin(right(0.5))
    selection.consider(BN_ONLY, net(3.0), right(0.7, seed=1))
    other.load(selection.state, selection.values())
    assert other == selection and other.chosen() == selection.chosen() and other.chosen()[0] == BN_ONLY


def test_labels_that_judge_choose_nothing() -> None:
    choosing, judging = choosing_and_judging(np.arange(3000) % 10)
    assert choosing is not None and judging is not None
    assert not set(choosing.queries) & set(judging.queries)
    assert not (set(choosing.queries) | set(judging.queries)) & (set(choosing.bank) | set(judging.bank))
    assert len(choosing.queries) == 750 and len(judging.queries) == 750
    assert choosing_and_judging(np.full(3000, -1)) == (None, None)


def test_answers_tell_good_features_from_useless_ones() -> None:
    labels = np.arange(300) % 3
    random = np.random.default_rng(0)
    good = np.eye(3)[labels] + 0.1 * random.normal(size=(300, 3))
    useless = random.normal(size=(300, 3))
    split = ProbeSplit(np.arange(200), np.arange(200, 300), labels[:200], labels[200:])
    found = {name: answers_of(lambda rows, f=f: f[rows], split) for name, f in (("good", good), ("useless", useless))}
    assert len(found["good"]) == 100 * (1 + DRAWS) and np.mean(found["good"]) > 0.98
    assert query_difference(found["useless"], found["good"])["low"] > 0.4


def test_small_banks_have_a_few_labels_of_each_class() -> None:
    labels = np.repeat([0, 1, 5], [50, 3, 20])
    assert np.bincount(labels[few_of_each_class(labels, 0)]).tolist() == [4, 3, 0, 0, 0, 4]
    assert few_of_each_class(labels, 0).tolist() != few_of_each_class(labels, 1).tolist()


def test_the_interval_counts_queries_not_answers() -> None:
    """Asking one query four times over is no more evidence than once."""
    before, after = [0] * 40 + [1] * 60, [1] * 10 + [0] * 30 + [1] * 60
    whole = query_difference(before * (1 + DRAWS), after * (1 + DRAWS))
    assert whole["mean"] == pytest.approx(0.1) and whole["queries"] == 100
    assert whole["high"] - whole["low"] == pytest.approx(2 * 1.96 * np.std(np.array(after) - before, ddof=1) / 10)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_candidate_whose_features_are_not_finite_gets_nothing_right(number: float) -> None:
    labels = np.arange(40) % 2
    features = np.eye(40, 8)
    split = ProbeSplit(np.arange(20), np.arange(20, 40), labels[:20], labels[20:])
    features[39, 0] = number
    assert answers_of(lambda indices: features[indices], split) == [0] * 20 * (1 + DRAWS)
    assert probe(lambda indices: features[indices], split) == {
        "few_label_accuracy": [0] * 20 * DRAWS,
        "knn_accuracy": [0] * 20,
        "linear_probe_accuracy": [0] * 20,
    }
