"""Files from the Hub, as they are there; or in a few words why not, which hold nothing of what was sent to it."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpssl_hf.errors import InputError
from tpssl_hf.process import NO_ROOM


class NotDeliveredError(InputError):
    """The Hub did not deliver what was asked of it; the message says why in a few words."""


def hub_snapshot(repository: str, files: Sequence[str]) -> Path:
    """Download those of ``files`` that a repository has, all of one commit, and return their folder.

    A file whose content is not what the Hub names it by, because something else answered in its place or a disk lost
    it since, is removed, so that the next start downloads it again.

    Args:
        repository: Hub id with an optional ``@revision``.
        files: their names.

    Raises:
        NotDeliveredError: saying why.
    """
    from huggingface_hub import snapshot_download

    repo_id, _, revision = repository.partition("@")
    try:
        folder = Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # the client lets through what its HTTP library raises, whichever that is
        raise NotDeliveredError(why_not_delivered(error)) from None  # its own words may repeat a token
    for path in (folder / name for name in files if (folder / name).is_file()):
        if _is_damaged(path):
            path.resolve().unlink()
            path.unlink()
            raise NotDeliveredError(f"{path.name} came damaged, and was removed; run the same command again")
    return folder


def why_not_delivered(error: BaseException) -> str:
    """Say why a download failed.

    Of an answer of the Hub only the status is told: its text may repeat what it was sent, a token among it.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return f"{cause.strerror}; make room in {constants.HF_HUB_CACHE}, or set HF_HOME to another folder"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return f"{type(cause).__name__}, status {cause.response.status_code}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _is_damaged(path: Path) -> bool:
    """Whether a file of the client's cache is not what its name says, where that is a digest of the content."""
    name = path.resolve().name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", name):
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() != name
    if re.fullmatch("[0-9a-f]{40}", name):  # as git names it
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() != name
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
