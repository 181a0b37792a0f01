"""A linear classifier fitted to frozen features, in the form of a network's last layer."""

import numpy as np
import torch
from torch import nn

REGULARIZATION = 1.0  # C of scikit-learn, on features whose mean square is 1
TOLERANCE, MANY_TOLERANCE = 1e-4, 1e-3  # of the fit; weighted labels are many, and not exact themselves


@torch.no_grad()
def fit_head(head: nn.Linear, features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
    """Put logistic regression into ``head``, so that finetuning begins where a linear probe ends (arXiv 2202.10054).

    Features are divided by one number, which is taken back into the weights, so that the layer reads them as they
    come. The rows of classes without a label stay as they are. Of several labels an image each has a regression of its
    own, on the images of which it is known; one that all or none of these have stays as it is.

    Args:
        head: D features to K logits.
        features: (N, D) of images with labels.
        labels: (N,) int64 in [0, K), at least two different ones; or (N, K) int64, 1 for a label, 0 for none, -1 for
            unknown.
        weights: (N,) at least 0, how much each label counts; all the same when not given.
    """
    scale = max(float(np.sqrt((features.astype(np.float64) ** 2).mean())), 1e-12)
    tolerance = TOLERANCE if weights is None else MANY_TOLERANCE
    from sklearn.linear_model import LogisticRegression

    if labels.ndim == 2:
        for number in np.flatnonzero((labels == 1).any(axis=0) & (labels == 0).any(axis=0)).tolist():
            known = labels[:, number] >= 0
            regression = LogisticRegression(C=REGULARIZATION, max_iter=2000, tol=tolerance)
            one = regression.fit(features[known] / scale, labels[known, number])
            head.weight[number] = torch.as_tensor(one.coef_[0] / scale, dtype=head.weight.dtype)
            head.bias[number] = float(one.intercept_[0])
        return
    regression = LogisticRegression(C=REGULARIZATION, max_iter=2000, tol=tolerance)
    found = regression.fit(features / scale, labels, sample_weight=weights)
    weights, biases = found.coef_ / scale, found.intercept_
    if len(found.classes_) == 2:  # one row, for the second class against the first
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    for number, weight, bias in zip(found.classes_.tolist(), weights, biases, strict=True):
        head.weight[number] = torch.as_tensor(weight, dtype=head.weight.dtype)
        head.bias[number] = float(bias)
