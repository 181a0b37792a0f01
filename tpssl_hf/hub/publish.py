"""Push a finished run to the Hub in one commit; a failed push loses nothing and says how to push again."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils._validators import validate_repo_id

from tpssl_hf.errors import InputError
from tpssl_hf.hub.discretion import secrets, without_secrets
from tpssl_hf.hub.evidence import HUB_ID, VERDICT, gather
from tpssl_hf.hub.package import OWN_FILES, Package, package, write_package
from tpssl_hf.hub_config import PublishConfig

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT, PATIENCE = 5, 1.0, 30.0, 900.0
PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


class PushError(InputError):
    """A push that did not succeed. The run is untouched, and the message holds the command that pushes it again."""


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
        run_dir: folder of a run of target_pretrain, ssl_classify or ssl_segment.
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
    token = api.token if api is not None and isinstance(api.token, str) else None
    known = secrets(token)
    try:
        files = _prepared(run_dir, repo, choices, known)
    except InputError as error:
        raise InputError(without_secrets(str(error), known)) from None
    if choices.dry_run:
        write_package(files, Path(choices.dry_run))
        say(f"dry run: {', '.join(sorted(files))} in {choices.dry_run}; nothing was pushed")
        return choices.dry_run
    say = _discreet(say, known)
    address = ""
    try:
        with _limited(choices.timeout):
            client = api or HfApi()
            address = _push(client, repo, files, choices, known, say)
            if choices.collection:
                slug = choices.collection
                _Retry(say)(lambda: client.add_collection_item(slug, item_id=repo, item_type="model", exists_ok=True))
    except Exception as error:  # whatever the client raises must not end a run with a traceback that shows requests
        reason = without_secrets(_reason(error, repo), known)
    else:
        say(f"published: {address}")
        return address
    state = f"published as {address}, but not added to the collection" if address else "not published"
    command = without_secrets(push_command(run_dir, repo, choices), known)
    raise PushError(f"{state}: {reason} The run is whole in {run_dir}; push it again with\n  {command}")


def _discreet(say: Callable[[str], None], known: list[str]) -> Callable[[str], None]:
    return lambda text: say(without_secrets(text, known))


def push_command(run_dir: Path, repo: str, choices: PublishConfig) -> str:
    """Return the command line that publishes a run with these choices."""
    words = ["python", "recipes/publish.py", str(run_dir), "--repo", repo]
    for item in fields(choices):
        value = getattr(choices, item.name)
        if value != item.default:
            words += [f"--{item.name}"] if value is True else [f"--{item.name}", str(value)]
    return shlex.join(words)


def _prepared(run_dir: Path, repo: str, choices: PublishConfig, known: list[str]) -> Package:
    """Check everything that can be checked without the Hub, and collect the files."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"repo {repo!r} is not a Hub id; give `owner/name`, e.g. `--repo me/my-model`.") from error
    if not HUB_ID.fullmatch(repo):
        raise InputError(f"repo {repo!r} names no owner; give `owner/name`, e.g. `--repo me/my-model`.")
    if choices.create_pr and choices.revision not in (None, "main"):
        raise InputError("a pull request is always made against main; give `--create_pr` or `--revision`, not both.")
    if choices.timeout <= 0:
        raise InputError(f"timeout {choices.timeout} is not a number of seconds above 0; give one, e.g. 60.")
    evidence = gather(run_dir, choices)
    places = [Path(choices.verdict)] if choices.verdict else [run_dir, run_dir / "verdict"]
    verdict_folder = next((place for place in places if (place / VERDICT).is_file()), None)
    return package(evidence, repo, verdict_folder=verdict_folder, known_secrets=known)


def _push(
    api: HfApi, repo: str, files: Package, choices: PublishConfig, known: list[str], say: Callable[[str], None]
) -> str:
    """Make the repository if need be, commit all files at once, and return the address of the commit."""
    retry = _Retry(say)
    retry(lambda: api.create_repo(repo, private=True if choices.private else None, exist_ok=True))
    if choices.private and not retry(lambda: api.model_info(repo)).private:
        raise InputError(
            f"{repo} is there already and public, which `--private` does not change; make it private in its settings, "
            "leave `--private` out, or choose another name."
        )
    branch = choices.revision
    if branch and branch != "main" and not branch.startswith("refs/"):
        retry(lambda: api.create_branch(repo, branch=branch, exist_ok=True))
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())
    say(f"pushing {len(files)} files, {size / 1e6:.1f} MB, to {repo}")

    def commit() -> str:
        present = api.list_repo_files(repo, revision=branch)
        stale = sorted((OWN_FILES - files.keys()) & set(present))
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=without_secrets(choices.message or "Publish a run of tpssl_hf", known),
            revision=branch,
            create_pr=choices.create_pr,
        )
        return str(done.pr_url or done.commit_url)

    # A commit whose answer was lost is found again and adds nothing; a pull request would be opened twice.
    return commit() if choices.create_pr else retry(commit)


class _Retry:
    """Calls something again after failures that pass, ever more patiently, until attempts or patience run out."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.began, self.say = time.monotonic(), say

    def __call__(self, call: Callable[[], Result]) -> Result:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:
                wait = max(_asked_to_wait(error), min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
                late = time.monotonic() - self.began + wait > PATIENCE
                if attempt == ATTEMPTS or late or not _passes(error):
                    raise
                self.say(f"the Hub did not answer as it should ({_kind(error)}); again in {wait:.0f} s")
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return int(cause.response.status_code)
    return None


def _is_connection(error: BaseException) -> bool:
    """Whether a request got no proper answer: no connection, a broken one, silence, or an answer that is no JSON."""
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}  # of whichever HTTP library
    return bool(kinds & {"TransportError", "JSONDecodeError", "ConnectionError"})


def _passes(error: BaseException) -> bool:
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    return status in PASSING if status is not None else _is_connection(error)


def _kind(error: BaseException) -> str:
    status = _status(error)
    return f"status {status}" if status is not None else type(error).__name__


def _asked_to_wait(error: BaseException) -> float:
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            asked = cause.response.headers.get("Retry-After", "")
            return min(float(asked), PATIENCE) if asked.isdecimal() else 0.0
    return 0.0


def _reason(error: BaseException, repo: str) -> str:
    """Say in a sentence why a push failed and how to mend it, without addresses or headers of requests."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so the Hub was not asked; unset it."
    status, owner = _status(error), repo.partition("/")[0]
    known = {
        401: "the Hub does not know you; log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
        403: f"your token may not write to {repo}; it needs the role `write`, and you must belong to {owner}; where "
        "you may only propose, add `--create_pr`.",
        404: f"the Hub does not know {repo}, or the branch or collection you named; check the names, and whether "
        "your token may see them.",
        413: "the Hub finds a file too large.",
        429: "the Hub has had too many requests of yours; wait some minutes.",
    }
    if status is not None:
        return known.get(
            status,
            f"the Hub answered with status {status}; its page https://status.huggingface.co "
            "says whether that is its trouble.",
        )
    if _is_connection(error):
        return f"the Hub could not be reached, or the connection broke ({type(error).__name__}); check the network."
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}."


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Give every request of the Hub's client a time limit, which it has not by itself."""
    from huggingface_hub.utils import _http

    usual = _http._GLOBAL_CLIENT_FACTORY

    def limited() -> Any:
        client = usual()
        client.timeout = seconds
        return client

    _http.set_client_factory(limited)
    try:
        yield
    finally:
        _http.set_client_factory(usual)
