"""The page itself: one HTML file with its style and script inside, and the data beside it."""

import base64
import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpssl_hf.files.atomic import replace_file

PAGE, DATA = "index.html", "data.js"
TEMPLATES = files("tpssl_hf.tasks.review").joinpath("templates")
SCRIPTS = ("state.js", "view.js", "keys.js")  # one after the other, in one scope


def write_page(folder: Path, data: dict[str, Any]) -> Path:
    """Write ``data.js`` and ``index.html``, in this order; returns the latter's path."""
    replace_file(folder / DATA, as_script(data).encode("ascii"))
    replace_file(folder / PAGE, page().encode())
    return folder / PAGE


def as_script(data: dict[str, Any]) -> str:
    """Return a script that sets ``window.REVIEW``: ASCII, and without a character that could end a script."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"window.REVIEW = {text.replace('<', chr(92) + 'u003c').replace('>', chr(92) + 'u003e')};\n"


def page() -> str:
    """Return the page. It may load images, ``data.js`` and its own script, and nothing else (its content policy)."""
    script = '"use strict";\n' + "".join(_template(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' file: 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": _template("style.css"), "SCRIPT": script}
    text = _template(PAGE)
    for name, part in parts.items():
        text = text.replace(f"{{{{{name}}}}}", part)
    return text


def _template(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")
