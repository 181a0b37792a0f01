"""Make the paper's tables and figures: print or run the commands behind each cell, and set ours beside the printed.

    python recipes/reproduce.py --table V --list
    python recipes/reproduce.py --table V --scale small

The same as `tpssl-hf reproduce`; --help says more.
"""

from tpssl_hf.commands.reproduce import main
from tpssl_hf.process import run_cli

if __name__ == "__main__":
    run_cli(main)
