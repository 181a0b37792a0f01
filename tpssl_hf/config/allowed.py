"""Which values a key may have: said in one sentence where one has another."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tpssl_hf.errors import InputError

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Numbers:
    """Finite numbers from ``least`` to ``most``, of which ``above`` leaves out the first and ``below`` the last."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether ``value`` is one of them; NaN and infinity never are."""
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        """Say which they are."""
        if self.least == -math.inf:
            return "a finite number"
        first = f"a number {'above' if self.above else 'from'} {self.least:g}"
        if self.most == math.inf:
            return f"{first}{'' if self.above else ' on'}"
        if self.below:
            return f"{first}{' and' if self.above else ','} below {self.most:.10g}"
        return f"{first}{', at most' if self.above else ' to'} {self.most:.10g}"


ANY = Numbers()
FROM_0 = Numbers(0)
FROM_1 = Numbers(1)
ABOVE_0 = Numbers(0, above=True)
SHARE = Numbers(0, 1)
SHARE_ABOVE_0 = Numbers(0, 1, above=True)
BELOW_1 = Numbers(0, 1, below=True)
BETWEEN_0_AND_1 = Numbers(0, 1, above=True, below=True)
ZOOMS = Numbers(0, 100, above=True)
SEEDS = Numbers(0, 2**32 - 1)


def refuse_numbers(groups: Sequence[type], values: Mapping[str, Any]) -> None:
    """Refuse numbers that their keys do not allow; a key that says nothing takes those from 0 on.

    Raises:
        InputError: naming key, value and what is allowed.
    """
    for group in groups:
        hints = get_type_hints(group)
        for item in fields(group):
            value, allowed = values[item.name], item.metadata.get("within", FROM_0)
            if str in get_args(hints[item.name]) or type(value) not in (int, float) or value in allowed:
                continue
            nothing = ", or leave it out" if item.default is None else ""
            raise InputError(f"{item.name} is {value:.10g}; give {allowed}{nothing}.")


def in_a_sentence(groups: Sequence[type], text: str) -> str | None:
    """Write what the parser says of a value of the wrong type for people; None where it is about something else."""
    found = re.search(r'key "(\w+)": .*(?:Got|Given) value:(.*)$', " ".join(text.split()))
    hints = {name: hint for group in groups for name, hint in get_type_hints(group).items()}
    wanted = _wanted(hints[found[1]]) if found and found[1] in hints else None
    return f"{found[1]} takes {wanted}. Got value: {found[2].strip() or 'nothing'}" if found and wanted else None


def _wanted(hint: Any) -> str | None:
    """Say what a type takes; None if it is not a plain one."""
    kinds = [hint] if get_origin(hint) is Literal else [k for k in get_args(hint) or (hint,) if k is not NoneType]
    words = [word for k in kinds for word in (get_args(k) if get_origin(k) is Literal else [PLAIN.get(k)])]
    if None in words:
        return None
    *others, last = map(str, words)
    return f"{', '.join(others)} or {last}" if others else last
