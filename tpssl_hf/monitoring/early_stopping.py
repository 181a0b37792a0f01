"""Early stopping: a run has settled once further steps no longer change the measures of its health."""

from collections.abc import Sequence

from tpssl_hf.monitoring.collapse import HealthReport

# Three checks, so that one quiet interval between two loud ones is not taken for the end.
CHECKS = 3
# With a constant learning rate and one epoch between checks a run kept 0.62 of its neighbors at first, then more and
# more, then 0.83 to 0.87 for good: the noise of single steps.
AGREEMENT_LEAST, AGREEMENT_RANGE = 0.8, 0.05
# In the same run effective rank varied by 25 % over three checks at first, by 3 % at that plateau; alignment likewise.
CHANGE_MOST = 0.05


def settled(reports: Sequence[HealthReport], *, after_step: int = 0) -> str | None:
    """Return in one sentence why the run has settled, or None while it has not.

    Settled means, over the last three checks after ``after_step``: at least 0.8 of the nearest neighbors are kept
    from check to check, a share that itself varies by 0.05 at most, and effective rank and alignment vary by 5 % of
    their mean at most. A collapsed run never counts as settled.

    The neighbors kept depend on how far checks are apart, so checks must be evenly spaced, one epoch or more. And a
    learning rate near 0 settles every run: in warm-up, which ``after_step`` leaves out, and at the end of a cosine,
    where being settled says that the schedule is over and not that a longer one would bring no more. A run that is
    slow to move looks settled too, so give the first part of the run (a quarter, say) a chance with ``after_step``.

    Args:
        reports: of one run, in order.
        after_step: checks up to this step are passed over: the warm-up and more.
    """
    last = [report for report in reports if report.step > after_step][-CHECKS:]
    if len(last) < CHECKS or any(report.collapsed for report in last):
        return None
    kept = [report.neighbor_agreement_previous for report in last]
    rank_change = _relative_range([report.effective_rank for report in last])
    alignment_change = _relative_range([report.alignment for report in last])
    if min(kept) < AGREEMENT_LEAST or max(kept) - min(kept) > AGREEMENT_RANGE:
        return None
    if max(rank_change, alignment_change) > CHANGE_MOST:
        return None
    return (
        f"settled at step {last[-1].step}: over the last {CHECKS} checks {min(kept):.0%} or more of the nearest "
        f"neighbors were kept, effective rank varied by {rank_change:.1%} and alignment by {alignment_change:.1%}"
    )


def _relative_range(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return (max(values) - min(values)) / mean if mean > 0 else 0.0
