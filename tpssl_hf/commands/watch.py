"""Look at a run while it runs: how far it is, how long the rest takes, its last losses, its health.

    tpssl-hf watch outputs/mine          # until the run is finished, or Ctrl-C, which leaves the run alone
    tpssl-hf watch outputs/mine --once

Only what the run has written to its folder is read, so that it may run in another process, or on another machine that
shares the folder.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tpssl_hf.config.parser import parse_args, words_as_keys
from tpssl_hf.errors import InputError
from tpssl_hf.training.watch import WatchArgs, is_finished, look

CLEAR = "\033[H\033[J"  # of a terminal: to the first line, and erase what is below


def main(arguments: Sequence[str] | None = None) -> int:
    """Look again and again until the run is finished; returns the exit code."""
    line = sys.argv[1:] if arguments is None else arguments
    given = words_as_keys(line, ("run",), "the folder of the run")
    config = parse_args(WatchArgs, given, description=__doc__ or "").watch
    if not config.run:
        raise InputError("run is missing; give the output_dir of a run: `tpssl-hf watch outputs/mine`.")
    if config.every <= 0:
        raise InputError(f"every is {config.every:g}; give a number of seconds above 0.")
    folder = Path(config.run).expanduser()
    try:
        while True:
            over = config.once or is_finished(folder)
            print(f"{CLEAR if sys.stdout.isatty() else ''}{look(folder)}", flush=True)
            if over:
                return 0
            time.sleep(config.every)
    except KeyboardInterrupt:
        return 0
