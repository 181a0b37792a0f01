"""Many visitors at once: everybody gets their own answer, and those whom the queue has no room for are told so."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from upload_files import encode

pytest.importorskip("gradio", reason="the demo needs gradio: `uv run --extra demo pytest`")

import httpx  # comes with gradio, and only with it
from demo_config import DemoConfig
from demo_models import Classifier, load_classifier
from gradio_client import Client, handle_file
from gradio_client.utils import QueueError
from tiny_demo import GRADIO_NOISE, image_of, launched

pytestmark = GRADIO_NOISE
CLIENTS, REQUESTS, ROOM = 8, 3, 2


@pytest.fixture(scope="module")
def narrow(demo_config: DemoConfig) -> Iterator[str]:
    """Address of the API of a demo in which few may wait."""
    starting = launched(demo_config)
    starting.demo._queue.max_size = ROOM
    with starting as url:
        yield f"{url}gradio_api"


def join(http: httpx.Client, seed: int) -> httpx.Response:
    """Send an image and ask for its classes, without waiting for them."""
    files = {"files": ("image.png", encode(image_of(seed)), "image/png")}
    path = http.post("/upload", files=files).raise_for_status().json()[0]
    return http.post("/call/classify", json={"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "pets"]})


def answer(http: httpx.Client, joined: httpx.Response) -> dict[str, float]:
    """Wait for the probabilities that the base model gives."""
    stream = http.get(f"/call/classify/{joined.raise_for_status().json()['event_id']}").raise_for_status()
    event, content = (line.partition(": ")[2] for line in stream.text.strip().splitlines()[-2:])
    assert event == "complete", stream.text
    return {one["label"]: one["confidence"] for one in json.loads(content)[0]["confidences"]}


def test_every_answer_belongs_to_its_request(narrow: str, demo_config: DemoConfig) -> None:
    statuses: list[int] = []

    def visit(client: int) -> list[dict[str, float]]:
        found = []
        with httpx.Client(base_url=narrow, timeout=60) as http:
            for request in range(REQUESTS):
                while (joined := join(http, 100 * client + request)).status_code == 503:
                    statuses.append(503)
                    threading.Event().wait(0.2)
                statuses.append(joined.status_code)
                found.append(answer(http, joined))
        return found

    with ThreadPoolExecutor(CLIENTS) as threads:
        found = list(threads.map(visit, range(CLIENTS)))
    model = load_classifier(demo_config.classifiers[0].base)
    seeds = [100 * client + request for client in range(CLIENTS) for request in range(REQUESTS)]
    expected = [model.confidences(image_of(seed)) for seed in seeds]
    told = [one for answers in found for one in answers]
    for number, one in enumerate(told):
        alike = [other for other, values in enumerate(expected) if values == pytest.approx(one, abs=1e-6)]
        assert alike == [number]
    assert set(statuses) <= {200, 503} and statuses.count(200) == CLIENTS * REQUESTS


def test_whoever_finds_the_queue_full_is_told_and_the_others_are_served(
    narrow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, go_on = threading.Event(), threading.Event()
    compute = Classifier.confidences

    def held(self: Classifier, image: Any) -> dict[str, float]:
        computing.set()
        assert go_on.wait(60)
        return compute(self, image)

    monkeypatch.setattr(Classifier, "confidences", held)
    (tmp_path / "image.png").write_bytes(encode(image_of(0)))
    with httpx.Client(base_url=narrow, timeout=60) as http:
        try:
            first = join(http, 0)
            assert computing.wait(60)
            waiting = [join(http, 1 + number) for number in range(ROOM)]
            refused = join(http, 9)
            with pytest.raises(QueueError, match="Queue is full"):
                client = Client(narrow.removesuffix("gradio_api"), verbose=False)
                client.predict(handle_file(tmp_path / "image.png"), "pets", api_name="/classify")
        finally:
            go_on.set()
        assert refused.status_code == 503 and "Queue is full" in refused.json()["detail"]
        assert all(sum(answer(http, joined).values()) == pytest.approx(1) for joined in [first, *waiting])
        assert join(http, 9).status_code == 200
