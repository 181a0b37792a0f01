from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tpssl_hf import process
from tpssl_hf.config.shared import ModelConfig, RunConfig
from tpssl_hf.methods.base import Batch, Losses, Method
from tpssl_hf.training.accelerator import make_accelerator, prepare_method


class Seeing(Method):
    """Remembers how the images are laid out that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 4, 3)
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch, progress: float) -> Losses:
        self.seen.append(batch["images"]["view1"])
        return {"loss": self.network(batch["images"]["view1"]).square().mean()}

    @property
    def deployed(self) -> nn.Module:
        return self.network


@pytest.mark.parametrize("asked", ["auto", "channels_last", "contiguous"])
def test_weights_and_images_are_laid_out_alike(asked: Literal["auto", "channels_last", "contiguous"]) -> None:
    method = prepare_method(Seeing(), ModelConfig(), Accelerator(cpu=True), asked)
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    views: Any = {"images": {"view1": images, "index": torch.arange(2)}}
    method(views, 0.0)["loss"].backward()
    layout = torch.contiguous_format if asked == "contiguous" else torch.channels_last
    assert method.network.weight.is_contiguous(memory_format=layout)
    assert method.seen[0].is_contiguous(memory_format=layout) and torch.equal(method.seen[0], images)


def test_threads_of_a_configuration_file_are_kept_where_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_threads", "CPU: 1 of 2 cores")  # a command has set up the process
    monkeypatch.setattr(process, "_more_threads", 2)
    make_accelerator(RunConfig(output_dir="unused"))
    assert process.more_threads() == 2
    make_accelerator(RunConfig(output_dir="unused", cpu_threads=1))
    assert process.more_threads() is None
