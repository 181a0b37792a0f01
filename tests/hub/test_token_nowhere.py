"""A token that this process may use is in none of ten channels, with a Hub that sends back what it is sent."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState
from huggingface_hub import HfApi
from loopback import TOKEN, LoopbackHub, ask
from small_runs import pretrain_keys, write_images
from test_publish_space import DEMO, content, written

import tpssl_hf
from tpssl_hf.config.parser import ACCESS_TOKEN
from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.spaces import publish_space

__all__ = ["content"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def client(
    hub: LoopbackHub, waits: list[float], tmp_path: Path, api: HfApi, runs: dict[str, Path], monkeypatch: Any
) -> Iterator[None]:
    """This process's client asks that Hub, where weights to start from are private, and keeps all it keeps here."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    publish_run(runs["adapted"], "me/start", PublishConfig(license="mit", private=True), api=api, say=str)
    ask(hub, tmp_path / "hub-cache", monkeypatch)
    for place in ("pretrain.report.draw_curves", "pretrain.run.draw_views"):
        monkeypatch.setattr(f"tpssl_hf.tasks.{place}", lambda path, *_, **__: path.write_bytes(b"\x89PNG"))
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def files_below(folder: Path) -> list[bytes]:
    """Return the contents of all files."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def trace_of(failing: Callable[[], object]) -> bytes:
    """Return the traceback, as it would be shown."""
    with pytest.raises(InputError) as caught:
        failing()
    return "".join(traceback.format_exception(caught.value)).encode()


@pytest.mark.filterwarnings("ignore")  # so short a run has reasons to warn
def test_a_token_is_in_no_channel_of_this_process(
    content: dict[str, Any], hub: LoopbackHub, api: HfApi, tmp_path: Path, capfd: Any, caplog: Any
) -> None:
    pytest.importorskip("tensorboard")
    folder, cache = tmp_path / "run", tmp_path / "cache"
    write_images(tmp_path / "images")
    keys = pretrain_keys(tmp_path / "images", cache) | {"max_steps": 2, "output_dir": folder, "init": "me/start"}
    keys |= {"log_with": "tensorboard", "health_every": 0}
    push = {"push_to_hub": True, "hub_model_id": "me/x", "hub_license": "mit"}
    with caplog.at_level("DEBUG"):
        hub.fail("start", "500")
        traces = [trace_of(lambda: tpssl_hf.pretrain(**keys))]
        hub.faults.clear()
        hub.fail("POST /api/models/me/x/commit", "403")
        traces += [trace_of(lambda: tpssl_hf.pretrain(**keys, **push))]
        hub.faults.clear()
        run = tpssl_hf.pretrain(**keys, **push)
        publish_space(DEMO, written(content, tmp_path), "me/space", PublishConfig(), api=api, say=print)
    published = hub.head("me/x")
    space = {name: data for name, data in hub.head("spaces/me/space").items() if not name.endswith(".png")}
    tracked = [path for path in folder.rglob("*") if "tfevents" in path.name]
    assert any(request.startswith("GET /me/start/resolve") for request in hub.requests) and len(traces) == 2
    channels = {
        "logs": [*(text.encode() for text in capfd.readouterr()), caplog.text.encode()],
        "card": [published["README.md"]],
        "config": [published["run_config.yaml"], (folder / "config.yaml").read_bytes()],
        "results": [published["results.json"], (folder / "results.json").read_bytes()],
        "tracebacks": traces,
        "tracker": [path.read_bytes() for path in tracked],
        "cache": [*files_below(cache), *files_below(tmp_path / "hub-cache"), *files_below(folder)],
        "Space": list(space.values()),
        "notebook": [repr(run).encode(), json.dumps(run.results).encode()],
    }
    assert [name for name, channel in channels.items() if not any(channel)] == []
    hits = {name: sum(TOKEN.encode() in part for part in channel) for name, channel in channels.items()}
    assert hits == dict.fromkeys(channels, 0)


@pytest.mark.slow
def test_a_token_is_not_in_what_a_child_says(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("start", "403")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path / "home")}
    command = [
        sys.executable,
        "-m",
        "tpssl_hf.cli",
        "predict",
        "me/start",
        str(tmp_path),
        f"--output_dir={tmp_path}/out",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 2 and b"status 403" in done.stderr, done.stderr
    assert any("me/start" in request for request in hub.requests)
    assert TOKEN.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize("how", ["keyword", "config file"])
def test_a_token_among_the_keys_is_refused(how: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"image_column": TOKEN}
    if how == "config file":
        (tmp_path / "keys.yaml").write_text(f"image_column: [{TOKEN}")  # whose error would show it
        given = {"config": tmp_path / "keys.yaml"}
    trace = trace_of(lambda: tpssl_hf.pretrain(dataset="digits", **given, output_dir=tmp_path / "run"))
    assert b"looks like an access token" in trace and not (tmp_path / "run").exists()
    assert TOKEN.encode() not in trace.replace(b"ACCESS_TOKEN", b"")


@pytest.mark.parametrize("name", ["hf_internal_testing/images", "data/hf_abcdefghijkl", "api_org_images"])
def test_names_are_no_tokens(name: str) -> None:
    assert ACCESS_TOKEN.search(TOKEN) and not ACCESS_TOKEN.search(name)
