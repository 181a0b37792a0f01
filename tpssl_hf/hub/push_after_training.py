"""Publish a run once it is finished; whatever would stop that is found out before training, not hours later."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

from tpssl_hf.config.parser import flat
from tpssl_hf.config.shared import ModelConfig
from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import PushError, already_public, check_target, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import how_to_push_again, publish_run
from tpssl_hf.hub.redaction import without_secrets
from tpssl_hf.hub.retry import Retry, limited, reason_of
from tpssl_hf.hub.run_record import gather, start_and_license
from tpssl_hf.models.backbone import WeightsSource, load_backbone
from tpssl_hf.tasks.pretrain.config import PretrainArgs
from tpssl_hf.training.run_dir import RESULTS

if TYPE_CHECKING:  # their learners load transformers and scikit-learn
    from tpssl_hf.tasks.classify.config import ClassifyArgs
    from tpssl_hf.tasks.segment.config import SegmentArgs

Args: TypeAlias = "PretrainArgs | ClassifyArgs | SegmentArgs"
EARLY_PATIENCE = 60.0  # seconds the Hub may take to say who we are, before anything is trained
_KEYS = re.compile(r"(?:^|(?<=--))(?=(?:license|base_model|base_note)\b)")  # of PublishConfig, in its sentences


@dataclass(frozen=True)
class Push:
    """What is published when training is done.

    Attributes:
        run_dir: folder of the run.
        repo: Hub id.
        choices: how to publish, and what a card needs that the run does not know.
    """

    run_dir: Path
    repo: str
    choices: PublishConfig


def validate_push(args: Args, accelerator: Accelerator) -> Push | None:
    """Check before training that the run can be published after it; without ``push_to_hub`` nothing is asked.

    Only the main process talks to the Hub; the others wait for what it finds out.

    Args:
        args: of the run.
        accelerator: which process of how many this is.

    Returns:
        What to give to :func:`push_finished`; None on other processes, and where nothing is to be published.

    Raises:
        InputError: on the main process, if the run could not be published; other processes exit with code 2.
    """
    wanted, say = args.push, accelerator.print
    if not wanted.push_to_hub:
        if wanted.hub_model_id:
            say(f"note: nothing will be pushed to {wanted.hub_model_id}; that takes `--push_to_hub`")
        return None
    push, refusal = None, None
    if accelerator.is_main_process:
        try:
            push = _settled(args, say)
        except InputError as error:
            refusal = error
    refused = broadcast_object_list([refusal is not None])[0]
    if refusal is not None:
        raise refusal
    if refused:
        sys.exit(2)
    return push


def push_finished(push: Push | None, accelerator: Accelerator) -> int:
    """Publish the finished run, if that was asked for; returns the exit code 0.

    Raises:
        PushError: if it was not published. The run is whole, and the message holds the command to push it again; so
            does the recipe itself, started again with the same settings, and does not train again.
    """
    if push is None:
        return 0
    try:
        publish_run(push.run_dir, push.repo, push.choices, say=accelerator.print)
    except PushError:
        raise
    except InputError as error:  # the run itself lacks something; it is not lost for that
        again = how_to_push_again(push.run_dir, push.repo, push.choices)
        raise PushError(f"not published: {error} {again}") from None
    return 0


def _settled(args: Args, say: Callable[..., None]) -> Push:
    wanted, folder = args.push, Path(args.run.output_dir)
    if not wanted.hub_model_id:
        raise InputError("push_to_hub is given, but not where to; add `--hub_model_id owner/name`.")
    choices = PublishConfig(
        private=wanted.hub_private_repo,
        revision=wanted.hub_revision,
        license=wanted.hub_license,
        base_model=wanted.hub_base_model,
        base_note=wanted.hub_base_note,
    )
    if not isinstance(args, PretrainArgs) and args.task.label_seeds:  # first: no score is known
        folder = folder / f"label_seed_{args.task.label_seeds[0]}"
    repo, known = wanted.hub_model_id, known_secrets(None)
    with discreet(known):
        check_target(repo, choices, name="hub_model_id", revision="hub_revision")
        _check_access(repo, choices, say, known)
        _check_card(folder, args, choices)
    return Push(folder, repo, choices)


def _check_access(repo: str, choices: PublishConfig, say: Callable[..., None], known: list[str]) -> None:
    """Ask the Hub who we are and whether we may write there, and no more than that."""
    later = "Mend that, or leave `--push_to_hub` out and publish later with `tpssl-hf publish`."
    public = False
    try:
        with limited(min(choices.timeout, EARLY_PATIENCE / 4)):
            client = HfApi()
            if is_offline_mode():  # said first: without a token the client would complain of that instead
                raise OfflineModeIsEnabled
            retry = Retry(lambda text: say(without_secrets(text, known)), EARLY_PATIENCE)
            person = retry(client.whoami)
            if choices.private:
                public = retry(lambda: _is_public(client, repo))
    except Exception as error:  # whatever the client raises must not end a run with a traceback that shows requests
        reason = reason_of(error, repo)
        raise InputError(f"this run could not be pushed when it is done: {reason} {later}") from None
    if refusal := _may_not_write(person, repo):
        raise InputError(f"this run could not be pushed when it is done: {refusal} {later}")
    if public:
        raise InputError(already_public(repo, "hub_private_repo"))


def _is_public(client: HfApi, repo: str) -> bool:
    try:
        return not client.model_info(repo).private
    except RepositoryNotFoundError:
        return False


def _may_not_write(person: Mapping[str, Any], repo: str) -> str | None:
    """Say why a token may not write to a repository, as far as the Hub's answer tells; None if it may.

    What a fine-grained token may do is told only in terms that are not documented, so that the push has to show it.
    """
    role = ((person.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "fineGrained":
        return None
    if role == "read":
        return "your token may only read; make one with the role `write`, and log in with it by `hf auth login`."
    owner, name = repo.partition("/")[0], person.get("name")
    organizations = {entry.get("name"): entry.get("roleInOrg") for entry in person.get("orgs") or []}
    if owner != name and organizations.get(owner, "read") == "read":
        return f"the Hub knows you as {name}, who may not write below {owner}; give `--hub_model_id {name}/...`."
    return None


def _check_card(folder: Path, args: Args, choices: PublishConfig) -> None:
    """Refuse what a card will lack: base weights and license, as far as they are known before training."""
    try:
        if (folder / RESULTS).is_file():  # finished before, so that all is known
            gather(folder, choices)
        else:
            origin = _origin(args.model)
            begun = {"init": origin.as_dict(), "config": flat(args)}
            start_and_license(begun, choices, "this run")
    except InputError as error:
        raise InputError(_KEYS.sub("hub_", str(error))) from None


def _origin(model: ModelConfig) -> WeightsSource:
    """Return where the backbone's weights come from; loading them is the only way to be told without fail."""
    if model.init == "random":
        return WeightsSource("random", model.backbone)
    return load_backbone(model.backbone, init=model.init)[1]
