"""What is particular to the two baselines: a frozen backbone, and pseudo-labels of the view that learns from them."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.pseudo_label import PseudoLabelConfig
from tpssl_hf.training.optim import build_optimizer

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = {
    "labeled": {"weak": IMAGES, "labels": LABELS},
    "unlabeled": {"weak": IMAGES.flip(0), "index": torch.arange(6)},
}


def build(name: str, config: Any = None) -> Any:
    torch.manual_seed(0)
    classifier = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    spec = CLASSIFY[name]
    return spec.build(classifier, config or spec.config(), 6).train()


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_a_probe_changes_nothing_but_its_classifier() -> None:
    method = build("linear_probe")
    before = copy.deepcopy(method.state_dict())
    optimizer = build_optimizer("sgd", method, weight_decay=1e-2, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        method(BATCH, 0.5)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.5)
    head = {"student.fc.weight", "student.fc.bias"}
    assert {key for key, p in method.named_parameters() if p.requires_grad} == head
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == head | {"teacher.network.fc.weight", "teacher.network.fc.bias", "teacher.updates"}


def test_a_probe_reads_the_features_the_evaluated_network_has() -> None:
    method = build("linear_probe")
    assert not any(module.training for module in method.student.modules()) and method.training
    with torch.no_grad():
        expected = F.cross_entropy(method.deployed.eval()(IMAGES), LABELS)
    torch.testing.assert_close(method(BATCH, 0.0)["loss_labeled"], expected)


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.4, 0.9])
def test_pseudo_labels_weigh_what_their_ramp_says(progress: float) -> None:
    method = build("pseudo_label", PseudoLabelConfig(threshold=0.0, unlabeled_weight=2.0))
    losses = method(BATCH, progress)
    extra = 2.0 * min(1.0, progress / 0.4) * losses["loss_unlabeled"]
    torch.testing.assert_close(losses["loss"].detach(), losses["loss_labeled"] + extra)
    assert losses["accepted"] == 1.0


def test_the_unlabeled_loss_is_the_mean_over_all_images_of_the_confident_ones() -> None:
    method = build("pseudo_label")
    method(BATCH, 0.0)
    threshold = float(method.pseudo_labels.confidence.sort().values[3])  # the three surest are accepted
    method = build("pseudo_label", PseudoLabelConfig(threshold=threshold))
    with torch.no_grad():
        logits = copy.deepcopy(method.student)(BATCH["unlabeled"]["weak"]).double()
    losses = method(BATCH, 1.0)
    confidence = logits.softmax(1).max(1).values
    slow = sum(-value.log().item() for value in confidence if value >= threshold - 1e-7) / 6
    assert losses["accepted"] == 0.5 and losses["loss_unlabeled"].item() == pytest.approx(slow, rel=1e-5)


def test_unlabeled_images_leave_the_running_statistics_alone() -> None:
    method, alone = build("pseudo_label"), build("supervised")
    method(BATCH, 0.5)
    alone(BATCH, 0.5)
    for one, other in zip(norms(method.student), norms(alone.student), strict=True):
        assert torch.equal(one.running_mean, other.running_mean) and one.num_batches_tracked == 1
