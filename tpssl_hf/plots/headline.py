"""What is said of a run in a line, by its log; without torch and matplotlib, so that it is quick."""

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSED, HEALTHY = "COLLAPSED", "healthy"


def headline(what: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what was trained on what, how far, and what the last check of the features found, if there was one.

    Args:
        what: was trained on what.
        entries: the lines of the log.
    """
    last = next((entry["step"] for entry in reversed(entries) if entry.get("loss") is not None), None)
    return ", ".join([what, *([f"{last:,} steps"] if last is not None else []), *filter(None, [health_of(entries)])])


def health_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what the last check of the features found, and at which step; empty where none was made."""
    check = next((entry for entry in reversed(entries) if entry.get("health_collapsed") is not None), None)
    return f"{COLLAPSED if check['health_collapsed'] else HEALTHY} at step {check['step']:,}" if check else ""
