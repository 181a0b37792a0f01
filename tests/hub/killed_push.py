"""A push in a process of its own, forked from one that has imported everything, so that it can be killed."""

from pathlib import Path

from huggingface_hub import HfApi, constants

from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run


def push(run: str, url: str, token: str) -> None:
    """Publish ``run`` as me/x on the Hub at ``url``."""
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    publish_run(Path(run), "me/x", PublishConfig(license="mit"), api=HfApi(url, token=token))
