"""Learners of several labels an image: their losses by hand, and which learners these are."""

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn

from tpssl_hf.losses.semi_supervised import labeled_cross_entropy, masked_binary_cross_entropy
from tpssl_hf.methods.base import Batch
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.fixmatch import FixMatch, FixMatchConfig

ABLE = sorted(name for name, spec in CLASSIFY.items() if spec.several_labels)


def test_binary_cross_entropy_is_over_what_is_known() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [5.0, -math.log(3.0)]], requires_grad=True)
    loss = labeled_cross_entropy(logits, torch.tensor([[1, -1], [-1, 1]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    loss.backward()
    assert logits.grad is not None and logits.grad[0, 1] == logits.grad[1, 0] == 0 != logits.grad[0, 0]
    assert labeled_cross_entropy(logits, torch.full((2, 2), -1)).item() == 0


def test_one_label_an_image_has_the_cross_entropy_it_had() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    assert torch.equal(labeled_cross_entropy(logits, labels), nn.functional.cross_entropy(logits, labels))


def test_masked_binary_cross_entropy_divides_by_all_labels() -> None:
    logits = torch.tensor([[math.log(3.0), 9.0], [0.0, -math.log(3.0)]])
    labels, weights = torch.tensor([[True, False], [False, False]]), torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    expected = (math.log(4 / 3) + 0.5 * math.log(2) + math.log(4 / 3)) / 4
    assert masked_binary_cross_entropy(logits, labels, weights).item() == pytest.approx(expected)


def batch_of(labels: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    weak, strong = torch.randn(2, 6, 3, 32, 32, generator=generator)
    return {
        "labeled": {"weak": torch.randn(len(labels), 3, 32, 32, generator=generator), "labels": labels},
        "unlabeled": {"weak": weak, "strong": strong, "index": torch.arange(6)},
    }


@pytest.mark.parametrize("frozen", [True, False])
def test_pseudo_labels_are_what_the_weak_view_is_sure_of_either_way(frozen: bool) -> None:
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=3)
    nn.init.normal_(student.get_classifier().weight)
    student.train()
    if frozen:  # then weak views are seen without a gradient, and strong ones of no weight not at all
        for layer in student.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
    batch = batch_of(torch.tensor([[1, 0, -1], [0, 1, 1]]))
    everything = torch.cat([batch["labeled"]["weak"], batch["unlabeled"]["weak"], batch["unlabeled"]["strong"]])
    with torch.no_grad():  # logits of mean 0 and deviation 2, so that some are sure
        head, logits = student.get_classifier(), copy.deepcopy(student)(everything)
        head.bias.copy_((head.bias - logits.mean(dim=0)) * 2 / logits.std(dim=0))
        head.weight.mul_(2 / logits.std(dim=0)[:, None])
        labeled, weak, strong = copy.deepcopy(student)(everything).split([2, 6, 6])
    likely = weak.sigmoid()
    expected, having, counted = 0.0, 0, 0
    for image in range(6):
        for label in range(3):
            value, logit = likely[image, label].item(), strong[image, label]
            if value >= 0.8:
                having, counted = having + 1, counted + 1
                expected += -nn.functional.logsigmoid(logit).item()
            elif value <= 0.2:
                counted += 1
                expected += -nn.functional.logsigmoid(-logit).item()
    method = FixMatch(student, FixMatchConfig(threshold=0.8, unlabeled_weight=2.0), 6)
    found = method(batch, 0.0)
    assert 0 < having < counted < 18
    assert found["loss_unlabeled"].item() == pytest.approx(expected / 18, rel=1e-4)
    own = labeled_cross_entropy(labeled, batch["labeled"]["labels"])
    assert found["loss"].item() == pytest.approx(own.item() + 2 * expected / 18, rel=1e-4)
    assert found["accepted"].item() == pytest.approx(counted / 18)
    assert found["accepted_having"].item() == pytest.approx(having / 18)
    assert method.pseudo_labels is None


@pytest.mark.parametrize("name", ABLE)
def test_learners_take_labels_that_are_not_known(name: str) -> None:
    torch.manual_seed(0)
    spec = CLASSIFY[name]
    method = spec.build(timm.create_model("test_resnet", num_classes=3), spec.config(), 6).train()
    loss = method(batch_of(torch.tensor([[1, 0, -1], [0, -1, 1]])), 0.0)["loss"]
    loss.backward()
    gradients = [p.grad for p in method.parameters() if p.requires_grad]
    assert loss.isfinite() and all(g is not None and g.isfinite().all() for g in gradients)


def test_these_learners_are_able() -> None:
    assert ABLE == ["fixmatch", "linear_probe", "supervised"]
