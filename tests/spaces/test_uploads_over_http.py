"""What the running demo answers to files that are no images, and to those who ask for its own files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uploads
from upload_files import COLOR, REFUSED, encode

pytest.importorskip("gradio", reason="the demo needs gradio: `uv run --extra demo pytest`")

import httpx  # comes with gradio, and only with it
from demo_config import DemoConfig
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from tiny_demo import DEMO, GRADIO_NOISE

pytestmark = GRADIO_NOISE
MODELS = {"classify": "pets", "segment": "pets' outlines"}


@pytest.fixture(scope="module")
def http(demo_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{demo_url}gradio_api", timeout=60) as session:
        yield session


@pytest.fixture(scope="module")
def client(demo_url: str) -> Client:
    return Client(demo_url, verbose=False)


def upload(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/upload", files={"files": ("image.png", content, "image/png")})


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def ask(http: httpx.Client, api_name: str, path: str) -> str:
    """Have the file at ``path``, on the server, computed with; returns the stream of events it answers with."""
    call = f"/call/{api_name}"
    event = http.post(call, json={"data": [file_data(path), MODELS[api_name]]}).raise_for_status().json()["event_id"]
    return http.get(f"{call}/{event}").raise_for_status().text


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "too large"])
@pytest.mark.parametrize("api_name", MODELS)
def test_every_bad_file_is_answered_with_its_sentence_only(
    name: str, api_name: str, http: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    content, sentence = REFUSED[name]
    answer = ask(http, api_name, upload(http, content).raise_for_status().json()[0])
    assert answer.startswith("event: error\ndata: ") and json.loads(answer.split("data: ")[1])["error"] == sentence
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["bomb", "nothing"])
def test_gradio_s_own_client_gets_the_sentence(name: str, client: Client, tmp_path: Path) -> None:
    content, sentence = REFUSED[name]
    (tmp_path / "image.png").write_bytes(content)
    for api_name, model in MODELS.items():
        with pytest.raises(AppError) as caught:
            client.predict(handle_file(tmp_path / "image.png"), model, api_name=f"/{api_name}")
        assert str(caught.value) == sentence


def test_a_svg_by_its_name_is_no_different(client: Client, tmp_path: Path) -> None:
    (tmp_path / "drawing.svg").write_bytes(REFUSED["svg"][0])
    with pytest.raises(AppError, match="SVG drawing"):
        client.predict(handle_file(tmp_path / "drawing.svg"), "pets", api_name="/classify")


def test_too_large_a_file_is_not_taken(http: httpx.Client) -> None:
    assert upload(http, bytes(uploads.MAX_BYTES)).status_code == 200
    refused = upload(http, bytes(uploads.MAX_BYTES + 1))
    assert refused.status_code == 413 and "Traceback" not in refused.text


def test_files_of_the_server_are_not_shown(http: httpx.Client, demo_config: DemoConfig) -> None:
    own = [
        DEMO / "app.py",
        DEMO / "demo.yaml",
        demo_config.folder / "tsne.png",
        demo_config.folder / "base/config.json",
    ]
    for path in ["app.py", "demo.yaml", "/etc/passwd", "/proc/self/environ", "../../../etc/passwd", *own]:
        shown = http.get(f"/file={path}")
        assert shown.status_code in (403, 404), path
        assert "root:" not in shown.text and "import" not in shown.text


@pytest.mark.parametrize("api_name", MODELS)
def test_files_of_the_server_are_not_computed_with(api_name: str, http: httpx.Client, demo_config: DemoConfig) -> None:
    for path in ["/etc/passwd", str(demo_config.folder / "tsne.png"), str(DEMO / "app.py"), "app.py", "/dev/zero"]:
        assert ask(http, api_name, path) == 'event: error\ndata: {"error": null}\n\n', path


def test_the_queue_cannot_be_passed_by(http: httpx.Client) -> None:
    body = {"data": [file_data(upload(http, encode(COLOR)).json()[0]), "pets"]}
    for way in ("run/classify", "api/classify"):
        assert http.post(f"/{way}", json=body).status_code == 404, way


def test_after_all_that_the_demo_still_answers(client: Client, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(encode(COLOR))
    image = handle_file(tmp_path / "image.png")
    base, _, _ = client.predict(image, "pets", api_name="/classify")
    assert sum(one["confidence"] for one in base["confidences"]) == pytest.approx(1)
    _, _, legend = client.predict(image, "pets' outlines", api_name="/segment")
    assert sum(float(share) for share in re.findall(r"([\d.]+) %", legend)) == pytest.approx(100, abs=0.2)
