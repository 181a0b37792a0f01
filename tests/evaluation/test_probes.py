import numpy as np
import pytest

from tpssl_hf.evaluation.probes import (
    few_label_answers,
    knn_accuracy,
    knn_answers,
    linear_probe_accuracy,
    probe_split,
)


def slow_knn(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray, k: int) -> float:
    right = 0
    for query, answer in zip(queries, truth, strict=True):
        cosines = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in bank]
        votes: dict[int, float] = {}
        for position in sorted(range(len(bank)), key=lambda p: -cosines[p])[:k]:
            votes[int(labels[position])] = votes.get(int(labels[position]), 0.0) + np.exp(cosines[position] / 0.07)
        right += max(votes, key=lambda label: votes[label]) == answer
    return right / len(truth)


def test_knn_equals_a_loop() -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(60, 5)), random.normal(size=(30, 5))
    labels, truth = random.integers(3, 6, 60), random.integers(3, 6, 30)
    for k in (1, 4, 20, 60):
        assert knn_accuracy(bank, labels, queries, truth, neighbors=k) == slow_knn(bank, labels, queries, truth, k)


def test_more_neighbors_than_images_is_all_of_them() -> None:
    bank, labels = np.eye(3), np.array([0, 1, 2])
    assert knn_accuracy(bank, labels, bank, labels, neighbors=20) == 1.0


def test_knn_does_not_see_the_length_of_features() -> None:
    random = np.random.default_rng(0)
    bank, labels = random.normal(size=(40, 4)), random.integers(0, 2, 40)
    queries, truth = random.normal(size=(20, 4)), random.integers(0, 2, 20)
    scaled = bank * random.uniform(0.1, 10, (40, 1))
    assert knn_accuracy(bank, labels, queries, truth) == knn_accuracy(scaled, labels, queries, truth)


def test_accuracy_is_the_share_of_right_answers_and_answers_are_labels_that_were_seen() -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(60, 5)), random.normal(size=(1500, 5))  # more than one part of them
    labels, truth = random.integers(3, 6, 60), random.integers(3, 6, 1500)
    answers = knn_answers(bank, labels, queries)
    assert set(answers.tolist()) <= {3, 4, 5}
    assert knn_accuracy(bank, labels, queries, truth) == (answers == truth).mean()


def few(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Four labels of each of five classes in 64 dimensions with a large common mean, and 500 queries."""
    random = np.random.default_rng(seed)
    centers, common = random.normal(size=(5, 64)), 5 * random.normal(size=64)
    labels, truth = np.repeat(np.arange(5), 4), np.arange(500) % 5
    bank, queries = (common + centers[y] + 1.5 * random.normal(size=(len(y), 64)) for y in (labels, truth))
    return bank, labels, queries, truth


def test_few_labels_are_enough_for_what_is_linear() -> None:
    bank, labels, queries, truth = few()
    assert (few_label_answers(bank, labels, queries) == truth).mean() > 0.8


def test_the_few_label_probe_does_not_see_scale_length_or_rotation() -> None:
    bank, labels, queries, _ = few()
    answers = few_label_answers(bank, labels, queries)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))[0]
    lengths = np.random.default_rng(2).uniform(0.1, 10, (len(bank), 1))
    for other in (
        few_label_answers(1e-4 * bank, labels, 1e-4 * queries),
        few_label_answers(lengths * bank, labels, queries),
        few_label_answers(bank @ rotation, labels, queries @ rotation),
    ):
        assert (other == answers).mean() > 0.99  # the solver stops a hair earlier or later


def test_a_small_difference_on_a_large_common_mean_is_read_all_the_same() -> None:
    bank, labels, queries, truth = few()
    far = 1000 * np.random.default_rng(3).normal(size=64)
    assert (few_label_answers(bank + far, labels, queries + far) == truth).mean() > 0.8


def test_constant_features_are_a_guess_and_no_error() -> None:
    answers = few_label_answers(np.ones((10, 3)), np.arange(10) % 2, np.ones((4, 3)))
    assert set(answers.tolist()) <= {0, 1}


def test_linear_probe_reads_what_is_linear_and_guesses_what_is_noise() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(400) % 4
    clear = np.eye(4)[labels] * 3 + random.normal(size=(400, 4))
    noise = random.normal(size=(400, 4))
    assert linear_probe_accuracy(clear[:300], labels[:300], clear[300:], labels[300:]) > 0.9
    assert linear_probe_accuracy(noise[:300], labels[:300], noise[300:], labels[300:]) < 0.45


def test_the_split_is_the_same_every_time_disjoint_and_balanced() -> None:
    labels = np.repeat(np.arange(10), 50)
    one, other = probe_split(labels), probe_split(labels)
    assert one is not None and other is not None
    assert np.array_equal(one.bank, other.bank) and np.array_equal(one.queries, other.queries)
    assert not set(one.bank) & set(one.queries)
    assert np.bincount(one.query_labels).tolist() == [10] * 10
    assert np.array_equal(labels[one.bank], one.bank_labels)


def test_the_split_takes_labeled_images_only_and_no_more_than_asked() -> None:
    labels = np.where(np.arange(1000) % 2, -1, np.arange(1000) // 2 % 5)
    split = probe_split(labels, most=100)
    assert split is not None
    assert len(split.bank) + len(split.queries) == 100
    assert (split.bank_labels >= 0).all() and (split.query_labels >= 0).all()


@pytest.mark.parametrize("labels", [[], [-1] * 50, [0] * 50, [0] * 49 + [1]])
def test_too_few_labels_are_no_split(labels: list[int]) -> None:
    assert probe_split(np.array(labels, dtype=np.int64)) is None
