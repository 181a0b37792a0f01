"""L2-regularized multinomial logistic regression of several small sets of labels at once, as scikit-learn defines it.

For each set, with logits F = X W^T + b and C the strength of the data, this minimizes

    C sum_i cross_entropy(F_i, y_i) + |W|^2 / 2,

with |W|^2 instead of its half where there are two classes, to which scikit-learn gives one row of weights. The minimum
is unique in W, so that any solver that converges gives the same answers. Two changes of variables make it small:

- With fewer labels than features W lies in the span of the centered features: one dimension for each label (QR).
- With V the weights there and Z_0 the features, T = L^T V, where L L^T = I + c Z_0^T Z_0 and c = C / K, has the
  identity as Hessian at T = 0. And |V|^2 = |T|^2 - c |Z_0 V|^2, so that no step solves for V.

Conjugate gradients (Hestenes and Stiefel, 1952, restarted where their factor is negative) need some twenty steps.
Along a direction the logits are linear, so that the search for the length of a step multiplies no matrices.

Meant for few labels. With more labels than features, scikit-learn's L-BFGS is as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

TOLERANCE = 1e-4  # of the gradient's norm, as a share of the first
MOST_STEPS, MOST_LENGTHS = 500, 20
ALONG = 0.1  # the same along one direction
AT_ONCE = 2**25  # numbers in features and logits of the sets that are solved for at once


@torch.no_grad()
def fit_logistic_regressions(
    features: Sequence[Tensor], labels: Sequence[Tensor], classes: int, regularization: float
) -> tuple[Tensor, Tensor]:
    """Fit one regression to each set of labels, on the device and in the precision of the features.

    Args:
        features: (N_s, D) floating point, of each of S sets.
        labels: (N_s,) int64 in [0, K) of each set; a set may lack some classes.
        classes: K.
        regularization: C of scikit-learn; the larger, the less the weights are held back.

    Returns:
        Weights (S, K, D) and biases (S, K); 0 and −∞ for a class that a set lacks.
    """
    counts = [torch.ones_like(rows[:, 0]) for rows in features]
    together = max(1, AT_ONCE // (max(map(len, features)) * (features[0].shape[1] + classes)))
    found = []
    for start in range(0, len(features), together):
        part = slice(start, start + together)
        rows, numbers, ones = (pad_sequence(list(sets[part]), batch_first=True) for sets in (features, labels, counts))
        found.append(_fit(rows, numbers, ones, classes, regularization))
    slopes, biases = zip(*found, strict=True)
    return torch.cat(slopes), torch.cat(biases)


@dataclass(frozen=True)
class _Problem:
    """Sets of one length in the variables T: F = Z T with inputs Z (S, N, R), targets (S, N, K), counts (S, N, 1).

    ``present`` (S, 1, K) says which classes a set has; ``strength`` is C and ``curvature`` c, both (S, 1, 1).
    """

    inputs: Tensor
    targets: Tensor
    counts: Tensor
    present: Tensor
    strength: Tensor
    curvature: Tensor

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(~self.present, -torch.inf).softmax(dim=2)

    def pull(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Return what the gradient T + Z^T pull is made of."""
        return self.counts * (self.strength * (probabilities - self.targets) - self.curvature * logits)


def _fit(features: Tensor, labels: Tensor, counts: Tensor, classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Fit sets of one length: features (S, N, D), labels (S, N), counts (S, N), 0 for what is padding."""
    counts, total = counts[:, :, None], counts.sum(dim=1)[:, None, None]
    targets = functional.one_hot(labels, classes).to(features.dtype)
    present = (counts * targets).sum(dim=1, keepdim=True) > 0
    of_set = present.sum(dim=2, keepdim=True)
    data = torch.where(of_set == 2, strength / 2, strength).to(features.dtype)
    curvature = data / of_set

    center = (counts * features).sum(dim=1, keepdim=True) / total
    basis, rows = None, features - center
    if rows.shape[1] < rows.shape[2]:
        basis, upper = torch.linalg.qr(rows.mT)
        rows = upper.mT
    identity = torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky(identity + curvature * (rows.mT @ (counts * rows)))
    inputs = torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT
    ones = (curvature * total).rsqrt()  # the bias, which has no penalty: it is a column orthogonal to the others
    inputs = torch.cat([inputs, ones.expand(-1, rows.shape[1], 1)], dim=2)

    found = _minimum(_Problem(inputs, targets, counts, present, data, curvature))
    slopes = torch.linalg.solve_triangular(factor.mT, found[:, :-1], upper=True)
    slopes = (slopes if basis is None else basis @ slopes).mT
    biases = (found[:, -1:] * ones).mT - slopes @ center.mT
    return slopes, biases.masked_fill(~present.mT, -torch.inf)[:, :, 0]


def _minimum(problem: _Problem) -> Tensor:
    """Return T (S, R, K) by conjugate gradients; a set that has converged stands still."""
    inputs, shape = problem.inputs, problem.targets.shape
    found = inputs.new_zeros(shape[0], inputs.shape[2], shape[2])
    logits = inputs.new_zeros(shape)
    probabilities = problem.probabilities(logits)
    direction, before, enough = found, found, None
    for _ in range(MOST_STEPS):
        gradient = found + inputs.mT @ problem.pull(logits, probabilities)
        length = _dot(gradient, gradient)
        enough = TOLERANCE**2 * length if enough is None else enough
        done = length <= enough
        if done.all():
            break
        change = gradient - before
        share = (_dot(gradient, change) / _dot(direction, change)).clamp(min=0).nan_to_num(0.0, 0.0)
        direction = share * direction - gradient
        direction = torch.where(done, 0, torch.where(_dot(direction, gradient) < 0, direction, -gradient))
        change_of_logits = inputs @ direction
        step, probabilities = _best_step(problem, found, direction, logits, change_of_logits, probabilities)
        found, logits, before = found + step * direction, logits + step * change_of_logits, gradient
    return found


def _best_step(
    problem: _Problem, found: Tensor, direction: Tensor, logits: Tensor, change: Tensor, probabilities: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far to go along ``direction`` (S, 1, 1), and the probabilities there: Newton's method, bracketed."""
    squares = _dot(direction, direction)
    fixed = squares - problem.curvature * _dot(problem.counts * change, change)
    step, low, high = (torch.full_like(squares, value) for value in (0.0, 0.0, torch.inf))
    slope = first = _dot(direction, found) + _dot(change, problem.pull(logits, probabilities))
    for _ in range(MOST_LENGTHS):
        mean = (probabilities * change).sum(dim=2, keepdim=True)
        curve = fixed + problem.strength * _dot(problem.counts * probabilities * change, change - mean)
        low, high = torch.where(slope < 0, step, low), torch.where(slope > 0, step, high)
        newton, middle = step - slope / curve, torch.where(high.isinf(), 2 * low, (low + high) / 2)
        better = torch.where((newton > low) & (newton < high), newton, middle)
        step = torch.where(slope.abs() <= ALONG * first.abs(), step, better)
        there = logits + step * change
        probabilities = problem.probabilities(there)
        slope = _dot(direction, found) + step * squares + _dot(change, problem.pull(there, probabilities))
        if (slope.abs() <= ALONG * first.abs()).all():
            break
    return step, probabilities


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2), keepdim=True)
