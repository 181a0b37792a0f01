import os

# Where it is set, every process that xdist or a test starts compiles all of torch and transformers: half of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Before any import of torch or the Hub's client: few sleeping threads, and no network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
# It has float32 computed in bfloat16 on CPUs that can, and numbers are compared here.
os.environ.pop("DNNL_DEFAULT_FPMATH_MODE", None)
os.environ.pop("ONEDNN_DEFAULT_FPMATH_MODE", None)

from collections.abc import Iterator

import pytest
import timm
import torch
from forked_runs import Forks
from torch import nn


@pytest.fixture
def tiny_backbone() -> nn.Module:
    """A timm ResNet of 0.1 M parameters with random weights, the same in every test."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    return model


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported everything and forks others, which then need not."""
    server = Forks()
    yield server
    server.close()
