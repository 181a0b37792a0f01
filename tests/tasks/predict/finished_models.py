"""Constants and makers shared by the tests of predict and embed."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tpssl_hf.models.timm_export import Preprocessing
from tpssl_hf.tasks.predict.config import PredictConfig
from tpssl_hf.tasks.predict.run import PredictResult, predict

NAMES = ["cat", "dog", "füchse", "owl"]
PIXELS = ["background", "cat", "dog"]
PALETTE = [[0, 0, 0], [64, 0, 0], [64, 0, 128]]
PREPROCESSING = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
FILES = ["b.jpg", "a.png", "sub/Zürich 東京.jpg", "sub/deep/x.png", "z.jpeg", "sub/b.jpg", "c.jpg"]


def lively(model: nn.Module) -> Any:
    """Give every norm its own statistics and scales: a random network would answer the same to every image."""
    torch.manual_seed(3)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    return model.eval()


def noise(number: int) -> Image.Image:
    """Coarse noise, of one of four sizes, so that answers differ and neighbors in the list do not always."""
    height, width = [(40, 56), (40, 56), (70, 33), (31, 64)][number % 4]
    small = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def run(model: Any, dataset: Any, output: Any, said: list[str] | None = None, **options: Any) -> PredictResult:
    """Call predict on the CPU, in parts of two images unless told otherwise."""
    options = {"device": "cpu", "save_every": 2, **options}
    config = PredictConfig(model=str(model), dataset=str(dataset), output_dir=str(output), **options)
    return predict(config, say=[].append if said is None else said.append, progress=False)
