import numpy as np
import pytest

from tpssl_hf.analysis.probes import knn_accuracy, linear_probe_accuracy, probe_split


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
        assert knn_accuracy(bank, labels, queries, truth, neighbours=k) == slow_knn(bank, labels, queries, truth, k)


def test_more_neighbours_than_pictures_is_all_of_them() -> None:
    bank, labels = np.eye(3), np.array([0, 1, 2])
    assert knn_accuracy(bank, labels, bank, labels, neighbours=20) == 1.0


def test_knn_does_not_see_the_length_of_features() -> None:
    random = np.random.default_rng(0)
    bank, labels = random.normal(size=(40, 4)), random.integers(0, 2, 40)
    queries, truth = random.normal(size=(20, 4)), random.integers(0, 2, 20)
    scaled = bank * random.uniform(0.1, 10, (40, 1))
    assert knn_accuracy(bank, labels, queries, truth) == knn_accuracy(scaled, labels, queries, truth)


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


def test_the_split_takes_labelled_pictures_only_and_no_more_than_asked() -> None:
    labels = np.where(np.arange(1000) % 2, -1, np.arange(1000) // 2 % 5)
    split = probe_split(labels, most=100)
    assert split is not None
    assert len(split.bank) + len(split.queries) == 100
    assert (split.bank_labels >= 0).all() and (split.query_labels >= 0).all()


@pytest.mark.parametrize("labels", [[], [-1] * 50, [0] * 50, [0] * 49 + [1]])
def test_too_few_labels_are_no_split(labels: list[int]) -> None:
    assert probe_split(np.array(labels, dtype=np.int64)) is None
