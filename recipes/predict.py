"""Apply a finished model to images: labels, masks or features.

    python recipes/predict.py outputs/digits_fixmatch path/to/images
    python recipes/predict.py embed outputs/mine path/to/images

The same as `tpssl-hf predict` and `tpssl-hf embed`.
"""

from tpssl_hf.process import prepare_process, run_cli

prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys

from tpssl_hf.commands import embed, predict


def main() -> int:
    """Run the command that the first word names; returns the exit code."""
    return embed.main(sys.argv[2:]) if sys.argv[1:2] == ["embed"] else predict.main(sys.argv[1:])


if __name__ == "__main__":
    run_cli(main)
