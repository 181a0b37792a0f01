"""Start the web demo of ``spaces/demo``, which a checkout of the repository has and the package has not."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from tpssl_hf.errors import InputError

DEMO = Path(__file__).parents[2] / "spaces" / "demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the demo until it is stopped; returns the exit code.

    Raises:
        InputError: where the demo's files or gradio are missing, and as the demo's own command line does.
    """
    if not (DEMO / "app.py").is_file():
        raise InputError(
            "the demo's files are not part of the installed package; clone this package's repository and run "
            "`uv run --extra demo python spaces/demo/app.py` in it."
        )
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the demo needs gradio, which is not installed; add it with `pip install 'tpssl-hf[demo]'`.")
    sys.path.insert(0, str(DEMO))  # its modules find each other there
    return int(importlib.import_module("app").main(sys.argv[1:] if arguments is None else arguments))
