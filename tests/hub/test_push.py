"""Pushing to a Hub on this machine through the real client: what arrives, what failures do, what stays secret."""

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_runs import Forks
from huggingface_hub import HfApi
from loopback import TOKEN, LoopbackHub, Repository

from tpssl_hf.errors import InputError
from tpssl_hf.hub import retry as trouble
from tpssl_hf.hub.commit import PushError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run

# The client itself passes images on in a way its HTTP library no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
Push = Callable[..., str]
NAMES = {"README.md", "config.json", "curves.png", "model.safetensors", "results.json", "run_config.yaml"}


@pytest.fixture
def push(runs: dict[str, Path], api: HfApi, waits: list[float]) -> Push:
    """Publish a run with these choices."""

    def publish(kind: str = "adapted", repo: str = "me/x", *, api: HfApi = api, say: Any = str, **choices: Any) -> str:
        return publish_run(runs[kind], repo, PublishConfig(**{"license": "mit", **choices}), api=api, say=say)

    return publish


@pytest.mark.parametrize(
    ("kind", "more"),
    [("adapted", set()), ("classifier", set()), ("segmenter", {"preprocessor_config.json"})],
)
def test_everything_arrives_in_one_commit(
    kind: str, more: set[str], push: Push, hub: LoopbackHub, runs: dict[str, Path]
) -> None:
    address = push(kind, "team/x")
    repository, files = hub.repositories["team/x"], hub.head("team/x")
    assert repository.messages == ["initial commit", "Publish a run of tpssl_hf"] and address.startswith(hub.url)
    assert files.keys() - {".gitattributes"} >= NAMES | more or files.keys() - {"processor_config.json"} >= NAMES
    assert files["model.safetensors"] == (runs[kind] / "model" / "model.safetensors").read_bytes()
    assert sum("/commit/" in request for request in hub.requests) == 1
    assert push(kind, "team/x") == address and len(repository.messages) == 2  # the same again is no commit


def test_a_calibration_goes_with_its_model(
    runs: dict[str, Path], hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    folder = shutil.copytree(runs["classifier"], tmp_path / "run")
    (folder / "model" / "calibration.json").write_text("{}")
    publish_run(folder, "me/x", PublishConfig(license="mit"), api=api, say=str)
    assert hub.head("me/x")["calibration.json"] == b"{}\n"
    publish_run(runs["classifier"], "me/x", PublishConfig(license="mit"), api=api, say=str)
    assert "calibration.json" not in hub.head("me/x")


def test_what_another_model_left_goes_in_the_same_commit_and_what_is_not_ours_stays(
    push: Push, hub: LoopbackHub
) -> None:
    push("segmenter")
    repository = hub.repositories["me/x"]
    repository.add("main", hub.head("me/x") | {"notes.txt": b"mine"}, "by hand")
    push("adapted")
    assert hub.head("me/x").keys() == NAMES | {".gitattributes", "notes.txt"}
    assert len(repository.messages) == 4


def test_branches_pull_requests_and_collections(push: Push, hub: LoopbackHub) -> None:
    push()
    push("classifier", revision="v2", collection="me/best-1", message="Second try")
    repository = hub.repositories["me/x"]
    assert b"fixmatch" in hub.head("me/x", "v2")["README.md"] and b"fixmatch" not in hub.head("me/x")["README.md"]
    assert repository.messages[-1] == "Second try" and hub.collected == [("me/best-1", "me/x")]
    hub.fail("collections", "404")
    with pytest.raises(PushError, match="^published as .* but not added to the collection: the Hub does not know"):
        push("adapted", revision="v3", collection="me/none")
    assert "v3" in repository.branches
    assert push("classifier", create_pr=True).endswith("/discussions/1")
    assert b"fixmatch" in hub.head("me/x", "refs/pr/1")["README.md"]
    with pytest.raises(InputError, match="not both"):
        push(create_pr=True, revision="v2")


def test_private_never_ends_in_a_public_repository(push: Push, hub: LoopbackHub) -> None:
    push(repo="me/secret", private=True)
    assert hub.repositories["me/secret"].private
    push(repo="me/open")
    with pytest.raises(PushError, match="there already and public"):
        push("classifier", "me/open", private=True)
    assert len(hub.repositories["me/open"].messages) == 2


PASSING = [
    ("POST /api/repos/create", "500", 1),
    ("POST /api/models/me/x/preupload", "429", 2),
    ("GET /api/models/me/x/tree", "cut", 2),
    ("POST /api/validate-yaml", "503", 1),
    ("PUT /lfs/", "cut", 1),
    ("PUT /lfs/", "500", 2),
    ("POST /api/models/me/x/commit", "502", 3),
    ("POST /api/models/me/x/commit", "cut", 1),
    ("POST /api/models/me/x/commit", "hold after", 1),  # done, but the answer is lost
    ("POST /api/models/me/x/commit", "hang", 1),
]


@pytest.mark.parametrize(("request_line", "what", "times"), PASSING)
def test_trouble_that_passes_is_waited_out(
    request_line: str, what: str, times: int, push: Push, hub: LoopbackHub, waits: list[float]
) -> None:
    hub.fail(request_line, what, times)
    push(timeout=0.5 if what in ("hang", "hold after") else 20)
    assert waits and hub.head("me/x").keys() == NAMES | {".gitattributes"}
    assert hub.repositories["me/x"].messages == ["initial commit", "Publish a run of tpssl_hf"]


LASTING = [
    ("POST /api/repos/create", "401", "hf auth login"),
    ("POST /api/repos/create", "403", "may not write to me/x"),
    ("POST /api/models/me/x/preupload", "404", "does not know me/x"),
    ("POST /me/x.git/info/lfs", "413", "too large"),
    ("POST /api/models/me/x/commit", "429", "too many requests"),
    ("PUT /lfs/", "500", "status 500"),
    ("POST", "503", "status 503"),
    ("PUT /lfs/", "cut", "connection broke"),
    ("POST /api/models/me/x/commit", "hang", "connection broke"),
]


@pytest.mark.parametrize(("request_line", "what", "reason"), LASTING)
def test_a_failed_push_leaves_the_old_model_and_says_how_to_push_again(
    request_line: str, what: str, reason: str, push: Push, hub: LoopbackHub, runs: dict[str, Path]
) -> None:
    push("adapted")
    before, kept = hub.head("me/x"), sorted(runs["classifier"].rglob("*"))
    hub.fail(request_line, what)
    with pytest.raises(PushError, match=reason) as caught:
        push("classifier", timeout=0.2 if what == "hang" else 20)
    assert f"tpssl-hf publish {runs['classifier']} --repo me/x --license mit" in str(caught.value)
    assert hub.head("me/x") == before and sorted(runs["classifier"].rglob("*")) == kept
    lines = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in lines and "Bearer" not in lines


def test_a_pull_request_is_not_opened_twice(push: Push, hub: LoopbackHub) -> None:
    push()
    hub.fail("commit", "hold after", 1)
    with pytest.raises(PushError, match="push it again"):
        push("classifier", create_pr=True, timeout=0.3)
    assert [name for name in hub.repositories["me/x"].branches if "pr" in name] == ["refs/pr/1"]


def test_no_hub_at_all_and_none_wanted(push: Push, hub: LoopbackHub, waits: list[float], monkeypatch: Any) -> None:
    with pytest.raises(PushError, match="could not be reached"):
        push(api=HfApi("http://127.0.0.1:9", token=TOKEN))
    assert len(waits) == trouble.ATTEMPTS - 1 and waits == sorted(waits)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE"):
        push()
    assert hub.requests == [] and len(waits) == trouble.ATTEMPTS - 1


def test_the_wait_the_hub_asks_for_is_kept(push: Push, hub: LoopbackHub, waits: list[float]) -> None:
    hub.fail("repos/create", "429", 1).headers["Retry-After"] = "7"
    push()
    assert waits == [7.0]


def test_the_time_limit_ends_with_the_push(push: Push) -> None:
    from huggingface_hub.utils import get_session

    push(timeout=3)
    assert get_session().timeout.read is None


def test_tokens_and_paths_appear_nowhere(
    push: Push, hub: LoopbackHub, runs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any, caplog: Any
) -> None:
    other = "hf_" + "sEcReT" * 6
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", "wandb-canary-123")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model", "curves.png", "metrics.jsonl"):
        (run / name).symlink_to(runs["adapted"] / name)
    results = json.loads((runs["adapted"] / "results.json").read_text())
    results["config"] |= {"dataset": f"{tmp_path}/my images", "image_column": TOKEN, "label_column": f"x{other}"}
    results["stopped"] = f"see {tmp_path}/log.txt with wandb-canary-123"
    (run / "results.json").write_text(json.dumps(results))
    with caplog.at_level("DEBUG"):
        publish_run(run, "me/x", PublishConfig(license="mit", message=TOKEN), api=HfApi(hub.url, token=TOKEN))
        hub.fail("POST", "500")  # this server sends back what it was sent
        with pytest.raises(PushError) as caught:
            publish_run(run, "me/y", PublishConfig(license="mit", message=TOKEN), api=HfApi(hub.url, token=TOKEN))
    with pytest.raises(InputError) as refused:
        publish_run(run, f"https://me:{other}@huggingface.co/me/x", PublishConfig(license="mit"))
    out, err = capsys.readouterr()
    channels = [out, err, caplog.text, *("".join(traceback.format_exception(e.value)) for e in (caught, refused))]
    files = hub.head("me/x")
    channels += hub.repositories["me/x"].messages + [content.decode(errors="replace") for content in files.values()]
    for secret in (TOKEN, other, "wandb-canary-123"):
        assert [channel for channel in channels if secret in channel] == []
    for content in files.values():
        assert str(tmp_path).encode() not in content and str(runs["adapted"]).encode() not in content
    assert b"my images" in files["run_config.yaml"] and b"cache_dir" not in files["run_config.yaml"]


KILLS = [("preupload", "hold"), ("PUT /lfs/", "hold"), ("/commit/", "hold"), ("/commit/", "hold after")]


@pytest.mark.parametrize(("request_line", "what"), KILLS)
def test_a_killed_push_leaves_the_old_model_or_the_new_one(
    request_line: str, what: str, push: Push, hub: LoopbackHub, runs: dict[str, Path], forks: Forks, tmp_path: Path
) -> None:
    push("adapted")
    old = hub.head("me/x")
    fault = hub.fail(request_line, what, 1)
    request = {"file": str(Path(__file__).with_name("killed_push.py")), "function": "push"}
    request["arguments"] = [str(runs["classifier"]), hub.url, TOKEN]
    pid = forks.start(request, tmp_path / "log", {})
    assert fault.reached.wait(60), (tmp_path / "log").read_text()
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) == -signal.SIGKILL
    fault.go_on.set()
    fault.over.wait(10)
    found = hub.head("me/x")
    new = json.loads(found["results.json"])["recipe"] == "ssl_classify"
    source = runs["classifier" if new else "adapted"] / "model" / "model.safetensors"
    assert found["model.safetensors"] == source.read_bytes()
    assert (json.loads(found["config.json"])["num_classes"] == 10) == new
    assert new or found == old
    assert len(hub.repositories["me/x"].messages) == (3 if new else 2)
    push("classifier")  # and again, as the message of a failure says
    assert json.loads(hub.head("me/x")["results.json"])["recipe"] == "ssl_classify"


def test_repositories_of_others_are_not_touched(push: Push, hub: LoopbackHub) -> None:
    hub.repositories["you/y"] = Repository()
    hub.repositories["you/y"].add("main", {}, "theirs")
    with pytest.raises(PushError, match="may not write to you/y"):
        push(repo="you/y")
    assert hub.repositories["you/y"].messages == ["theirs"]
    for repo in ("x", "a/b/c", "me/"):
        with pytest.raises(InputError, match="Hub id|owner"):
            push(repo=repo)
