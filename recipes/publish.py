"""Publish a finished run on the Hugging Face Hub: weights, processor, settings, results, curves and a model card.

Also the demo as a Space, with models that are published already, and the metrics' modules.

    python recipes/publish.py outputs/digits_byol --repo me/digits-byol --license apache-2.0
    python recipes/publish.py outputs/mine --repo me/mine --private --verdict outputs/mine_verdict
    python recipes/publish.py outputs/mine --repo me/mine --dry_run look_at_it_first
    python recipes/publish.py outputs/mine --repo me/mine --onnx  # and onnx/model.onnx, for onnxruntime and browsers
    python recipes/publish.py --space spaces/demo --demo_config my_demo.yaml --repo me/demo
    python recipes/publish.py --metric tpssl_hf/metrics/tpssl_classification --repo me/tpssl_classification

Everything goes in one commit, so that whoever loads the model gets the old one or the new one, never a mix. A card
needs to know the base weights, the data set, the license and the seed, and is refused without them. Log in before,
with `hf auth login` or HF_TOKEN; a token is never given here. If the Hub is down or says no, the run stays as it is,
and the command to push it again is printed.

Every setting is one flat key: defaults < --config file < command line; --help lists them.
"""

import sys
from pathlib import Path

from tpssl_hf.config.parser import parse_config, take
from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import ONLY_OF_RUNS, PublishConfig, PublishRunConfig
from tpssl_hf.hub.metric_modules import publish_metric
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.spaces import DEMO_YAML, publish_space
from tpssl_hf.process import run_cli


def main() -> int:
    """Settle what goes where, and publish it; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    settings = parse_config([PublishRunConfig, PublishConfig], arguments, description=__doc__ or "")
    target = take(PublishRunConfig, settings)
    given = [name for name in ("run", "space", "metric") if getattr(target, name)]
    if not given:
        raise InputError(
            "no run is given; name the folder of a finished one, python recipes/publish.py FOLDER, or a `--space` or "
            "a `--metric`."
        )
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} are given; each has a repository of its own, so publish one at a time."
        )
    if target.demo_config and not target.space:
        raise InputError("demo_config is given without `--space FOLDER`, the demo it belongs to; add it.")
    if not target.repo:
        raise InputError("no repository is given; add `--repo owner/name`, e.g. `--repo me/my-model`.")
    choices = take(PublishConfig, settings)
    unused = [name for name in ONLY_OF_RUNS if getattr(choices, name) not in (None, False)]
    if unused and not target.run:
        raise InputError(f"{unused[0]} is for the card of a run, and says nothing of a {given[0]}; leave it out.")
    if target.space:
        folder = Path(target.space)
        publish_space(folder, Path(target.demo_config or folder / DEMO_YAML), target.repo, choices)
    elif target.metric:
        publish_metric(Path(target.metric), target.repo, choices)
    else:
        publish_run(Path(target.run), target.repo, choices)
    return 0


if __name__ == "__main__":
    run_cli(main)
