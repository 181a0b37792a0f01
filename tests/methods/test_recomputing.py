"""Gradient checkpointing changes memory and time and nothing else, for every method of every task."""

import copy
from typing import Any

import pytest
import test_classify_contract as classify
import test_contract as pretrain
import test_segment_contract as segment
import timm
import torch
from accelerate import Accelerator
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.training.loop import LoopSettings, training_steps
from tpssl_hf.training.optim import build_optimizer

CASES = [
    *(f"pretrain/{name}" for name in PRETRAIN),
    *(f"classify/{name}" for name, spec in CLASSIFY.items() if spec.fit_labels is None),
    *(f"segment/{case}" for case in segment.CASES),
]


def build(case: str, *, recompute: bool) -> tuple[nn.Module, Any]:
    task, _, name = case.partition("/")
    if task == "pretrain":
        method: Any = pretrain.build(name, pretrain.make_backbone("test_resnet"))
        batch, network = pretrain.batch_of(name), method.deployed
    elif task == "classify":
        method, batch = classify.build(name), classify.batch_of(name)
        network = method.student
    else:
        method, batch = segment.build(name), segment.batch_of(name)
        network = method.student.backbone
    if recompute:
        recompute_activations(network)
    return method, batch


@pytest.mark.parametrize("case", CASES)
def test_steps_with_it_are_those_without(case: str) -> None:
    """Double BatchNorm updates, or a pass that autograd finds to differ from its first time, end here."""
    states, losses = [], []
    for recompute in (False, True):
        method, batch = build(case, recompute=recompute)
        optimizer = build_optimizer("sgd", method, weight_decay=0.0, momentum=0.9)
        settings = LoopSettings(2, 4, log_every=1)
        for step in training_steps(
            Accelerator(cpu=True), method, optimizer, lambda step: 0.01, iter([batch] * 2), settings, start_step=0
        ):
            losses.append({**step.losses, "images_per_second": 0.0})
        states.append(copy.deepcopy(method.state_dict()))
    assert losses[:2] == [{k: pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in line.items()} for line in losses[2:]]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-5, atol=1e-6, msg=key)


def test_it_saves_something(tiny_backbone: nn.Module) -> None:
    kept = []
    for recompute in (False, True):
        network = copy.deepcopy(tiny_backbone).train()
        if recompute:
            recompute_activations(network)
        count = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(2, 3, 32, 32))
        kept.append(count)
    assert kept[1] < 0.7 * kept[0]


def test_a_backbone_without_it_is_refused() -> None:
    with pytest.raises(InputError, match="no gradient checkpointing"):
        recompute_activations(timm.create_model("inception_v4", pretrained=False, num_classes=0))
