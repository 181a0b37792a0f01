"""Loading by name while the Hub fails: one sentence, nothing half in the cache, and all well once it is back."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from loopback import TOKEN, LoopbackHub, ask

from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.models.backbone import load_backbone

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture(autouse=True)
def published(
    runs: dict[str, Path],
    hub: LoopbackHub,
    api: HfApi,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adapted run as me/x, and this process's client asking that Hub with an empty cache."""
    publish_run(runs["adapted"], "me/x", PublishConfig(license="mit"), api=api, say=str)
    ask(hub, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    hub.faults.clear()


@pytest.mark.parametrize(
    ("request_line", "what"),
    [
        ("GET /api/models", "401"),
        ("GET /api/models", "403"),
        ("GET /api/models", "404"),
        ("GET /api/models", "500"),
        ("resolve", "429"),
        ("GET /me/x/resolve/.*safetensors", "cut"),
        ("GET /me/x/resolve/.*safetensors", "hang"),
    ],
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing_wrong_behind(
    request_line: str, what: str, hub: LoopbackHub, runs: dict[str, Path]
) -> None:
    hub.fail(request_line, what)
    with pytest.raises(InputError, match="'me/x': no such folder here, and the Hub did not deliver it") as caught:
        load_backbone("test_resnet", init="me/x")
    assert TOKEN not in str(caught.value)
    hub.faults.clear()
    found, origin = load_backbone("test_resnet", init="me/x")
    own, _ = load_backbone("test_resnet", init=str(runs["adapted"] / "model"))
    assert origin.revision == hub.repositories["me/x"].branches["main"]
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in found.state_dict().items())
