import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tpssl_hf.evaluation.fitted_head import fit_head


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_the_head_answers_as_logistic_regression_does_whatever_the_scale(classes: int, scale: float) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % classes
    features = (scale * (random.normal(size=(60, 12)) + np.eye(12)[labels])).astype(np.float32)
    head = nn.Linear(12, classes)
    fit_head(head, features, labels)
    unit = features / np.sqrt((features.astype(np.float64) ** 2).mean())
    wanted = LogisticRegression(C=1.0, max_iter=2000).fit(unit, labels).predict_proba(unit)
    with torch.no_grad():
        found = head(torch.from_numpy(features)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_classes_without_a_label_keep_their_rows() -> None:
    head = nn.Linear(4, 5)
    before = head.weight.detach().clone()
    fit_head(head, np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2 * 3)
    assert torch.equal(head.weight[[1, 2, 4]], before[[1, 2, 4]])
    assert not torch.equal(head.weight[[0, 3]], before[[0, 3]])
