"""Faults of the Hub, once and for good, while a model is pushed and pulled: old or new, never a mix."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi, constants, file_download
from loopback import TOKEN, Fault, LoopbackHub, Repository, ask

from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import PushError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.models.timm_network import timm_network

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
FOREVER = 1000
WEIGHTS, CONFIG = r"GET /me/x/resolve/.*safetensors", r"GET /me/x/resolve/.*config.json"
LISTS, COMMIT, UPLOAD = "GET /api/models/me/x", "POST /api/models/me/x/commit", "PUT /lfs/"
# name -> which requests of a push, which of a pull, what happens to them; None: what happens is here
FAULTS: dict[str, tuple[str, str, str | None]] = {
    "reset": (UPLOAD, WEIGHTS, "reset"),
    "500": (COMMIT, CONFIG, "500"),
    "429": (LISTS, LISTS, "429"),
    "429 with Retry-After": (UPLOAD, WEIGHTS, "429"),
    "truncated": (COMMIT, WEIGHTS, "cut"),
    "wrong length": (COMMIT, WEIGHTS, "shorter"),
    "other bytes": (COMMIT, WEIGHTS, "other"),
    "other bytes of the configuration": (LISTS, CONFIG, "other"),
    "slow": (COMMIT, CONFIG, "slow"),
    "changed between list and get": (COMMIT, WEIGHTS, "act"),
    "401 or 403": (COMMIT, LISTS, "403"),
    "the disk here": (UPLOAD, WEIGHTS, None),
}
ANSWERS_LOST = ("slow", "truncated", "wrong length", "other bytes")  # of a commit that was made
TIMES = pytest.mark.parametrize("times", [1, FOREVER], ids=["once", "for good"])


@pytest.fixture(autouse=True)
def client(hub: LoopbackHub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's client asks that Hub, with an empty cache."""
    ask(hub, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def fail(hub: LoopbackHub, name: str, times: int, *, pushing: bool) -> Fault | None:
    """Let requests fail."""
    pushed, pulled, what = FAULTS[name]
    if what is None:
        return None
    fault = hub.fail(pushed if pushing else pulled, what, times)
    fault.headers |= {"Retry-After": "3"} if name == "429 with Retry-After" else {}
    return fault


def put(repository: Repository, branch: str, files: dict[str, bytes]) -> None:
    """Commit as somebody else does."""
    repository.add(branch, files, f"by another, {len(repository.commits)}")


@TIMES
@pytest.mark.parametrize("name", FAULTS)
def test_a_push_leaves_the_old_model_or_the_new_one(
    name: str, times: int, hub: LoopbackHub, api: HfApi, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(kind: str) -> None:
        publish_run(runs[kind], "me/x", PublishConfig(license="mit", timeout=0.1), api=api, say=str)

    def unreadable(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    push("segmenter")  # has a file that the others lack
    others = hub.head("me/x")
    push("classifier")
    new = hub.head("me/x")
    push("adapted")
    old, repository = hub.head("me/x"), hub.repositories["me/x"]
    hub.blobs.clear()
    with monkeypatch.context() as patch:
        if (fault := fail(hub, name, times, pushing=True)) is None:
            patch.setattr(CommitOperationAdd, "as_file", unreadable)
        else:
            fault.act = lambda: put(repository, "main", others)
        try:
            push("classifier")
            expected = [new]
        except PushError as error:
            assert "not published" in str(error) and "tpssl-hf publish" in str(error)
            expected = [others if name.startswith("changed") else old]
            expected += [new] if name in ANSWERS_LOST else []
    assert hub.head("me/x") in expected
    assert fault is None or fault.times < times
    hub.faults.clear()
    push("classifier")
    assert hub.head("me/x") == new


def model(place: Path, number: int) -> dict[str, bytes]:
    """Return the files of a model whose weights and preprocessing both tell which one it is."""
    torch.manual_seed(number)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    shown = Preprocessing(32, mean=(number / 10,) * 3)
    folder = save_timm_folder(network, place / f"{number}", preprocessing=shown, provenance={})
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}


def which(pulled: str = "me/x") -> tuple[str | None, float]:
    """Load a model by name; returns what tells one from another, of its weights and of its configuration."""
    network, origin = load_backbone("test_resnet", init=pulled)
    return origin.sha256, round(10 * timm_network(network).pretrained_cfg["mean"][0])


@TIMES
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not cached"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_pull_gives_the_old_model_or_the_new_one(
    name: str, cached: bool, times: int, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {number: model(tmp_path, number) for number in (1, 2, 3)}
    known = {}
    for number in (1, 2, 3):
        repository = hub.repositories[f"me/known{number}"] = Repository()
        put(repository, "main", files[number])
        known[number] = which(f"me/known{number}")
        assert known[number][1] == number
    repository = hub.repositories["me/x"] = Repository()
    put(repository, "main", files[1])
    assert not cached or which() == known[1]
    put(repository, "main", files[2])
    good = [known[1], known[2]] if cached else [known[2]]

    def full(url: str, file: Any, *_: Any, **__: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if (fault := fail(hub, name, times, pushing=False)) is None:
            patch.setattr(file_download, "http_get", full)
        else:
            fault.act = lambda: put(repository, "main", files[3])
        attempt(good)
        assert fault is None or fault.times < times
        hub.fail("", "503")
        attempt(good)  # now there is no Hub at all, and what was half downloaded is no model
    hub.faults.clear()
    if not name.startswith("changed"):
        assert which() == known[2]
    else:
        put(repository, "main", files[3])
        assert which() == known[3]


def attempt(good: list[tuple[str | None, float]]) -> None:
    """Load; what comes is one of these, or a sentence without a token."""
    try:
        assert which() in good
    except InputError as error:
        assert "\n" not in str(error) and TOKEN not in str(error) and "did not deliver it" in str(error), str(error)
