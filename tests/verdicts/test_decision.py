"""What a verdict says about features that are better, worse or the same by construction."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tpssl_hf.evaluation.probes import ProbeSplit, few_label_answers, knn_answers
from tpssl_hf.verdicts.decision import BASE, STATISTICS, TEACHER, Decision, Row, _decide, by_draw, judge, score
from tpssl_hf.verdicts.figure import draw_verdict
from tpssl_hf.verdicts.sentence import ranking, sentence, table

CLASSES, DRAWS = 4, 6
LABELS = np.arange(240) % CLASSES


def features(noise: float, seed: int = 0, width: int = 12) -> np.ndarray:
    """Features of 240 images of four classes, the harder to tell apart the more noise there is."""
    centers = np.random.default_rng(99).normal(size=(CLASSES, width))
    return centers[LABELS] + noise * np.random.default_rng(seed).normal(size=(len(LABELS), width))


def trials(labels: np.ndarray = LABELS) -> list[ProbeSplit]:
    """Six draws of four labels of each class out of the first 120 images; the others are asked about."""
    queries, made = np.arange(120, 240), []
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        bank = np.concatenate([random.permutation(np.flatnonzero(LABELS[:120] == c))[:4] for c in range(CLASSES)])
        made.append(ProbeSplit(np.sort(bank), queries, labels[np.sort(bank)], labels[queries]))
    return made


@pytest.fixture(scope="module")
def scores() -> dict[str, Row]:
    """Rows of clear, middling and poor features; of poor ones with other noise and as the second control."""
    made = {"clear": features(0.6), "middling": features(1.5), "poor": features(4.0), "other": features(4.0, seed=1)}
    return {name: score(name, values, LABELS, trials()) for name, values in made.items()}


def judged(base: Row, *adapted: Row, statistics: Row | None = None) -> Decision:
    control = [] if statistics is None else [replace(statistics, name=STATISTICS)]
    return judge([replace(base, name=BASE), *control, *adapted], overlap=0.1)


def flipped(row: Row, share: float, name: str, seed: int = 0, measures: Sequence[str] = ("probe", "knn")) -> Row:
    """Make wrong answers right in ``share`` of all cases, or right ones wrong if it is negative."""
    changed = {}
    for measure in measures:
        answers = getattr(row, measure).copy()
        chosen = (np.random.default_rng(seed).random(answers.shape) < abs(share)) & ~np.isnan(answers)
        answers[chosen] = share > 0
        changed[measure] = answers
    return replace(row, name=name, **changed)


def test_scores_are_those_of_the_probes(scores: dict[str, Row]) -> None:
    row, values = scores["middling"], features(1.5)
    for draw, trial in enumerate(trials()):
        known = values[trial.bank], trial.bank_labels, values[trial.queries]
        assert np.array_equal(row.probe[draw], few_label_answers(*known) == trial.query_labels)
        assert np.array_equal(row.knn[draw], knn_answers(*known) == trial.query_labels)
    assert row.width == 12 and row.probe.shape == (DRAWS, 120)
    assert 0.3 < by_draw(row.probe).mean() < 0.99 and len(set(row.clustering)) >= 1


def test_better_features_are_to_be_used(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], scores["clear"], statistics=scores["middling"])
    assert (found.recommendation, found.reason, found.best.name) == ("adapted", "", "clear")
    said = sentence(found, labels=16, shared=True)
    assert said.startswith("Use the adapted weights (clear): with 16 labels") and "95 % interval +" in said


def test_worse_features_are_not(scores: dict[str, Row]) -> None:
    found = judged(scores["clear"], scores["poor"], statistics=scores["clear"])
    assert found.recommendation == "base"
    assert sentence(found, labels=16, shared=True).startswith("Keep the base: ")


def test_features_of_equal_worth_leave_it_unclear_and_say_what_would_settle_it(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], scores["other"], statistics=scores["poor"])
    assert (found.recommendation, found.reason) == ("unclear", "open")
    said = sentence(found, labels=16, shared=True)
    assert said.startswith("Unclear: ") and ("would settle it" in said or "anything practical" in said)


def test_the_very_same_features_differ_by_nothing_at_all(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], replace(scores["poor"], name="same"))
    difference = found.comparisons[0].probe
    assert difference.mean == difference.low == difference.high == 0.0
    assert found.recommendation == "unclear" and found.required is None
    assert "give the same predictions" in sentence(found, labels=16, shared=True)


def test_what_new_statistics_give_as_well_is_no_merit_of_adapting(scores: dict[str, Row]) -> None:
    equal = judged(scores["poor"], flipped(scores["clear"], 0.0, "run"), statistics=scores["clear"])
    more = judged(scores["poor"], scores["middling"], statistics=scores["clear"])
    assert equal.recommendation == more.recommendation == "statistics"
    assert "gives as much" in sentence(equal, labels=16, shared=True)
    assert "gives more" in sentence(more, labels=16, shared=True)
    assert judged(scores["poor"], scores["middling"]).recommendation == "adapted"  # without that control


def test_between_two_controls_that_cannot_be_told_apart_it_is_unclear(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], scores["clear"], statistics=scores["middling"])
    sure, beyond, alone = found.comparisons[:3]
    open_alone = replace(alone, probe=replace(alone.probe, low=-0.1, high=0.1))
    open_beyond = replace(beyond, probe=replace(beyond.probe, low=-0.1, high=0.1))
    assert _decide(sure, open_beyond, open_alone) == ("unclear", "control", open_beyond.probe)
    assert _decide(sure, open_beyond, alone) == ("statistics", "", open_beyond.probe)
    told = replace(found, recommendation="unclear", reason="control")
    assert sentence(told, labels=16, shared=True).startswith("Unclear: with 16 labels")


@pytest.mark.parametrize(("share", "opposite"), [(0.3, -0.3), (-0.3, 0.3)])
def test_nearest_neighbors_that_say_the_opposite_make_it_unclear(
    share: float, opposite: float, scores: dict[str, Row]
) -> None:
    run = flipped(flipped(scores["middling"], share, "run", measures=["probe"]), opposite, "run", measures=["knn"])
    found = judged(scores["middling"], run)
    assert (found.recommendation, found.reason) == ("unclear", "contradiction")
    assert "contradict each other" in sentence(found, labels=16, shared=True)


def test_neighbors_that_say_nothing_do_not_stand_in_the_way(scores: dict[str, Row]) -> None:
    run = flipped(scores["middling"], 0.3, "run", measures=["probe"])
    assert judged(scores["middling"], run).recommendation == "adapted"


def test_numbers_of_classes_mean_nothing(scores: dict[str, Row]) -> None:
    renumbered = np.array([2, 0, 3, 1])[LABELS]
    for name, noise in (("clear", 0.6), ("poor", 4.0)):
        row = score(name, features(noise), renumbered, trials(renumbered))
        assert np.mean(row.probe == scores[name].probe) > 0.99
        assert np.mean(row.knn == scores[name].knn) > 0.99
        assert row.clustering == pytest.approx(scores[name].clustering)


def test_labels_without_meaning_find_no_difference() -> None:
    shuffled = np.random.default_rng(5).permutation(LABELS)
    rows = [score(name, features(noise), shuffled, trials(shuffled)) for name, noise in (("a", 4.0), ("b", 0.6))]
    assert judged(*rows).recommendation == "unclear"


def test_several_are_ranked_and_the_best_is_judged_more_strictly(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], scores["other"], scores["clear"], scores["middling"], statistics=scores["poor"])
    assert [row.name for row in found.rows] == [BASE, STATISTICS, "clear", "middling", "other"]
    assert found.comparisons[0].probe.level == pytest.approx(1 - 0.05 / 3)
    one = judged(scores["poor"], scores["clear"]).comparisons[0].probe
    three = found.comparisons[0].probe
    assert three.low < one.low < one.high < three.high and three.mean == one.mean
    assert ranking(found).startswith("clear is first of 3, +") and "not settled" not in ranking(found)
    tied = judged(scores["poor"], scores["clear"], flipped(scores["clear"], 0.001, "again"))
    assert "not settled" in ranking(tied)
    assert ranking(judged(scores["poor"], scores["clear"])) == ""


def test_a_teacher_decides_nothing_and_is_mentioned_only_if_it_is_better(scores: dict[str, Row]) -> None:
    better, alike = (replace(scores[name], name=TEACHER) for name in ("clear", "other"))
    control = replace(scores["middling"], name=STATISTICS)
    rows = [replace(scores["poor"], name=BASE), control, scores["middling"], scores["other"]]
    found, without = judge([*rows, better], overlap=0.1), judge(rows, overlap=0.1)
    assert [row.name for row in found.rows] == [BASE, STATISTICS, "middling", "other", TEACHER]
    assert (found.recommendation, found.best.name) == (without.recommendation, "middling")
    assert found.comparisons[: len(without.comparisons)] == without.comparisons
    assert ranking(found) == ranking(without)
    said, before = (sentence(one, labels=16, shared=True) for one in (found, without))
    assert said.startswith(f"{before} The teacher itself, frozen, gets ") and "against middling: use it" in said
    worse = judge([*rows, alike], overlap=0.1)
    assert sentence(worse, labels=16, shared=True) == before
    line = next(line for line in table(found).splitlines() if line.startswith("| teacher"))
    assert line.count("[") == 2


def test_widths_may_differ(scores: dict[str, Row]) -> None:
    wide = score("wide", np.hstack([features(0.6), features(0.6, seed=2)]), LABELS, trials())
    assert judged(scores["poor"], wide).recommendation == "adapted"


def test_without_labels_it_is_not_sure_and_asks_for_some() -> None:
    random = np.random.default_rng(0)
    flat, full = random.normal(size=(80, 4)) @ random.normal(size=(4, 12)) + 3, random.normal(size=(80, 12))
    rows = [
        score(name, values, np.full(80, -1), [], base_features=flat) for name, values in (("a", flat), ("b", full))
    ]
    found = judged(*rows)
    said = sentence(found, labels=0, shared=False)
    assert (found.recommendation, found.reason) == ("unclear", "no labels")
    assert said.startswith("Not sure: there are no labels") and "lean to b" in said and "label some 40" in said
    assert "lean to the base" in sentence(judged(rows[1], rows[0]), labels=0, shared=False)
    assert "effective rank" in table(found) and ranking(found) == ""


def test_a_collapse_is_seen_without_labels() -> None:
    sound = np.random.default_rng(0).normal(size=(80, 12))
    point = np.ones((80, 12)) + 1e-7 * sound
    rows = [score(name, values, np.full(80, -1), []) for name, values in (("a", sound), ("b", point))]
    found = judged(*rows)
    assert (found.recommendation, found.reason) == ("base", "collapsed")
    assert "have collapsed" in sentence(found, labels=0, shared=False)
    third = score("c", sound + 0.01, np.full(80, -1), [])
    assert judged(rows[0], rows[1], third).best.name == "c"


def test_draws_with_questions_of_their_own_are_scored_where_they_ask(scores: dict[str, Row]) -> None:
    split = []
    for draw in range(8):
        asked = np.sort(np.random.default_rng(draw).permutation(40)[:10])
        bank = np.setdiff1d(np.arange(40), asked)
        split.append(ProbeSplit(bank, asked, LABELS[bank], LABELS[asked]))
    rows = [score(name, features(noise), LABELS, split) for name, noise in (("poor", 4.0), ("clear", 0.4))]
    assert all((~np.isnan(row.probe)).sum(axis=1).tolist() == [10] * 8 for row in rows)
    found = judge([replace(rows[0], name=BASE), rows[1]], overlap=1 / 3)
    assert found.recommendation == "adapted"
    unclear = judge([replace(rows[0], name=BASE), flipped(rows[0], 0.02, "run")], overlap=1 / 3)
    assert unclear.recommendation == "unclear"


def test_the_table_has_a_line_for_each_row_and_lines_of_equal_length(scores: dict[str, Row]) -> None:
    found = judged(scores["poor"], scores["clear"], scores["middling"], statistics=scores["other"])
    lines = table(found).splitlines()
    assert len(lines) == 2 + 4 and len({len(line) for line in lines}) == 1
    shown = f"{100 * by_draw(scores['clear'].probe).mean():.1f} ± "
    assert next(line for line in lines if line.startswith("| clear")).count(shown) == 1
    assert "probe − statistics only" in lines[0]
    assert "statistics only" not in table(judged(scores["poor"], scores["clear"]))


def test_the_image_is_written_for_one_and_for_many(scores: dict[str, Row], tmp_path: Path) -> None:
    found = judged(scores["poor"], scores["clear"], scores["middling"], statistics=scores["other"])
    draw_verdict(tmp_path / "verdict.png", found, labels=16, title="a title")
    assert (tmp_path / "verdict.png").read_bytes().startswith(b"\x89PNG")
