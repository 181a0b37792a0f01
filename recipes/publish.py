"""Publish a finished run on the Hugging Face Hub: weights, processor, settings, results, curves and a model card.

    python recipes/publish.py outputs/digits_byol --repo me/digits-byol --license apache-2.0
    python recipes/publish.py outputs/mine --repo me/mine --private --verdict outputs/mine_verdict
    python recipes/publish.py outputs/mine --repo me/mine --dry_run look_at_it_first

Everything goes in one commit, so that whoever loads the model gets the old one or the new one, never a mix. A card
needs to know the base weights, the data set, the licence and the seed, and is refused without them. Log in before,
with `hf auth login` or HF_TOKEN; a token is never given here. If the Hub is down or says no, the run stays as it is,
and the command to push it again is printed.

Every setting is one flat key: defaults < --config file < command line; --help lists them.
"""

import sys
from pathlib import Path

from tpssl_hf.config import parse_config, take
from tpssl_hf.errors import InputError
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub_config import PublishConfig, PublishRunConfig
from tpssl_hf.runtime import leave


def main() -> int:
    """Settle what goes where, and publish it; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    settings = parse_config([PublishRunConfig, PublishConfig], arguments, description=__doc__ or "")
    target = take(PublishRunConfig, settings)
    if not target.run:
        raise InputError("no run is given; name the folder of a finished one: python recipes/publish.py FOLDER.")
    if not target.repo:
        raise InputError("no repository is given; add `--repo owner/name`, e.g. `--repo me/my-model`.")
    publish_run(Path(target.run), target.repo, take(PublishConfig, settings))
    return 0


if __name__ == "__main__":
    leave(main)
