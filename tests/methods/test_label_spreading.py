"""Labels that flow along nearest neighbors, and what is made of them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.semi_supervised import LabelSpreading
from torch import nn

from tpssl_hf.evaluation.fitted_head import fit_head
from tpssl_hf.methods.classify import label_spreading
from tpssl_hf.methods.classify.label_spreading import LabelSpreadingConfig, NeighborGraph, fit_labels


def moons(count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features in which two moons can be told apart by a plane, their classes, and two labels a class."""
    points, classes = make_moons(count, noise=0.05, random_state=0)
    random = np.random.default_rng(0)
    waves = 2 * points @ random.normal(size=(2, 64)) + random.uniform(0, 6.3, 64)  # random Fourier features
    features = np.cos(waves).astype(np.float32)
    known = np.full(count, -1)
    for number in (0, 1):
        known[np.flatnonzero(classes == number)[:2]] = number
    return features, classes, known


def answers(features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    rows = labels >= 0
    head = nn.Linear(features.shape[1], 2)
    fit_head(head, features[rows], labels[rows], None if weights is None else weights[rows])
    with torch.no_grad():
        found: np.ndarray = head(torch.from_numpy(features)).argmax(dim=1).numpy()
    return found


def test_a_head_fitted_to_spread_labels_beats_one_fitted_to_the_labels_alone() -> None:
    features, classes, known = moons()
    labels, weights = fit_labels(features, known, LabelSpreadingConfig(alpha=0.9))
    probe, spread = answers(features, known), answers(features, labels, weights)
    assert (labels == classes).mean() > 0.98
    assert (spread == classes).mean() > (probe == classes).mean() + 0.05


def test_labels_and_weights_are_those_of_scikit_learn_and_given_labels_stay() -> None:
    features, _, known = moons()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    model = LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.2, max_iter=50).fit(unit, known)
    labels, weights = fit_labels(features, known, LabelSpreadingConfig())
    given, reached = known >= 0, model.label_distributions_.max(axis=1) > 0
    assert np.array_equal(labels[given], known[given]) and (weights[given] == 1).all()
    assert np.array_equal(labels[reached & ~given], model.transduction_[reached & ~given])
    np.testing.assert_allclose(weights[~given], model.label_distributions_.max(axis=1)[~given])


def test_the_graph_serves_several_sets_of_labels() -> None:
    features, _, known = moons()
    other = np.where(known >= 0, 1 - known, -1)
    graph = NeighborGraph(features, LabelSpreadingConfig())
    for labels in (known, other, known):
        for found, wanted in zip(
            graph.spread(labels), fit_labels(features, labels, LabelSpreadingConfig()), strict=True
        ):
            assert np.array_equal(found, wanted)


def test_of_many_images_a_draw_takes_part_and_the_others_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _, known = moons()
    monkeypatch.setattr(label_spreading, "MOST_IMAGES", 100)
    _, weights = fit_labels(features, known, LabelSpreadingConfig(neighbors=500))
    assert 50 < (weights > 0).sum() <= 104 and (weights[known >= 0] == 1).all()


def test_with_all_labels_known_there_is_nothing_to_spread() -> None:
    features, classes, _ = moons()
    labels, weights = fit_labels(features, classes, LabelSpreadingConfig())
    assert np.array_equal(labels, classes) and (weights == 1).all()
