"""Keep access tokens and this machine's paths out of everything that is published or printed."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

HIDDEN = "<hidden>"
SECRET_NAMES = ("TOKEN", "API_KEY", "SECRET", "PASSWORD")
SHORTEST_SECRET = 8
NAMES_OF_CLASSES = ("class_names", "label_names", "id2label", "label2id")  # may look like paths, and must stay

_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{16,}")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_PATH = re.compile(r"(?<![\w:/.\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"`,;:()\[\]|]+[/\\]+)*([^\s/\\'\"`,;:()\[\]|]+)")


def secrets(*more: str | None) -> list[str]:
    """Return every access token this process can know: of the environment, of the Hub's login, and ``more``.

    Args:
        *more: tokens that are known otherwise.
    """
    from huggingface_hub import get_token

    environment = [value for name, value in os.environ.items() if name.upper().endswith(SECRET_NAMES)]
    found = {value.strip() for value in (*environment, get_token(), *more) if value}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True)


def without_secrets(text: str, known: Iterable[str]) -> str:
    """Return ``text`` without the ``known`` tokens, without what looks like one, and without credentials in URLs."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    return _CREDENTIALS.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, text))


def without_paths(text: str) -> str:
    """Return ``text`` with the last part only of every absolute path."""
    for folder in (Path.cwd(), Path.home()):
        if folder != folder.parent:
            text = text.replace(f"{folder}{os.sep}", "")
    return _PATH.sub(r"\1", text)


def publishable(value: Any, known: Iterable[str]) -> Any:
    """Return JSON data as it may be published: no tokens, and of absolute paths the last part only.

    Args:
        value: anything JSON can hold; a string that is an absolute path as a whole may hold blanks.
        known: tokens, see :func:`secrets`.
    """
    known = list(known)
    if isinstance(value, dict):
        return {
            publishable(name, known): entry if name in NAMES_OF_CLASSES else publishable(entry, known)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [publishable(entry, known) for entry in value]
    if not isinstance(value, str):
        return value
    text = without_secrets(value, known)
    for kind in (PurePosixPath, PureWindowsPath):
        if "\n" not in text and "," not in text and kind(text).is_absolute():
            return kind(text).name or text
    return without_paths(text)
