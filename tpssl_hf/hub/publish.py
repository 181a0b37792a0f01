"""Push a finished run to the Hub in one commit; a failed push loses nothing and says how to push again."""

import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from huggingface_hub import HfApi

from tpssl_hf.config.shared import PushConfig
from tpssl_hf.hub.commit import Delivery, check_target, deliver, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import OWN_FILES, Package, package
from tpssl_hf.hub.run_record import gather, verdict_folder


def publish_run(
    run_dir: Path,
    repo: str,
    choices: PublishConfig | None = None,
    *,
    api: HfApi | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Publish weights, processor, configuration, results, curves and card of a finished run as one commit.

    Args:
        run_dir: folder of a run of pretrain, classify or segment.
        repo: Hub id ``owner/name``; made if it is missing.
        choices: how to publish, and what a card needs that the run does not know.
        api: client of the Hub; the usual one, with the token of ``hf auth login`` or HF_TOKEN, when not given.
        say: where progress goes.

    Returns:
        Address of the commit or pull request, or the folder of a dry run.

    Raises:
        PushError: if the Hub did not take it, with the reason and the command to push again.
        InputError: if the run may not be published as it is; then nothing was sent.
    """
    choices = choices or PublishConfig()
    known = known_secrets(api)
    with discreet(known):
        files = _prepared(run_dir, repo, choices, known)
    delivery = Delivery(
        repo,
        files,
        replaced=OWN_FILES.__contains__,
        message="Publish a run of tpssl_hf",
        again=how_to_push_again(run_dir, repo, choices),
    )
    return deliver(delivery, choices, api=api, say=say)


def how_to_push_again(run_dir: Path, repo: str, choices: PublishConfig) -> str:
    """Return what to say after a failed push."""
    return f"The run is whole in {run_dir}; push it again with\n  {push_command([str(run_dir)], repo, choices)}"


def push_command(what: list[str], repo: str, choices: PublishConfig) -> str:
    """Return the command line that publishes something, named by its arguments, with these choices."""
    words = ["tpssl-hf", "publish", *what, "--repo", repo]
    for item in fields(choices):
        value = getattr(choices, item.name)
        if value != item.default:
            words += [f"--{item.name}"] if value is True else [f"--{item.name}", str(value)]
    return shlex.join(words)


def _prepared(run_dir: Path, repo: str, choices: PublishConfig, known: list[str]) -> Package:
    """Check everything that can be checked without the Hub, and collect the files."""
    check_target(repo, choices)
    evidence = gather(run_dir, choices)
    for item in fields(PushConfig):  # whoever makes this run again pushes it nowhere
        evidence.results["config"].pop(item.name, None)
    location = verdict_folder(run_dir, choices.verdict)
    return package(evidence, repo, verdict_folder=location, known_secrets=known, onnx=choices.onnx)
