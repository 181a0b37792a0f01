"""Put files into a repository of the Hub in one commit, whatever the network does; a failure becomes a sentence."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import Package, write_package
from tpssl_hf.hub.redaction import secrets, without_secrets
from tpssl_hf.hub.retry import Retry, limited, reason_of
from tpssl_hf.hub.run_record import HUB_ID

BRANCH = re.compile(r"[\w.\-]+(/[\w.\-]+)*")


class PushError(InputError):
    """A push that did not succeed. Nothing is lost, and the message holds the command that pushes again."""


@dataclass(frozen=True)
class Delivery:
    """What is pushed where.

    Attributes:
        repo: Hub id ``owner/name``; made if it is missing.
        files: by path in the repository.
        replaced: whether a file of the repository is ours to delete where ``files`` lacks it.
        message: subject of the commit, unless the user gives one.
        again: what to say after a failure: that all is well here, and the command that pushes again.
        kind: ``model`` or ``space``.
        sdk: what a Space runs on; None for a model.
    """

    repo: str
    files: Package
    replaced: Callable[[str], bool]
    message: str
    again: str
    kind: str = "model"
    sdk: str | None = None


def check_target(repo: str, choices: PublishConfig, *, name: str = "repo", revision: str = "revision") -> None:
    """Check what can be known of a repository's name and the other choices without asking the Hub.

    Args:
        repo: Hub id.
        choices: how to publish.
        name: of the setting that gives ``repo``.
        revision: of the setting that gives the branch.

    Raises:
        InputError: for an id that is not ``owner/name``, a branch that cannot be one, or choices at odds.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(
            f"{name} {repo!r} is not a Hub id; give `owner/name`, e.g. `--{name} me/my-model`."
        ) from error
    if not HUB_ID.fullmatch(repo):
        raise InputError(f"{name} {repo!r} names no owner; give `owner/name`, e.g. `--{name} me/my-model`.")
    if choices.revision is not None and not BRANCH.fullmatch(choices.revision):
        raise InputError(f"{revision} {choices.revision!r} is no branch's name; e.g. `--{revision} second-try`.")
    if choices.create_pr and choices.revision not in (None, "main"):
        raise InputError("a pull request is always made against main; give `--create_pr` or `--revision`, not both.")
    if choices.timeout <= 0:
        raise InputError(f"timeout {choices.timeout} is not a number of seconds above 0; give one, e.g. 60.")


def deliver(
    delivery: Delivery, choices: PublishConfig, *, api: HfApi | None = None, say: Callable[[str], None] = print
) -> str:
    """Push files in one commit, or write them to the folder of a dry run.

    Args:
        delivery: what goes where.
        choices: how to publish.
        api: client of the Hub; the usual one, with the token of ``hf auth login`` or HF_TOKEN, when not given.
        say: where progress goes.

    Returns:
        Address of the commit or pull request, or the folder of a dry run.

    Raises:
        PushError: if the Hub did not take it, with the reason and how to push again.
        InputError: if the folder of a dry run cannot be written.
    """
    if choices.dry_run:
        write_package(delivery.files, Path(choices.dry_run))
        say(f"dry run: {', '.join(sorted(delivery.files))} in {choices.dry_run}; nothing was pushed")
        return choices.dry_run
    known = known_secrets(api)
    address, repo = "", delivery.repo

    def tell(text: str) -> None:
        say(without_secrets(text, known))

    try:
        with limited(choices.timeout):
            client = api or HfApi()
            address = _push(client, delivery, choices, known, tell)
            if choices.collection:
                item: dict[str, Any] = {"item_id": repo, "item_type": delivery.kind, "exists_ok": True}
                slug = choices.collection
                Retry(tell)(lambda: client.add_collection_item(slug, **item))
    except Exception as error:  # whatever the client raises must not end a run with a traceback that shows requests
        reason = without_secrets(reason_of(error, repo), known)
    else:
        tell(f"published: {address}")
        return address
    state = f"published as {address}, but not added to the collection" if address else "not published"
    raise PushError(f"{state}: {reason} {without_secrets(delivery.again, known)}")


def known_secrets(api: HfApi | None) -> list[str]:
    """Return every token this process can know, that of ``api`` among them."""
    return secrets(api.token if api is not None and isinstance(api.token, str) else None)


@contextmanager
def discreet(known: list[str]) -> Iterator[None]:
    """Take tokens out of the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise type(error)(without_secrets(str(error), known)) from None


def _push(api: HfApi, delivery: Delivery, choices: PublishConfig, known: list[str], say: Callable[[str], None]) -> str:
    """Make the repository if need be, commit all files at once, and return the address of the commit."""
    repo, kind, files, retry = delivery.repo, delivery.kind, delivery.files, Retry(say)
    private = True if choices.private else None
    retry(lambda: api.create_repo(repo, repo_type=kind, space_sdk=delivery.sdk, private=private, exist_ok=True))
    if choices.private and not retry(lambda: api.repo_info(repo, repo_type=kind)).private:
        raise InputError(already_public(repo, "private"))
    branch = choices.revision
    if branch and branch != "main" and not branch.startswith("refs/"):
        retry(lambda: api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True))
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    say(f"pushing {len(files)} files, {size / 1e6:.1f} MB, to {repo}")

    def commit() -> str:
        before = api.repo_info(repo, repo_type=kind, revision=branch).sha
        present = api.list_repo_files(repo, repo_type=kind, revision=before)
        stale = sorted(name for name in present if delivery.replaced(name) and name not in files)
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=without_secrets(choices.message or delivery.message, known),
            repo_type=kind,
            revision=branch,
            create_pr=choices.create_pr,
            parent_commit=before,  # who pushed meanwhile may have left what has to go: it is looked at again
        )
        return str(done.pr_url or done.commit_url)

    # A commit whose answer was lost is found again and adds nothing; a pull request would be opened twice.
    return commit() if choices.create_pr else retry(commit)


def already_public(repo: str, flag: str) -> str:
    """Say that a repository is public although ``flag`` asks for a private one."""
    return (
        f"{repo} is there already and public, which `--{flag}` does not change; make it private in its settings, "
        f"leave `--{flag}` out, or choose another name."
    )
