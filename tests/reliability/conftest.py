from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forked_runs import CLASSIFY, SEGMENT, Forks, Runs
from PIL import Image


@pytest.fixture(scope="session")
def runs(forks: Forks) -> Runs:
    """Runs of recipes/target_pretrain.py."""
    return Runs(forks)


@pytest.fixture(scope="session")
def classifying_runs(forks: Forks) -> Runs:
    """The same of recipes/ssl_classify.py."""
    return Runs(forks, CLASSIFY)


@pytest.fixture(scope="session")
def segmenting_runs(forks: Forks) -> Runs:
    """The same of recipes/ssl_segment.py."""
    return Runs(forks, SEGMENT)


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Arguments of a run of twelve steps in three epochs over 32 images; more may be given, None takes one out."""
    images, cache = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("cache")
    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
    fixed = {"dataset": images, "cache_dir": cache, "backbone": "test_resnet", "image_size": 32, "batch_size": 8}
    fixed |= {"max_steps": 12, "method": "byol", "hidden_features": 32, "projection_features": 16, "l2_weight": 0.01}
    fixed |= {"save_every": 3, "log_every": 2, "base_learning_rate": 3.0}

    def arguments(output: Path, **others: object) -> list[str]:
        settings = fixed | {"precision": "fp32"} | others | {"output_dir": output}
        return [f"--{name}={value}" for name, value in settings.items() if value is not None]

    return arguments
