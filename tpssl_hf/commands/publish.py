"""Publish a finished run on the Hugging Face Hub: weights, processor, keys, results, curves and a model card.

Also the demo as a Space, with models that are published already, and the metrics' modules.

    tpssl-hf publish outputs/digits --repo me/digits --license apache-2.0
    tpssl-hf publish outputs/mine --repo me/mine --private --verdict outputs/mine_verdict
    tpssl-hf publish outputs/mine --repo me/mine --dry_run look_at_it_first
    tpssl-hf publish outputs/mine --repo me/mine --onnx  # and onnx/model.onnx, for onnxruntime and browsers
    tpssl-hf publish --space spaces/demo --demo_config my_demo.yaml --repo me/demo
    tpssl-hf publish --metric tpssl_hf/metrics/tpssl_classification --repo me/tpssl_classification
    python recipes/publish.py outputs/mine --repo me/mine  # the same without installing

Everything goes in one commit, so that whoever loads the model gets the old one or the new one, never a mix. A card
needs to know the base weights, the data set, the license and the seed, and is refused without them. Log in before,
with `hf auth login` or HF_TOKEN; a token is never given here. If the Hub is down or says no, the run stays as it is,
and the command to push it again is printed.

Keys: defaults < --config file < command line; --help lists them.
"""

import sys
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import parse_args
from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import ONLY_OF_RUNS, PublishArgs, PublishConfig, PublishRunConfig
from tpssl_hf.hub.metric_modules import publish_metric
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.spaces import DEMO_YAML, publish_space


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish what the command line names; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and not given[0].startswith("-"):
        given = ["--run", *given]
    _publish(parse_args(PublishArgs, given, description=__doc__ or ""))
    return 0


def publish(run: str | PathLike[str], repo: str, **keys: Any) -> str:
    """Publish a finished run on the Hugging Face Hub, in one commit.

    Args:
        run: its folder, the ``output_dir`` of the training.
        repo: ``owner/name``; made if it is missing.
        **keys: every other key of ``tpssl-hf publish``, such as ``license``, ``private`` or ``dry_run``.

    Returns:
        Address of the commit or pull request, or the folder of a dry run.

    Raises:
        PushError: if the Hub did not take it, with the reason and the command to push again.
        InputError: for an unknown key, and for a run that may not be published as it is; then nothing was sent.
    """
    return _publish(parse_args(PublishArgs, {"run": fspath(run), "repo": repo, **keys}))


def _publish(args: PublishArgs) -> str:
    """Publish the one thing that is named."""
    target = args.target
    _check(target, args.publish)
    if target.space:
        folder = Path(target.space)
        return publish_space(folder, Path(target.demo_config or folder / DEMO_YAML), target.repo, args.publish)
    if target.metric:
        return publish_metric(Path(target.metric), target.repo, args.publish)
    return publish_run(Path(target.run), target.repo, args.publish)


def _check(target: PublishRunConfig, choices: PublishConfig) -> None:
    """Refuse anything but one thing to publish, with the keys that belong to it."""
    given = [name for name in ("run", "space", "metric") if getattr(target, name)]
    if not given:
        raise InputError(
            "no run is given; name the folder of a finished one, `tpssl-hf publish FOLDER`, or a `--space` or a "
            "`--metric`."
        )
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} are given; each has a repository of its own, so publish one at a time."
        )
    if target.demo_config and not target.space:
        raise InputError("demo_config is given without `--space FOLDER`, the demo it belongs to; add it.")
    if not target.repo:
        raise InputError("no repository is given; add `--repo owner/name`, e.g. `--repo me/my-model`.")
    unused = [name for name in ONLY_OF_RUNS if getattr(choices, name) not in (None, False)]
    if unused and not target.run:
        raise InputError(f"{unused[0]} is for the card of a run, and says nothing of a {given[0]}; leave it out.")
