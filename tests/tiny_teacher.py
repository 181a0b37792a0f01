"""The folder of a tiny teacher with a normalization of its own, the same in every test of a process."""

import tempfile
from functools import cache
from pathlib import Path

import timm
import torch

from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

FOLDER = tempfile.TemporaryDirectory(prefix="teacher")  # gone when the process ends
SHOWN = Preprocessing(48, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


@cache
def tiny_teacher() -> str:
    """Save random weights as a run leaves them, and return the run's folder."""
    return str(save_teacher(Path(FOLDER.name), seed=7))


def save_teacher(run: Path, seed: int) -> Path:
    """Save random weights of a seed as a run leaves them, and return the run's folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model("test_convnext", pretrained=False, num_classes=0)
    save_timm_folder(network, run / "model", preprocessing=SHOWN, provenance={}, license="cc-by-nc-4.0")
    return run
