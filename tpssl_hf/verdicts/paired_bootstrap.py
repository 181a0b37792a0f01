"""Differences of two scores on the same queries: how large, how certain, and what sample size would settle them.

Two sets of weights label the same images, the queries, with the same label seeds. What varies is which labels
were drawn and which questions were taken, so both are resampled (the pigeonhole bootstrap; Owen, 2007).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 4000
MOST_DRAWS, MOST_QUESTIONS = 100, 100_000  # beyond these, more of them counts as out of reach
_CHUNK = 250  # resamples whose weights are in memory together


@dataclass(frozen=True)
class Difference:
    """Mean of one score minus another with an interval; all in fractions of right predictions, −1 to 1.

    Attributes:
        mean: over label seeds and queries.
        low: lower end of the interval.
        high: upper end.
        level: fraction of such intervals that hold the truth.
        standard_error: of the mean.
        draws: mean difference of each draw.
        questions: number of images predicted.
        overlap: how far draws depend on each other, see :func:`paired_difference`.
        draw_variance: of one draw's true difference; for label seeds that share their queries, else None.
        question_variance: of one question's true difference; likewise.
        residual_variance: of a single prediction beyond the two; likewise.
    """

    mean: float
    low: float
    high: float
    level: float
    standard_error: float
    draws: tuple[float, ...]
    questions: int
    overlap: float
    draw_variance: float | None
    question_variance: float | None
    residual_variance: float | None

    @property
    def sign(self) -> int:
        """1 or −1 where the whole interval is above or below 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        return asdict(self) | {"draws": list(self.draws)}


@dataclass(frozen=True)
class SampleSize:
    """The sample size at which the interval leaves 0, if the true difference is the one that was measured.

    Attributes:
        draws: of labels.
        questions: labeled images to predict; where every draw has its own questions, labeled images in all.
    """

    draws: int
    questions: int


def paired_difference(
    one: np.ndarray, other: np.ndarray, *, overlap: float = 0.0, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare the predictions of two sets of weights on the same queries with the same label seeds.

    The shape of the interval is that of the bootstrap over label seeds and queries. Its width is set right for three
    known faults of it: it counts what is left beyond both factors three times (Owen, 2007), takes a few draws for
    all there are, and knows nothing of draws that overlap (Nadeau & Bengio, 2003). So it is scaled from its own
    standard deviation to the standard error by analysis of variance, times the quantile of Student's t with
    Satterthwaite's degrees of freedom over the normal one.

    Args:
        one: (S, Q), 1 for a right prediction, 0 for a wrong one, NaN where there is none; S draws, at least 2, of Q
            questions, at least 2.
        other: (S, Q) of the other weights, NaN at the same places.
        overlap: what the variance over draws must be multiplied by beyond 1 / S because draws have images in common.
            For draws of n images out of P it is n / (P − n); for splits into n images to learn from and m to ask
            about, m / n.
        level: of the interval, in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: if the matrices do not fit each other.
    """
    if one.shape != other.shape or min(one.shape) < 2 or (np.isnan(one) != np.isnan(other)).any():
        raise ValueError(f"predictions {one.shape} and {other.shape} are not of the same questions, at least 2 by 2.")
    differences = one.astype(np.float64) - other
    present = ~np.isnan(differences)
    by_draw = np.nanmean(differences, axis=1)
    mean = float(differences[present].mean())
    components = _components(differences) if present.all() else None
    error, freedom = _error(differences, by_draw, components, overlap)
    resampled = _resampled_means(differences, present, seed) - mean
    tails = (1 - level) / 2
    spread = float(resampled.std())
    wider = error * stats.t.ppf(1 - tails, freedom) / (spread * stats.norm.ppf(1 - tails)) if spread > 0 else 0.0
    low, high = (mean + float(wider * np.quantile(resampled, tail)) for tail in (tails, 1 - tails))
    variances = components or (None, None, None)
    return Difference(
        mean, low, high, level, error, tuple(by_draw.tolist()), differences.shape[1], overlap, *variances
    )


def _components(matrix: np.ndarray) -> tuple[float, float, float]:
    """Variances of label seeds, of queries and of what is left, by analysis of variance of (S, Q); none below 0."""
    draws, questions = matrix.shape
    rows, columns, mean = matrix.mean(axis=1), matrix.mean(axis=0), matrix.mean()
    left = float(((matrix - rows[:, None] - columns + mean) ** 2).sum()) / ((draws - 1) * (questions - 1))
    of_draws = max(0.0, float(rows.var(ddof=1)) - left / questions)
    of_questions = max(0.0, float(columns.var(ddof=1)) - left / draws)
    return of_draws, of_questions, left


def _variance(components: tuple[float, float, float], draws: float, questions: float, overlap: float) -> float:
    of_draws, of_questions, left = components
    return of_draws * (1 / draws + overlap) + of_questions / questions + left / (draws * questions)


def _error(
    matrix: np.ndarray, by_draw: np.ndarray, components: tuple[float, float, float] | None, overlap: float
) -> tuple[float, float]:
    """Standard error of the mean, and its degrees of freedom."""
    draws, questions = matrix.shape
    if components is None:  # every draw has questions of its own, so the spread over draws holds theirs
        by_image = np.nanmean(matrix[:, ~np.isnan(matrix).all(axis=0)], axis=0)
        over_draws = (1 / draws + overlap) * float(by_draw.var(ddof=1))
        over_images = float(by_image.var(ddof=1)) / len(by_image) if len(by_image) > 1 else 0.0
        return math.sqrt(max(over_draws, over_images)), draws - 1
    variance = _variance(components, draws, questions, overlap)
    of_draws, of_questions, left = components
    left /= draws * questions
    parts = (
        (of_draws * (1 / draws + overlap) + left, draws - 1),
        (of_questions / questions + left, questions - 1),
        (left, (draws - 1) * (questions - 1)),
    )
    divisor = sum(part**2 / degrees for part, degrees in parts)
    return math.sqrt(variance), variance**2 / divisor if divisor > 0 else draws - 1


def _resampled_means(differences: np.ndarray, present: np.ndarray, seed: int) -> np.ndarray:
    """Means (RESAMPLES,) with label seeds and queries each resampled with replacement, as counts of how often."""
    random = np.random.default_rng(seed)
    draws, questions = differences.shape
    filled, weights = np.where(present, differences, 0.0), present.astype(np.float64)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        of_draws, of_questions = (_counts(random, number) for number in (draws, questions))
        total = ((of_draws @ filled) * of_questions).sum(axis=1)
        count = ((of_draws @ weights) * of_questions).sum(axis=1)
        means[start : start + _CHUNK] = total / np.maximum(count, 1.0)
    return means


def _counts(random: np.random.Generator, number: int) -> np.ndarray:
    """How often each of ``number`` is drawn in ``number`` draws with replacement: (_CHUNK, number)."""
    drawn = random.integers(number, size=(_CHUNK, number)) + number * np.arange(_CHUNK)[:, None]
    return np.bincount(drawn.ravel(), minlength=_CHUNK * number).reshape(_CHUNK, number).astype(np.float64)


def required_sample_size(difference: Difference) -> SampleSize | None:
    """Return how many label seeds, or queries, would bring the half-width of the interval below the difference itself.

    More label seeds cost computing only, so they are tried first, up to 100; then more queries, up to 100,000.

    Returns:
        The numbers, each at least the present one; None if they are out of reach, or there is no difference at all.
    """
    draws, questions = len(difference.draws), difference.questions
    bound = float(stats.norm.ppf((1 + difference.level) / 2)) ** 2
    allowed = difference.mean**2 / bound
    if allowed == 0:
        return None
    of_draws, of_questions, left = (
        difference.draw_variance,
        difference.question_variance,
        difference.residual_variance,
    )
    if of_draws is None or of_questions is None or left is None:  # the error falls with the root of all labels
        wanted = math.ceil(questions * max(1.0, difference.standard_error**2 / allowed))
        return SampleSize(draws, wanted) if wanted <= MOST_QUESTIONS else None
    room = allowed - of_questions / questions - of_draws * difference.overlap
    if room > 0:
        wanted = math.ceil((of_draws + left / questions) / room)
        if wanted <= MOST_DRAWS:
            return SampleSize(max(draws, wanted), questions)
    for tried in dict.fromkeys((draws, max(draws, MOST_DRAWS))):
        room = allowed - of_draws * (1 / tried + difference.overlap)
        if room > 0:
            wanted = math.ceil((of_questions + left / tried) / room)
            if wanted <= MOST_QUESTIONS:
                return SampleSize(tried, max(questions, wanted))
    return None
