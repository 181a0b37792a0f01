"""Small runs of the three tasks: their keys, the named points at which they are killed, and what they must leave."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked_runs import CLASSIFY, RECIPE, SEGMENT, Fault
from PIL import Image
from torch import Tensor

from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import read_metrics

RECIPES = {"pretrain": RECIPE, "classify": CLASSIFY, "segment": SEGMENT}

# Of runs of six steps that log each step and save every second one.
SIX_STEPS = {"max_steps": 6, "save_every": 2, "log_every": 1}
KILLS: dict[str, Fault] = {
    "during the scan": Fault("decode", 10),
    "while pixels are kept": Fault("pixels", 20),
    "before the image cache has an index": Fault("index", 1),
    "before the image cache has its name": Fault("folder", 1, match=".partial"),
    "inside a forward pass": Fault("any_forward", 3),
    "inside a backward pass": Fault("any_backward", 5),
    "before the check of a step": Fault("checked", 5),
    "between optimizer and teacher": Fault("after_step", 3),
    "after the teacher": Fault("stepped", 6),
    "inside a log line": Fault("log", 4, "tear"),
    "after a log line": Fault("logged", 5),
    "before the log is on the disk": Fault("position", 2),
    "inside the first write": Fault("write", 1, "tear", "method"),
    "before an fsync of tensors": Fault("fsync", 2, match="optimizer.safetensors"),
    "after an fsync of tensors": Fault("fsynced", 2, match="optimizer.safetensors"),
    "inside a manifest": Fault("write", 2, "tear", "MANIFEST"),
    "after the fsync of a manifest": Fault("fsynced", 2, match="MANIFEST"),
    "before a checkpoint has its name": Fault("rename", 2),
    "after a checkpoint has its name": Fault("replace", 2, match="checkpoints/.tmp-"),
    "after a save": Fault("saved", 2),
    "while an old checkpoint goes": Fault("replace", 1, match="/step_2"),
    "before the curves": Fault("curves", 1),
    "before the export has its name": Fault("folder", 1, match="/.model-"),
    "before the results have their name": Fault("replacing", 1, match=".results.json"),
}


def write_images(folder: Path) -> None:
    """Write the 32 images of the smallest pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def pretrain_keys(images: Path, cache: Path) -> dict[str, Any]:
    """Return the keys of a run of twelve steps in three epochs over 32 images."""
    keys = {"dataset": images, "cache_dir": cache, "backbone": "test_resnet", "image_size": 32, "batch_size": 8}
    keys |= {"max_steps": 12, "method": "byol", "hidden_features": 32, "projection_features": 16, "l2_weight": 0.01}
    return keys | {"save_every": 3, "log_every": 2, "base_learning_rate": 3.0, "precision": "fp32"}


def classify_keys(cache: Path) -> dict[str, Any]:
    """Return the keys of a run of four steps, saved twice, with 20 labels of the digits."""
    keys = {"dataset": "digits", "labels": 20, "backbone": "test_resnet", "image_size": 32, "work_size": 16}
    keys |= {"batch_size": 4, "unlabeled_ratio": 2, "max_steps": 4, "save_every": 2, "log_every": 1}
    keys |= {"limit_images": 300, "limit_test_images": 40, "cache_dir": cache}
    return keys | {"precision": "fp32", "select": "last"}


def segment_keys(cache: Path) -> dict[str, Any]:
    """Return the keys of a run of four steps, saved twice, with 6 labeled scenes."""
    keys = {"dataset": "digit_scenes", "labels": 6, "backbone": "test_resnet", "decoder_width": 16}
    keys |= {"crop_height": 32, "crop_width": 48, "batch_size": 2, "max_steps": 4, "save_every": 2, "log_every": 1}
    keys |= {"limit_images": 40, "limit_test_images": 6, "cache_dir": cache}
    return keys | {"learning_rate": 0.01, "precision": "fp32"}


def as_arguments(keys: dict[str, Any], output: Path, **others: object) -> list[str]:
    """Return the command line of ``keys`` and ``others``; None takes a key out."""
    return [
        f"--{name}={value}" for name, value in (keys | others | {"output_dir": output}).items() if value is not None
    ]


class Outcome:
    """Everything a finished run leaves behind that must not depend on how often it was killed."""

    def __init__(self, folder: Path, steps: int) -> None:
        checkpoint = load_latest(folder / "checkpoints")
        assert checkpoint is not None and checkpoint.step == steps
        self.tensors: dict[str, dict[str, Tensor]] = checkpoint.tensors
        self.state = {name: value for name, value in checkpoint.state.items() if name != "seconds"}
        self.state.pop("log_position")  # a timing may have more digits
        self.models = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("model*/*.safetensors")
        }
        self.metrics = read_metrics(folder / "metrics.jsonl")
        for line in self.metrics:
            line.pop("images_per_second")
        self.results: dict[str, Any] = json.loads((folder / "results.json").read_text())
        for name in ("seconds", "images_per_second"):
            assert self.results.pop(name, 1) > 0
        self.results.pop("commit")  # of the checkout, which may change while runs are killed and resumed
        for name in ("output_dir", "cache_dir"):
            self.results["config"].pop(name)
        self.files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_same(one: Outcome, other: Outcome) -> None:
    """Compare two outcomes to the last bit."""
    assert one.metrics == other.metrics
    assert all(one.tensors[group] for group in ("method", "optimizer"))
    assert one.tensors.keys() == other.tensors.keys()
    for group, named in one.tensors.items():
        assert named.keys() == other.tensors[group].keys(), group
        for name, tensor in named.items():
            assert tensor.dtype == other.tensors[group][name].dtype
            assert torch.equal(tensor, other.tensors[group][name]), f"{group} {name}"
    assert one.state == other.state and one.results == other.results
    assert one.models and one.models == other.models
    assert one.files == other.files, f"files {sorted({*one.files} ^ {*other.files})}"
