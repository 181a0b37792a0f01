"""Leaving out what cannot reach the loss changes neither loss nor gradient."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.methods.classify.fixmatch import FixMatch, FixMatchConfig
from tpssl_hf.methods.classify.flexmatch import FlexMatch, FlexMatchConfig
from tpssl_hf.methods.classify.freematch import FreeMatch, FreeMatchConfig
from tpssl_hf.methods.classify.passes import Passes
from tpssl_hf.methods.classify.softmatch import SoftMatch, SoftMatchConfig
from tpssl_hf.methods.classify.uda import UDA, UDAConfig
from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.classifier import split_logits

LEARNERS = [(FixMatch, FixMatchConfig), (FlexMatch, FlexMatchConfig), (FreeMatch, FreeMatchConfig)]
LEARNERS += [(SoftMatch, SoftMatchConfig), (UDA, UDAConfig)]


def frozen() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("test_resnet", num_classes=3)
    network.get_classifier().weight.data *= 20  # so that some predictions are confident and some are not
    network(torch.randn(64, 3, 32, 32))  # statistics that are not 0 and 1
    freeze_statistics(network)
    return network


def batch() -> dict[str, Any]:
    torch.manual_seed(1)
    labeled = {"weak": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    unlabeled = {view: torch.randn(12, 3, 32, 32) for view in ("weak", "strong")} | {"index": torch.arange(12)}
    return {"labeled": labeled, "unlabeled": unlabeled}


class OnePass(Passes):
    """Everything in one pass with a gradient, whatever BatchNorm does."""

    def __init__(self, student: nn.Module, batch: dict[str, Any]) -> None:
        views = batch["unlabeled"]["weak"], batch["unlabeled"]["strong"]
        logits, weak, strong = split_logits(student, batch["labeled"]["weak"], *views)
        self.weak, self._joint = weak.detach(), (logits, strong)


def gradients(make: Any, config: Any) -> tuple[dict[str, float], list[Tensor]]:
    network = frozen()
    method = make(network, config(), 12).train()
    losses = method(batch(), 0.5)
    losses["loss"].backward()
    return {name: value.item() for name, value in losses.items()}, [
        p.grad for p in network.parameters() if p.grad is not None
    ]


@pytest.mark.parametrize(("make", "config"), LEARNERS)
def test_loss_and_gradient_are_those_of_one_pass(make: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, found = gradients(make, config)
    monkeypatch.setattr(f"{make.__module__}.Passes", OnePass)
    expected_losses, expected = gradients(make, config)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class Seen(nn.Module):
    """Counts the images that go through a network, with and without a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.learned, self.looked = network, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.learned += len(images)
        else:
            self.looked += len(images)
        return self.network(images)


def test_images_of_weight_0_only_fill_a_group_where_statistics_are_frozen() -> None:
    seen = Seen(frozen())
    passes = Passes(seen, batch())
    weights = torch.zeros(12)
    weights[[2, 11]] = torch.tensor([1.0, 0.3])
    logits, strong = passes.learn(weights)
    assert (seen.looked, seen.learned) == (12, 4 + 8)
    assert not passes.weak.requires_grad and logits.shape == (4, 3)
    computed = strong.any(dim=1)
    assert computed[[2, 11]].all() and computed.sum() == 8
    expected = seen.network(batch()["unlabeled"]["strong"])
    torch.testing.assert_close(strong[computed], expected[computed], rtol=1e-4, atol=1e-5)


def test_a_last_group_has_no_more_images_than_there_are() -> None:
    seen = Seen(frozen())
    Passes(seen, batch()).learn(torch.ones(12))
    assert seen.learned == 4 + 12


def test_no_image_accepted_still_learns_from_the_labeled() -> None:
    logits, strong = Passes(frozen(), batch()).learn(torch.zeros(12))
    assert logits.requires_grad and strong.shape == (12, 3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()


def test_all_images_share_the_statistics_of_a_batch_where_they_are_not_frozen() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3).train()
    seen = Seen(copy.deepcopy(network))
    passes = Passes(seen, batch())
    passes.learn(torch.zeros(12))
    assert (seen.looked, seen.learned) == (0, 4 + 12 + 12)


@pytest.mark.parametrize(("make", "config"), LEARNERS)
def test_a_weak_view_that_gives_nothing_finite_makes_the_loss_nan(make: Any, config: Any) -> None:
    broken = batch()
    broken["unlabeled"]["weak"][5, 0, 0, 0] = torch.nan
    losses = make(frozen(), config(), 12).train()(broken, 0.5)
    assert not torch.isfinite(losses["loss"])
