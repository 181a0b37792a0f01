"""Keys that hold several values: written with commas, or as a list in a YAML file or on the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from tpssl_hf.errors import InputError

WRITTEN = list[str | int] | str | int | None  # what the parser takes for such a key
NUMBERS = (list[int], list[int] | None)


def normalize_lists(groups: Sequence[type], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with one form for each key of ``groups`` that may hold several.

    Raises:
        InputError: if whole numbers are wanted and something else is there, or one of them twice.
    """
    several = {
        item.name: get_type_hints(group)[item.name]
        for group in groups
        for item in fields(group)
        if item.metadata.get("several")
    }
    return {**values, **{name: _settled(name, values[name], hint) for name, hint in several.items()}}


def _settled(name: str, value: Any, hint: Any) -> Any:
    """Whole numbers where the type says so, else texts with commas between."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    texts = [str(part).strip() for part in parts]
    if hint not in NUMBERS:
        return ",".join(texts)
    if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
        shown = value if isinstance(value, str) else ",".join(texts)
        raise InputError(f"{name} {shown!r} is not a list of different whole numbers such as 1,2,3; give one.")
    return [int(text) for text in texts] or None
