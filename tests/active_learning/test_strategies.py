from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tpssl_hf.active_learning.doubt import classifier_head, doubts
from tpssl_hf.active_learning.strategies import Known, choose_images
from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import SEVERAL_LABELS, Preprocessing, save_timm_folder

DIRECTIONS = 10.0 * np.eye(8, dtype=np.float32)


def blobs(sizes: list[int], spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one direction for each blob, and which blob each belongs to."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(0.0, spread, (len(groups), 8))
    return (DIRECTIONS[groups] + noise).astype(np.float32), groups


def known(indices: list[int], labels: list[int], classes: int) -> Known:
    return Known(np.array(indices, dtype=np.int64), np.array(labels, dtype=np.int64), classes)


@pytest.mark.parametrize("strategy", ["typical", "coverage"])
def test_each_blob_gives_one_image_before_any_gives_two(strategy: str) -> None:
    features, groups = blobs([90, 60, 40, 30])
    chosen = choose_images(features, 4, strategy=strategy, seed=0)
    assert sorted(groups[chosen].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("strategy", ["typical", "coverage", "random"])
def test_the_answer_is_the_same_for_the_same_seed_and_names_no_image_twice(strategy: str) -> None:
    features, _ = blobs([50, 50], spread=3.0)
    one, again = (choose_images(features, 60, strategy=strategy, seed=3) for _ in range(2))
    assert one.tolist() == again.tolist() and len(set(one.tolist())) == 60
    assert one.dtype == np.int64 and one.min() >= 0 and one.max() < 100


@pytest.mark.parametrize("strategy", ["typical", "coverage", "random"])
def test_every_image_can_be_wanted_and_labeled_ones_never_are(strategy: str) -> None:
    features, _ = blobs([12, 12])
    chosen = choose_images(features, 20, strategy=strategy, seed=0, known=known([0, 5, 13, 20], [0, 0, 1, 1], 2))
    assert sorted(chosen.tolist()) == sorted(set(range(24)) - {0, 5, 13, 20})


def test_the_most_typical_image_is_in_the_middle_of_its_cluster() -> None:
    features, groups = blobs([200, 200], spread=1.5)
    for row in choose_images(features, 2, strategy="typical", seed=0).tolist():
        own = features[groups == groups[row]]
        own = own / np.linalg.norm(own, axis=1, keepdims=True)
        middle = own.mean(axis=0)
        distance = np.linalg.norm(features[row] / np.linalg.norm(features[row]) - middle)
        assert distance < np.quantile(np.linalg.norm(own - middle, axis=1), 0.1)


def test_typicality_agrees_with_a_slow_count_over_one_cluster() -> None:
    features, _ = blobs([60], spread=2.0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    spreads = [np.sort(np.linalg.norm(unit - one, axis=1))[1:21].mean() for one in unit]
    assert choose_images(features, 1, strategy="typical", seed=0).tolist() == [int(np.argmin(spreads))]


@pytest.mark.parametrize("strategy", ["typical", "coverage"])
def test_blobs_that_have_a_label_come_after_those_that_have_none(strategy: str) -> None:
    features, groups = blobs([80, 60, 50, 40])
    have = known([int(np.flatnonzero(groups == n)[0]) for n in (0, 2)], [0, 1], 2)
    chosen = choose_images(features, 2, strategy=strategy, seed=0, known=have)
    assert sorted(groups[chosen].tolist()) == [1, 3]


def test_near_duplicates_are_chosen_only_when_nothing_else_is_left() -> None:
    features, _ = blobs([40, 40], spread=2.0)
    features[40:] = features[40]  # forty copies of one image
    chosen = choose_images(features, 30, strategy="typical", seed=0)
    assert (chosen >= 40).sum() == 1
    assert (choose_images(features, 60, strategy="typical", seed=0) >= 40).sum() >= 20


def test_the_class_that_has_fewest_labels_is_preferred() -> None:
    # Class 0 is two large blobs around two directions, class 1 two small ones; class 0 has all labels but one.
    features, groups = blobs([100, 90, 30, 25], spread=0.7)
    features[groups == 3] = features[groups == 3] + DIRECTIONS[2]  # so that the mean of class 1 is nearest to it
    features[groups == 1] = features[groups == 1] + DIRECTIONS[0]
    of = [np.flatnonzero(groups == number).tolist() for number in range(4)]
    have = known([*of[0][:3], of[2][0]], [0, 0, 0, 1], 2)
    first = choose_images(features, 1, strategy="typical", seed=0, known=have)
    unaware = choose_images(features, 1, strategy="typical", seed=0, known=known(have.indices.tolist(), [0] * 4, 1))
    assert groups[first[0]] == 3 and groups[unaware[0]] == 1


def test_coverage_takes_the_thick_of_images_and_not_outliers() -> None:
    features, groups = blobs([60, 60, 1, 1, 1])
    chosen = choose_images(features, 2, strategy="coverage", seed=0)
    assert sorted(groups[chosen].tolist()) == [0, 1]


def test_random_draws_look_at_no_features_and_differ_by_seed() -> None:
    features, _ = blobs([50, 50])
    draws = [choose_images(features, 10, strategy="random", seed=seed).tolist() for seed in (0, 1)]
    assert draws[0] != draws[1]
    assert draws[0] == choose_images(np.zeros((100, 1)), 10, strategy="random", seed=0).tolist()


@pytest.mark.parametrize("strategy", ["typical", "coverage"])
def test_features_that_are_all_one_point_still_give_an_answer(strategy: str) -> None:
    chosen = choose_images(np.ones((30, 4), dtype=np.float32), 7, strategy=strategy, seed=0)
    assert len(set(chosen.tolist())) == 7


@pytest.mark.parametrize("count", [0, -3, 99])
def test_a_number_of_images_that_cannot_be_is_refused(count: int) -> None:
    features, _ = blobs([50, 50])
    with pytest.raises(InputError, match="from 1 to 98"):
        choose_images(features, count, strategy="typical", seed=0, known=known([1, 2], [0, 1], 2))


def test_doubtful_images_are_chosen_from_each_place_where_there_is_doubt() -> None:
    features, groups = blobs([100, 100, 100, 100])
    doubt = np.where(groups < 3, 0.9, 0.1) * np.random.default_rng(0).uniform(0.5, 1, 400)
    chosen = choose_images(features, 6, strategy="doubtful", seed=0, doubt=doubt.astype(np.float32))
    assert set(groups[chosen].tolist()) == {0, 1, 2}
    assert (np.diff(doubt[chosen]) <= 0).all() and doubt[chosen].min() > np.median(doubt)


def test_doubt_about_labeled_images_and_their_copies_is_no_reason_to_ask() -> None:
    features, _ = blobs([40, 40], spread=2.0)
    features[1:20] = features[0]
    doubt = np.where(np.arange(80) < 20, 1.0, 0.5).astype(np.float32)
    chosen = choose_images(features, 10, strategy="doubtful", seed=0, known=known([0], [0], 2), doubt=doubt)
    assert chosen.min() >= 20 and len(set(chosen.tolist())) == 10
    everything = choose_images(features, 79, strategy="doubtful", seed=0, known=known([0], [0], 2), doubt=doubt)
    assert sorted(everything.tolist()) == list(range(1, 80))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_classifier_that_is_always_or_never_sure_still_asks(level: float) -> None:
    features, _ = blobs([30, 30])
    doubt = np.full(60, level, dtype=np.float32)
    one, again = (choose_images(features, 7, strategy="doubtful", seed=3, doubt=doubt).tolist() for _ in range(2))
    assert one == again and len(set(one)) == 7
    same = choose_images(np.ones((60, 4), dtype=np.float32), 7, strategy="doubtful", seed=0, doubt=doubt)
    assert len(set(same.tolist())) == 7


def test_doubtful_images_cannot_be_chosen_without_doubts() -> None:
    with pytest.raises(ValueError, match="needs the doubt"):
        choose_images(np.eye(4), 2, strategy="doubtful", seed=0)


def test_doubt_is_the_ratio_of_the_two_greatest_probabilities() -> None:
    head = nn.Linear(3, 3)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    features = np.log(np.array([[0.5, 0.25, 0.25], [0.4, 0.4, 0.2], [0.1, 0.6, 0.3]], dtype=np.float32))
    assert doubts(head, features) == pytest.approx([0.5, 1.0, 0.5])


def test_weights_with_classes_of_their_own_are_no_classifier_of_these_images(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=10)
    for name, facts in (("mine", {"recipe": "ssl_classify"}), ("imagenet", {"recipe": "convert"})):
        save_timm_folder(network, tmp_path / name, preprocessing=Preprocessing(image_size=32), provenance=facts)
    head = classifier_head(str(tmp_path / "mine"))
    assert head is not None and torch.equal(head.weight, network.get_classifier().weight)
    assert classifier_head(str(tmp_path / "imagenet")) is None
    several = {"preprocessing": Preprocessing(image_size=32), "problem_type": SEVERAL_LABELS}
    save_timm_folder(network, tmp_path / "several", provenance={"recipe": "ssl_classify"}, **several)
    assert classifier_head(str(tmp_path / "several")) is None  # its logits do not compete
    assert classifier_head("random") is None
