"""Tiny models for the demo, and the demo running with them."""

import asyncio
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import app
import numpy as np
import pytest
import timm
import torch
from demo_config import DemoConfig
from PIL import Image

from tpssl_hf.models.segmenter import build_segmenter, save_segmenter
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

DEMO = Path(__file__).parents[2] / "spaces/demo"
CLASSES = ["cat", "dog_of_a_breed_whose_name_is_wider_than_a_telephone", "<b>bird</b>"]
SIDE = 32
LEAKED = (
    "unclosed event loop",
    r"unclosed <socket\.socket .*family=1,",
    r"unclosed <socket\.socket .*'0\.0\.0\.0', 0\)",
)
# What gradio leaves open: an event loop for each lock, sockets that look for a free port
GRADIO_NOISE = [pytest.mark.filterwarnings(f"ignore:{message}:ResourceWarning") for message in LEAKED]


def image_of(seed: int, side: int = 48) -> Image.Image:
    """Colored noise, the same for the same seed."""
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))


def make_classifier(folder: Path, seed: int) -> str:
    """A timm ResNet of 0.1 M parameters with random weights and three classes, as the recipes leave one."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=len(CLASSES)).eval()
    save_timm_folder(model, folder, preprocessing=Preprocessing(SIDE), provenance={}, label_names=CLASSES)
    return str(folder)


def make_segmenter(folder: Path) -> str:
    """The smallest segmenter, with random weights and three classes."""
    torch.manual_seed(0)
    model, _ = build_segmenter("test_resnet", init="random", class_names=["ground", *CLASSES[1:]], decoder_width=16)
    save_segmenter(model.eval(), folder)
    return str(folder)


class launched:  # noqa: N801
    """Context of a running demo; gives its address."""

    def __init__(self, config: DemoConfig, **changes: Any) -> None:
        with no_leaked_loops():
            self.demo = app.build_demo(replace(config, **changes))
        # After answering a failed request gradio sums all up with pandas, which warns. Which warnings are errors
        # changes with each test, for all threads: a late one would print the traceback of a request of a test before.
        self.demo._queue.compute_analytics_summary = lambda records: {}
        self.options = app.launch_options()

    def __enter__(self) -> str:
        with no_leaked_loops():
            _, url, _ = self.demo.launch(**self.options, prevent_thread_lock=True, quiet=True)
        return str(url)

    def __exit__(self, *_: object) -> None:
        with no_leaked_loops():
            self.demo.close(verbose=False)


@contextmanager
def no_leaked_loops() -> Iterator[None]:
    """Let go of what gradio leaves open here, and not in somebody else's test."""
    with warnings.catch_warnings():
        for message in LEAKED:
            warnings.filterwarnings("ignore", message, ResourceWarning)
        yield
        asyncio.set_event_loop(None)
        gc.collect()
