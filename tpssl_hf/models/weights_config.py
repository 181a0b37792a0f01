"""What the ``config.json`` beside weights says of them, checked: strangers may have written it."""

import math
from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError
from tpssl_hf.files.json_file import read_json

LONGEST_SIDE = 10_000  # pixels of an input; larger ones would take all memory


def read_weights_config(path: Path, name: str) -> dict[str, Any]:
    """Return what a ``config.json`` says of the weights beside it, under ``pretrained_cfg`` or at the top as of old.

    It is empty where there is no file, or one that says nothing of preprocessing.

    Args:
        path: of the file.
        name: the timm architecture that the weights shall be of.

    Raises:
        InputError: for a file that is damaged, of another architecture, or describes impossible images.
    """
    if not path.is_file():
        return {}
    try:
        facts = read_json(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); the folder is damaged, copy it again.") from error
    own = facts.get("pretrained_cfg", facts) if isinstance(facts, dict) else None
    if not isinstance(own, dict):
        raise InputError(f"{path} is no description of a timm model; the folder is damaged, copy it again.")
    stored = facts.get("architecture", name)
    if stored != name:
        raise InputError(f"init folder {path.parent} holds a {stored}, not a {name}; say --backbone {stored}.")
    check_preprocessing(own, path)
    return own


def check_preprocessing(facts: dict[str, Any], path: Path) -> None:
    """Refuse images that nothing could make: sizes without end, a deviation of 0, numbers that are none.

    Args:
        facts: timm's ``pretrained_cfg``; what it does not say is not looked at.
        path: where it was read, for the message.

    Raises:
        InputError: naming the key, what it holds and what belongs there.
    """
    numbers = {
        "mean": ("a list of 3 numbers", 3, _is_finite),
        "std": ("a list of 3 numbers above 0", 3, lambda value: _is_finite(value) and value > 0),
        "input_size": (f"a list of 3 numbers from 1 to {LONGEST_SIDE:,}", 3, _is_side),
    }
    for key, (wanted, length, fits) in numbers.items():
        if key not in facts:
            continue
        values = facts[key]
        if not isinstance(values, list) or len(values) != length or not all(map(fits, values)):
            raise InputError(f"{path} has {key} {str(values)[:80]}, where {wanted} belongs; correct it.")
    crop = facts.get("crop_pct")
    if crop is not None and not (_is_finite(crop) and 0 < crop <= 10):
        raise InputError(f"{path} has crop_pct {str(crop)[:80]}, where a number above 0 belongs; correct it.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LONGEST_SIDE
