"""MkDocs hook: fill in tables of keys from the dataclasses that declare them.

``<!-- keys: module:Class -->`` becomes a table for each dataclass that the class is composed of, and
``<!-- methods: module:DICT -->`` one for each method of a dictionary of specs. Cross-references of docstrings
(``:func:``) lose their role, which Markdown would show.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

ROLE = re.compile(r":(?:func|class|mod|meth|attr):(?=<code>)")
MARK = re.compile(r"<!-- (keys|methods): ([\w.]+):(\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the tables of one page; called by MkDocs."""
    return MARK.sub(filled_in, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take the roles out of one page; called by MkDocs."""
    return ROLE.sub("", html)


def filled_in(mark: re.Match[str]) -> str:
    """Return what one mark stands for."""
    found = getattr(importlib.import_module(mark[2]), mark[3])
    return keys_of(found) if mark[1] == "keys" else methods_of(found)


def keys_of(args_type: type) -> str:
    """Return the keys of a dataclass of dataclasses."""
    groups = (hint for hint in get_type_hints(args_type).values() if is_dataclass(hint))
    return "\n\n".join(f"**{summary(group)}**\n\n{table(group)}" for group in groups)


def methods_of(specs: Mapping[str, Any]) -> str:
    """Return each method with its own keys and the shared ones that it sets."""
    parts = []
    for name, spec in specs.items():
        defaults = ", ".join(f"`{key}: {value}`" for key, value in spec.defaults.items())
        parts.append(f"#### {name}\n\n{summary(spec.config)}.{f' It sets {defaults}.' if defaults else ''}")
        parts.append(table(spec.config) if fields(spec.config) else "No keys of its own.")
    return "\n\n".join(parts)


def summary(group: type) -> str:
    """Return the first line of a docstring, without its full stop."""
    return (group.__doc__ or "").strip().splitlines()[0].rstrip(".")


def table(group: type) -> str:
    """Return keys, defaults and help of one dataclass."""
    lines = ["| key | default | |", "|---|---|---|"]
    for item in fields(group):
        default = "" if item.default is MISSING or item.default in (None, "") else f"`{item.default}`"
        text = item.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{item.name}` | {default} | {text} |")
    return "\n".join(lines)
