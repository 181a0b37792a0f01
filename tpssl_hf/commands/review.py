"""Look at the predictions of a classifier in a browser, correct them, and get the labels back.

    tpssl-hf review outputs/labels    # the output_dir of a finished `tpssl-hf predict`

The folder then holds review/index.html, which any browser opens, without a server or a network: predictions with the
least confident first, by class or with near-duplicates together, and the labels of the finetuning that may be wrong,
all by keys. The page gives labels.csv, which `tpssl-hf classify --labels` reads. docs/review.md says more.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
from collections.abc import Sequence

from tpssl_hf.config.parser import parse_args, words_as_keys
from tpssl_hf.tasks.review import run
from tpssl_hf.tasks.review.config import ReviewArgs


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the page and say where it is; returns the exit code, 130 after Ctrl-C."""
    line = sys.argv[1:] if arguments is None else arguments
    given = words_as_keys(line, ("predictions",), "the folder of predictions")
    config = parse_args(ReviewArgs, given, description=__doc__ or "").review
    try:
        result = run.review(config)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command continues with the thumbnails that are missing\n")
        return 130
    suspects = "" if result.suspects is None else f", {result.suspects:,} given labels that may be wrong"
    differ = f" ({result.disagreeing:,} with different given labels)" if result.disagreeing else ""
    alike = f", {result.groups:,} groups of near-duplicates{differ}" if result.groups else ""
    print(f"{result.images:,} predictions{suspects}{alike}: {result.page}")
    return 0
