"""What ``tpssl-hf COMMAND --help`` says, kept as text, so that asking costs no import of torch.

``python tests/help_texts.py`` writes the texts again after a key has changed; a test compares them.
"""

import importlib
import io
import os
import sys
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from tpssl_hf.cli import COMMANDS, HELP

WITHOUT = "demo"  # its keys are not part of the package
WIDTH = "100"  # of the lines, in place of the terminal's


def made(command: str) -> str:
    """Return what the parser of a command says."""
    said = io.StringIO()
    line = patch.object(sys, "argv", [f"tpssl-hf {command}"])
    width = patch.dict(os.environ, {"COLUMNS": WIDTH})
    with line, width, redirect_stdout(said), suppress(SystemExit):
        importlib.import_module(f"tpssl_hf.commands.{COMMANDS[command][0]}").main(["--help"])
    return said.getvalue()


def main() -> None:
    """Write the text of each command."""
    for command in COMMANDS:
        if command != WITHOUT:
            (HELP / f"{command}.txt").write_text(made(command), encoding="utf-8")


if __name__ == "__main__":
    main()
