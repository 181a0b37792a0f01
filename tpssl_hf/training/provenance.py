"""Provenance of a result: versions, the commit of the source, and what was run."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PAPER = "arXiv:2205.03001"
PACKAGES = ("tpssl-hf", "torch", "timm", "transformers", "datasets", "accelerate", "huggingface-hub", "safetensors")


def run_facts(**facts: Any) -> dict[str, Any]:
    """Return the content of ``results.json``: what the recipe knows, the versions it ran on, the source's commit."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**facts, "versions": {"python": platform.python_version(), **found}, "commit": _commit()}


def _commit() -> str | None:
    """Commit of the source tree this package runs from, None where it is installed, be it in another tree."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
