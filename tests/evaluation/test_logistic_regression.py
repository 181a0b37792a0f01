"""Our solver gives the answers of scikit-learn's, for all sets of labels at once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tpssl_hf.evaluation.logistic_regression import fit_logistic_regressions


def labeled(count: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features far from 0, with labels that they tell something about."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    mixed = random.normal(size=(count, width)) @ np.diag(1 / np.sqrt(1 + np.arange(width)))
    return 3 + mixed + random.normal(size=(classes, width))[labels], labels


def probabilities(features: np.ndarray, weights: torch.Tensor, biases: torch.Tensor) -> np.ndarray:
    found: np.ndarray = (torch.from_numpy(features) @ weights.T + biases).softmax(dim=1).numpy()
    return found


@pytest.mark.parametrize("width", [6, 80], ids=["more labels than features", "fewer"])
@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_probabilities_are_those_of_scikit_learn(width: int, classes: int, strength: float) -> None:
    features, labels = labeled(48, width, classes, seed=0)
    queries, _ = labeled(30, width, classes, seed=1)
    wanted = LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(features, labels).predict_proba(queries)
    slopes, biases = fit_logistic_regressions(
        [torch.from_numpy(features)], [torch.from_numpy(labels)], classes, strength
    )
    np.testing.assert_allclose(probabilities(queries, slopes[0], biases[0]), wanted, atol=2e-3)


def test_sets_of_different_sizes_and_classes_are_solved_as_if_each_were_alone() -> None:
    sizes, classes = (20, 35, 9), (5, 4, 2)  # the second and the third lack classes
    sets = [labeled(size, 24, of_set, seed) for seed, (size, of_set) in enumerate(zip(sizes, classes, strict=True))]
    features, labels = ([torch.from_numpy(array) for array in arrays] for arrays in zip(*sets, strict=True))
    slopes, biases = fit_logistic_regressions(features, labels, 5, 0.1)
    for number, of_set in enumerate(classes):
        (own, own_labels), found = sets[number], probabilities(sets[0][0], slopes[number], biases[number])
        wanted = LogisticRegression(C=0.1, tol=1e-9, max_iter=5000).fit(own, own_labels).predict_proba(sets[0][0])
        np.testing.assert_allclose(found[:, :of_set], wanted, atol=1e-3)
        assert (found[:, of_set:] == 0).all()


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_features_that_say_nothing_leave_the_frequencies(value: float) -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    slopes, biases = fit_logistic_regressions([torch.full((5, 8), value)], [labels], 3, 1.0)
    np.testing.assert_allclose(slopes, 0, atol=1e-5)
    np.testing.assert_allclose(biases[0].softmax(dim=0), [0.6, 0.2, 0.2], atol=1e-3)
