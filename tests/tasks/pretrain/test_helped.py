import math
from typing import Any

import numpy as np
import pytest

from tpssl_hf.tasks.pretrain.helped import accuracies, difference, sentence, verdict


def answers(right: int, of: int, *, moved: int = 0) -> list[int]:
    """The first ``right`` questions answered rightly, or as many of them further on."""
    found = [0] * of
    for number in range(right):
        found[(number + moved) % of] = 1
    return found


def judged(before: int, alone: int, after: int, of: int = 1000) -> dict[str, Any]:
    return verdict(*({"linear_probe_accuracy": answers(n, of)} for n in (before, alone, after)))


def test_an_interval_by_hand() -> None:
    found = difference([1] * 6 + [0] * 4, [1] * 4 + [0] * 2 + [1] * 3 + [0])
    middle = 1 / 12
    half = 1.959964 * math.sqrt((6 / 12 - middle**2) / 12)
    assert found["mean"] == pytest.approx(0.1) and found["questions"] == 10
    assert (found["low"], found["high"]) == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        before = random.random(300) < 0.8
        after = np.where(random.random(300) < 0.15, random.random(300) < 0.6, before)
        found = difference(before.astype(int).tolist(), after.astype(int).tolist())
        held += found["low"] <= 0.15 * (0.6 - 0.8) <= found["high"]
    assert 0.93 <= held / 400 <= 0.98


def test_a_fall_of_six_points_is_said_first_and_what_made_it() -> None:
    found = judged(922, 870, 862)
    assert (found["verdict"], found["statistics_only"]["verdict"]) == ("worse", "worse")
    said = sentence(found)
    assert said.startswith("The saved backbone is WORSE than the weights it started from: linear probe −6.0 points")
    assert "Re-estimated BatchNorm statistics alone make it worse." in said
    assert "alone" not in sentence(judged(922, 922, 862))


def test_a_gain_and_a_change_within_the_margin() -> None:
    assert judged(862, 862, 922)["verdict"] == "better"
    same = judged(900, 900, 902)
    assert same["verdict"] == "no difference" and "as far as these probes can tell" in sentence(same)
    assert judged(3, 3, 0, of=10)["verdict"] == "no difference", "ten questions settle little"


def test_one_probe_that_falls_is_not_made_up_for_by_another_that_rises() -> None:
    before = {"knn_accuracy": answers(500, 1000), "linear_probe_accuracy": answers(900, 1000)}
    after = {"knn_accuracy": answers(600, 1000), "linear_probe_accuracy": answers(800, 1000)}
    assert verdict(before, before, after)["verdict"] == "worse"
    assert accuracies(after) == {"knn_accuracy": 0.6, "linear_probe_accuracy": 0.8}


def test_without_labels_nothing_is_claimed_and_the_way_to_find_out_named() -> None:
    found = verdict({}, {}, {})
    assert found["verdict"] == "unknown"
    assert "not known" in sentence(found) and "tpssl-hf verdict" in sentence(found)
