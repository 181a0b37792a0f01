"""Does the demo answer everybody with their own answer, at a bounded cost?

    python benchmarks/demo_load.py
    python benchmarks/demo_load.py --config my_demo.yaml --clients 64 --requests 10

Starts the demo in a process of its own, with small models made for the purpose or those of ``--config``. Clients send
images of their own over the loopback and ask again when the queue is full; every answer is compared with what the
model says when it is called directly. After a round to warm up all clients come ``--rounds`` times, and the memory of
the server is read after each. Then comes a small file that claims 144 million pixels, and the server's log is read.
"""

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tpssl_hf.process import prepare_process, run_cli

prepare_process([])
import httpx
import numpy as np
import psutil
import timm
import torch
import yaml
from PIL import Image

from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

DEMO = Path(__file__).parent.parent / "spaces/demo"
sys.path.insert(0, str(DEMO))
from demo_config import read_demo_config
from demo_models import Classifier, load_classifier

MOST_GROWTH = 0.05
MOST_BOMB_SECONDS = 0.2
TOLERANCE = 1e-5  # between the server's probabilities and ours
CLASSES = [f"class {number}" for number in range(10)]
PATIENCE = 300  # seconds for one answer
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds until a client asks again, twice as long each time


def write_models(place: Path) -> Path:
    """Make two small classifiers with random weights and return the demo's configuration."""
    for seed, name in enumerate(("base", "adapted")):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", pretrained=False, num_classes=len(CLASSES)).eval()
        save_timm_folder(model, place / name, preprocessing=Preprocessing(64), provenance={}, label_names=CLASSES)
    pair = {"name": "small", "base": str(place / "base"), "adapted": str(place / "adapted")}
    path = place / "demo.yaml"
    path.write_text(yaml.safe_dump({"title": "Load", "sentence": "Small models.", "classifiers": [pair]}))
    return path


@contextmanager
def running(config: Path, place: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start the demo on a free port; gives the address of its API and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(DEMO / "app.py"), f"--config={config}", "--host=127.0.0.1", f"--port={port}"]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(place / "uploads")}
    with (
        (place / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            while not answers(url):
                if server.poll() is not None:
                    sys.exit((place / "log").read_text()[-2000:])
                time.sleep(0.2)
            yield f"{url}/gradio_api", psutil.Process(server.pid)
        finally:
            server.terminate()


def answers(url: str) -> bool:
    """Say whether a server is there already."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def image_file(number: int) -> bytes:
    """A smooth image unlike that of any other number, as a PNG."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(stream, format="PNG")
    return stream.getvalue()


class Visitor:
    """One client, each request with a connection and a session of its own; counts what the server says."""

    def __init__(self, url: str, model: str) -> None:
        # of a connection that is kept the server may just be letting go, where the machine is busy
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))
        self.model = model
        self.statuses: Counter[int] = Counter()
        self.waits: list[float] = []

    def upload(self, content: bytes) -> str:
        """Send a file and return what the server calls it."""
        answer = self.http.post("/upload", files={"files": ("image.png", content, "image/png")})
        return str(answer.raise_for_status().json()[0])

    def ask(self, path: str) -> dict[str, Any]:
        """Have an uploaded image classified, asking again while the queue is full; returns the last event."""
        start, patience = time.perf_counter(), FIRST_WAIT
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, self.model]
        while True:
            joined = self.http.post("/call/classify", json={"data": data})
            self.statuses[joined.status_code] += 1
            if joined.status_code != 503:
                break
            time.sleep(patience)
            patience = min(2 * patience, LONGEST_WAIT)
        stream = (
            self.http.get(f"/call/classify/{joined.raise_for_status().json()['event_id']}").raise_for_status().text
        )
        self.waits.append(time.perf_counter() - start)
        *_, event, content = [line.partition(": ")[2] for line in stream.splitlines() if line]
        return {"event": event, "data": json.loads(content)}


def confidences(answer: dict[str, Any], class_names: list[str]) -> np.ndarray:
    """Return the probabilities (K,) of an answer's first label; NaN of classes that it does not name."""
    if answer["event"] != "complete":
        return np.full(len(class_names), np.nan)
    told = {one["label"]: one["confidence"] for one in answer["data"][0]["confidences"]}
    return np.array([told.get(name, np.nan) for name in class_names])


def expected(classifier: Classifier, number: int) -> np.ndarray:
    """Return the probabilities (K,) that the classifier gives image ``number`` when it is called directly."""
    with Image.open(io.BytesIO(image_file(number))) as image:
        return np.array(list(classifier.confidences(image.convert("RGB")).values()))


def visit_all(url: str, model: str, numbers: list[list[int]]) -> tuple[dict[int, dict[str, Any]], list[Visitor]]:
    """Let one visitor for each list ask for the images in it, all at the same time."""
    visitors = [Visitor(url, model) for _ in numbers]
    together = threading.Barrier(len(visitors))

    def visit(visitor: Visitor, row: list[int]) -> dict[int, dict[str, Any]]:
        together.wait()
        return {number: visitor.ask(visitor.upload(image_file(number))) for number in row}

    with ThreadPoolExecutor(len(visitors)) as threads:
        found = list(threads.map(visit, visitors, numbers))
    return {number: answer for one in found for number, answer in one.items()}, visitors


def bomb_seconds(visitor: Visitor, rounds: int) -> tuple[float, float, str]:
    """Return the median seconds of uploading 12,000 x 12,000 pixels and of the answer, and the answer."""
    stream = io.BytesIO()
    Image.new("RGB", (12_000, 12_000)).save(stream, format="PNG")
    sent, told = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        path = visitor.upload(stream.getvalue())
        sent.append(time.perf_counter() - start)
        answer = visitor.ask(path)
        told.append(visitor.waits[-1])
    return statistics.median(sent), statistics.median(told), str(answer["data"])


def wrong_answers(found: dict[int, dict[str, Any]], ours: np.ndarray, class_names: list[str]) -> int:
    """Count answers that are not those (N, K) to their request, or are those to another request as well."""
    theirs = np.stack([confidences(found[number], class_names) for number in range(len(ours))])
    # of each answer to what should be told of each image; only the likeliest classes are told
    distances = np.fmax.reduce(np.abs(theirs[:, None] - ours), axis=2)
    right = (np.diagonal(distances) < TOLERANCE) & (distances.argmin(axis=1) == np.arange(len(ours)))
    return int((~right).sum())


def main() -> int:
    """Load the demo, print one table, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="of the demo; small models are made if it is not given")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=6, help="after one to warm up")
    arguments = parser.parse_args()
    with TemporaryDirectory() as root:
        place = Path(root)
        path = arguments.config or write_models(place)
        config = read_demo_config(path)
        pair = config.classifiers[0]
        classifier = load_classifier(str(config.find(pair.base)))
        count = arguments.clients * arguments.requests
        ours = np.stack([expected(classifier, number) for number in range(count)])
        rows = np.arange(count).reshape(arguments.clients, arguments.requests).tolist()
        wrong, visitors = 0, []
        with running(path, place) as (url, server):
            visit_all(url, pair.name, rows)  # to warm up
            memory = [server.memory_info().rss]
            start = time.perf_counter()
            for _ in range(arguments.rounds):
                found, visited = visit_all(url, pair.name, rows)
                wrong += wrong_answers(found, ours, classifier.class_names)
                visitors += visited
                memory.append(server.memory_info().rss)
            seconds = time.perf_counter() - start
            sent, told, sentence = bomb_seconds(visitors[0], 9)
        tracebacks = (place / "log").read_text().count("Traceback")
    count *= arguments.rounds
    statuses = sum((visitor.statuses for visitor in visitors), Counter())
    odd = sum(statuses.values()) - statuses[200] - statuses[503]
    waits = [wait for visitor in visitors for wait in visitor.waits]
    growth = [after / memory[0] - 1 for after in memory[1:]]
    passed = {
        "answers": wrong == 0,
        "statuses": odd == 0,
        "memory": max(growth) < MOST_GROWTH,
        "log": tracebacks == 0,
        "bomb": told < MOST_BOMB_SECONDS and "pixels" in sentence,
    }
    verdict = {name: "met" if good else "**missed**" for name, good in passed.items()}
    many = f"{arguments.clients} clients x {arguments.requests} requests x {arguments.rounds} rounds"
    print(f"{many}, {count / seconds:.1f} answers/s\n")
    print("| what | measured | bar | |\n| --- | --- | --- | --- |")
    print(f"| answers that belong to their request | {count - wrong} of {count} | all | {verdict['answers']} |")
    print(f"| refusals with 503 while the queue was full | {statuses[503]} | counted | |")
    print(f"| answers with any other status than 200 and 503 | {odd} | 0 | {verdict['statuses']} |")
    print(f"| wait for an answer, median and largest | {statistics.median(waits):.2f} s, {max(waits):.2f} s | | |")
    grown = ", ".join(f"{part:+.1%}" for part in growth)
    print(f"| memory of the server when warm | {memory[0] / 2**20:.0f} MiB | | |")
    print(f"| growth since then, after each round | {grown} | < {MOST_GROWTH:.0%} | {verdict['memory']} |")
    print(f"| tracebacks in its log | {tracebacks} | 0 | {verdict['log']} |")
    print(f"| 12,000 x 12,000 pixels, answer | {1000 * told:.0f} ms | < 200 ms | {verdict['bomb']} |")
    print(f"| 12,000 x 12,000 pixels, upload | {1000 * sent:.0f} ms | | |")
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    run_cli(main)
