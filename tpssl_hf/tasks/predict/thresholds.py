"""The thresholds of a finished classifier whose images may have several labels."""

from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError
from tpssl_hf.models.timm_export import SEVERAL_LABELS, THRESHOLDS


def thresholds_of(config: dict[str, Any], classes: int, file: Path) -> tuple[float, ...] | None:
    """Return from which probability on an image is given each label; None for a classifier of one label an image.

    A model of other origin, which names none, gives those of 0.5 or more.

    Args:
        config: of the model.
        classes: how many labels there are.
        file: that holds the configuration, for messages.

    Raises:
        InputError: for other than a number between 0 and 1 for each label.
    """
    if config.get("problem_type") != SEVERAL_LABELS or classes == 0:
        return None
    own = config.get("tpssl_hf")
    found = own.get(THRESHOLDS) if isinstance(own, dict) else None
    if found is None:
        return (0.5,) * classes
    numbers = [value for value in found if isinstance(value, int | float)] if isinstance(found, list) else []
    if len(numbers) != classes or len(found) != classes or not all(0 < value < 1 for value in numbers):
        raise InputError(
            f"{file} gives the {THRESHOLDS} {str(found)[:80]} for {classes} labels; they must be a number between 0 "
            "and 1 for each: copy or train the model again."
        )
    return tuple(float(value) for value in numbers)
