"""Probes on frozen features: how well labels can be read off without touching the backbone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tpssl_hf.evaluation.logistic_regression import fit_logistic_regressions

KNN_TEMPERATURE = 0.07
DRAWS, PER_CLASS = 5, 4  # small banks that features are also asked with, and labels of each class in one
FEW_LABEL_C = 0.01


@dataclass(frozen=True)
class ProbeSplit:
    """Which labeled images a probe learns from and which it predicts; never the test split.

    Attributes:
        bank: (N,) int64 indices of images whose labels the probe sees.
        queries: (M,) int64 indices of other images it must label.
        bank_labels: (N,) int64.
        query_labels: (M,) int64.
    """

    bank: np.ndarray
    queries: np.ndarray
    bank_labels: np.ndarray
    query_labels: np.ndarray


def probe_split(labels: np.ndarray, *, most: int = 5000, held_out: float = 0.2, seed: int = 0) -> ProbeSplit | None:
    """Split labeled images of the training set into bank and queries, the same way every time.

    Args:
        labels: (N,) int64; −1 where there is none.
        most: images used at most; a fixed random subset of more.
        held_out: share of them that become queries.
        seed: seed of subset and split.

    Returns:
        The split, class-balanced as the labels are; None if some class has too few images to be in both halves.
    """
    labeled = np.flatnonzero(labels >= 0)
    chosen = np.random.default_rng(seed).permutation(labeled)[:most]
    counts = np.unique(labels[chosen], return_counts=True)[1]
    if len(counts) < 2 or counts.min() < 2 or len(chosen) * held_out < len(counts):
        return None
    from sklearn.model_selection import train_test_split

    bank, queries = train_test_split(
        np.sort(chosen), test_size=held_out, stratify=labels[np.sort(chosen)], random_state=seed
    )
    return ProbeSplit(bank, queries, labels[bank], labels[queries])


def knn_answers(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, *, neighbors: int = 20) -> np.ndarray:
    """Predictions of a weighted k-nearest-neighbor vote by cosine similarity (Wu et al., 2018, §3.4).

    Args:
        bank: (N, D) features whose labels are known.
        bank_labels: (N,) int64.
        queries: (M, D) features to classify.
        neighbors: how many neighbors vote, with weight exp(cosine / 0.07); at most N.

    Returns:
        (M,) int64, a label of ``bank_labels`` for each query.
    """
    bank, queries = _unit_rows(bank), _unit_rows(queries)
    neighbors = min(neighbors, len(bank))
    classes, bank_classes = np.unique(bank_labels, return_inverse=True)
    answers = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(queries), 1024):
        similarities = queries[start : start + 1024] @ bank.T
        nearest = np.argpartition(-similarities, neighbors - 1, axis=1)[:, :neighbors]
        weights = np.exp((np.take_along_axis(similarities, nearest, axis=1) - 1.0) / KNN_TEMPERATURE)
        votes = np.zeros((len(nearest), len(classes)))
        np.add.at(votes, (np.arange(len(nearest))[:, None], bank_classes[nearest]), weights)
        answers.append(classes[votes.argmax(axis=1)])
    return np.concatenate(answers)


def knn_accuracy(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray, *, neighbors: int = 20
) -> float:
    """Accuracy of :func:`knn_answers` about queries of known ``query_labels`` (M,), in [0, 1]."""
    return float((knn_answers(bank, bank_labels, queries, neighbors=neighbors) == query_labels).mean())


def linear_probe_accuracy(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    """Accuracy of L2-regularized logistic regression on standardized features, in [0, 1]; arguments as for kNN."""
    return float((linear_probe_answers(bank, bank_labels, queries) == query_labels).mean())


def linear_probe_answers(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Predictions (M,) of that regression; arguments as for kNN."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(bank)
    reader = LogisticRegression(C=0.01, max_iter=200, tol=1e-3).fit(scaler.transform(bank), bank_labels)
    answers: np.ndarray = reader.predict(scaler.transform(queries))
    return answers


def few_label_answers(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Predictions (M,) of logistic regression on few labels; see :func:`few_label_answers_of_draws`."""
    return few_label_answers_of_draws([(bank, bank_labels, queries)])[0]


def few_label_answers_of_draws(draws: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Predictions of logistic regressions on few labels, some for each class; all draws are fitted at once.

    Features are scaled to length 1, moved by the mean of the bank and divided by one number, so that their mean square
    is 1 whatever common mean or scale a backbone gives them. To give every dimension a variance of 1, as for many
    labels, would trust variances measured on a handful of images. At C = 0.01 this gets more images right than
    :func:`linear_probe_accuracy` does, from 20 to 500 labels: 0.3 to 3.7 points of CIFAR-10 on supervised weights, 0.2
    to 1.6 on adapted ones, 1.1 to 1.7 of digits. C = 0.1 gains 1.5 to 3.7 on digits and loses up to 2.3 on CIFAR-10.

    Args:
        draws: of each the features (N, D) whose labels are known, their labels (N,) int64, at least two different
            ones, and features (M, D) to classify.

    Returns:
        For each draw (M,) int64, a label of its own for each query.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = np.unique(np.concatenate([labels for _, labels, _ in draws]))
    numbers = [torch.from_numpy(np.searchsorted(names, labels)).to(device) for _, labels, _ in draws]
    banks, centers, scales = [], [], []
    for bank, _, _ in draws:
        unit = _unit_tensor(bank, device)
        centers.append(unit.mean(dim=0))
        scales.append((unit - centers[-1]).square().mean().sqrt().clamp(min=1e-12))
        banks.append((unit - centers[-1]) / scales[-1])
    fitted = zip(*fit_logistic_regressions(banks, numbers, len(names), FEW_LABEL_C), strict=True)
    answers = []
    for (weights, biases), center, scale, (_, _, queries) in zip(fitted, centers, scales, draws, strict=True):
        logits = (_unit_tensor(queries, device) - center) @ (weights.T / scale) + biases
        answers.append(names[logits.argmax(dim=1).cpu().numpy()])
    return answers


def _unit_tensor(features: np.ndarray, device: torch.device) -> Tensor:
    return functional.normalize(torch.from_numpy(features).to(device, torch.float32), dim=1)


def few_of_each_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the places of up to four labels of each class, drawn with ``seed``."""
    random = np.random.default_rng(seed)
    places = [random.permutation(np.flatnonzero(labels == number))[:PER_CLASS] for number in np.unique(labels)]
    return np.sort(np.concatenate(places))


def few_labels_right(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> list[int]:
    """Return which answers of probes with few labels are right: 1, else 0; for each of five draws, all queries."""
    drawn = [few_of_each_class(bank_labels, seed) for seed in range(DRAWS)]
    answers = few_label_answers_of_draws([(bank[few], bank_labels[few], queries) for few in drawn])
    right: list[int] = np.concatenate([given == query_labels for given in answers]).astype(int).tolist()
    return right


def answerable(*features: np.ndarray) -> bool:
    """Whether probes can be asked: of features that are not finite, no answer is known, and none counts as right."""
    return all(bool(np.isfinite(matrix).all()) for matrix in features)


def probe(features_of: Callable[[np.ndarray], np.ndarray], split: ProbeSplit) -> dict[str, list[int]]:
    """Return for each probe which questions it gets right: 1, else 0; all 0 for features that are not finite.

    They are ``few_label_accuracy`` (logistic regression with up to four labels of each class, for each of five draws
    all queries), ``knn_accuracy`` and ``linear_probe_accuracy`` (with all labels).

    Args:
        features_of: (N,) indices to (N, D) features.
        split: which images.
    """
    arguments = features_of(split.bank), split.bank_labels, features_of(split.queries)
    if not answerable(arguments[0], arguments[2]):
        wrong = [0] * len(split.queries)
        return {"few_label_accuracy": DRAWS * wrong, "knn_accuracy": wrong, "linear_probe_accuracy": list(wrong)}
    answers = {"knn_accuracy": knn_answers(*arguments), "linear_probe_accuracy": linear_probe_answers(*arguments)}
    right = {name: (given == split.query_labels).astype(int).tolist() for name, given in answers.items()}
    return {"few_label_accuracy": few_labels_right(*arguments, split.query_labels), **right}


def _unit_rows(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray = features / np.maximum(norms, 1e-12)
    return unit
