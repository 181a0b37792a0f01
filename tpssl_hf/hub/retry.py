"""What goes wrong between here and the Hub: tried again while it may pass, and then said in a sentence."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from tpssl_hf.errors import InputError

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT, PATIENCE = 5, 1.0, 30.0, 900.0
PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


class Retry:
    """Calls something again after failures that pass, ever more patiently, until attempts or patience run out.

    Args:
        say: where it is told that there is another attempt.
        patience: seconds over all calls after which there is no other attempt.
    """

    def __init__(self, say: Callable[[str], None], patience: float = PATIENCE) -> None:
        self.began, self.say, self.patience = time.monotonic(), say, patience

    def __call__(self, call: Callable[[], Result]) -> Result:
        """Return what ``call`` returns, in the end."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except Exception as error:
                wait = max(_asked_to_wait(error), min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))
                late = time.monotonic() - self.began + wait > self.patience
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


def reason_of(error: BaseException, repo: str) -> str:
    """Say in a sentence why a push failed and how to mend it, without addresses or headers of requests."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so the Hub was not asked; unset it."
    status, owner = 401 if isinstance(error, LocalTokenNotFoundError) else _status(error), repo.partition("/")[0]
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
def limited(seconds: float) -> Iterator[None]:
    """Give every request of the Hub's client a time limit, which it has not by itself."""
    from huggingface_hub.utils import _http

    usual = _http._GLOBAL_CLIENT_FACTORY

    def limited_client() -> Any:
        client = usual()
        client.timeout = seconds
        return client

    _http.set_client_factory(limited_client)
    try:
        yield
    finally:
        _http.set_client_factory(usual)
