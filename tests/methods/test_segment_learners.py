"""The formulas of each segmentation learner against slow references, and the mistakes others have made."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpssl_hf.augment.mixing import HALF_BOX_DRAWS, box_masks, class_masks, half_boxes
from tpssl_hf.errors import InputError
from tpssl_hf.methods.segment.classmix import ClassMix, ClassMixConfig
from tpssl_hf.methods.segment.cutmix import CutMix, CutMixConfig
from tpssl_hf.methods.segment.streams import logits_of
from tpssl_hf.methods.segment.supervised import Supervised, SupervisedConfig
from tpssl_hf.methods.segment.unimatch import UniMatch, UniMatchConfig, perturbed_logits
from tpssl_hf.models.segmenter import build_segmenter

CLASSES, SIZE = 3, (4, 6)


class Given(nn.Module):
    """A segmenter whose logits are the colors of the image, times one trainable factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Any:
        return SimpleNamespace(logits=self.factor * images)


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def given(count: int) -> dict[str, dict[str, Tensor]]:
    masks = torch.randint(0, CLASSES, (2, *SIZE), generator=torch.Generator().manual_seed(7))
    masks[0, 0] = 255
    valid = torch.ones(count, *SIZE, dtype=torch.bool)
    valid[1, :, 4:] = False
    images = random(count, 3, *SIZE, seed=1)
    unlabeled = {"images": images, "distorted": images + 0.5 * random(count, 3, *SIZE, seed=2), "valid": valid}
    return {"labeled": {"images": random(2, 3, *SIZE), "masks": masks}, "unlabeled": unlabeled}


@pytest.fixture
def segmenter() -> Any:
    torch.manual_seed(0)
    names = ["ground", "cat", "dog"]
    model, _ = build_segmenter("test_resnet", init="random", class_names=names, decoder_width=16, low_level_width=8)
    with torch.no_grad():
        model.decoder.classifier.weight.mul_(50.0)  # so that it is sure of some pixels
    return model


def real_batch(*views: str, count: int = 4) -> dict[str, dict[str, Tensor]]:
    masks = torch.randint(0, CLASSES, (3, 32, 32), generator=torch.Generator().manual_seed(7))
    unlabeled = {view: random(count, 3, 32, 32, seed=number) for number, view in enumerate(views, 1)}
    valid = torch.ones(count, 32, 32, dtype=torch.bool)
    return {
        "labeled": {"images": random(3, 3, 32, 32), "masks": masks},
        "unlabeled": {**unlabeled, "valid": valid},
    }


def slow_cross_entropy(logits: Tensor, label: int) -> float:
    return -float(logits.log_softmax(0)[label])


def slow_supervised(batch: dict[str, dict[str, Tensor]]) -> float:
    images, masks = batch["labeled"]["images"], batch["labeled"]["masks"]
    terms = [slow_cross_entropy(images[b, :, i, j], int(masks[b, i, j])) for b, i, j in (masks != 255).nonzero()]
    return sum(terms) / len(terms)


def test_supervised_is_the_cross_entropy_of_what_is_not_ignored() -> None:
    batch = given(2)
    losses = Supervised(Given(), SupervisedConfig(), 0)(batch, 0.0)
    assert losses["loss"].item() == pytest.approx(slow_supervised(batch), rel=1e-5)


@pytest.mark.parametrize("color", [False, True])
def test_cutmix_by_a_slow_reference(color: bool) -> None:
    batch = given(6)
    method = CutMix(Given(), CutMixConfig(confidence=0.7, unlabeled_weight=2.0, color=color), 6)
    torch.manual_seed(3)
    boxes = box_masks(half_boxes(torch.rand(3, HALF_BOX_DRAWS), SIZE), SIZE)
    torch.manual_seed(3)
    losses = method(batch, 0.0)
    unlabeled, total, sure = batch["unlabeled"], 0.0, 0
    for b in range(3):
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                source = b + 3 if boxes[b, i, j] else b
                target = unlabeled["images"][source, :, i, j].softmax(0)
                seen = unlabeled["distorted" if color else "images"][source, :, i, j].softmax(0)
                sure += bool(target.max() >= 0.7)
                if unlabeled["valid"][source, i, j]:
                    total += float((target - seen).square().sum())
    pixels = 3 * SIZE[0] * SIZE[1]
    assert 0 < sure < pixels and (total > 0) == color
    assert losses["confident"].item() == pytest.approx(sure / pixels)
    assert losses["loss_unlabeled"].item() == pytest.approx(sure / pixels * total / pixels, rel=1e-4, abs=1e-9)
    expected = slow_supervised(batch) + 2.0 * losses["loss_unlabeled"].item()
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_cutmix_confidence_is_one_number_that_scales_all_pixels(segmenter: Any) -> None:
    batch, found = real_batch("images"), []
    method = CutMix(segmenter, CutMixConfig(confidence=0.0), 4).eval()
    with torch.no_grad():
        for parameter in method.teacher.network.parameters():
            parameter.mul_(1.2)
        sure = method.targets(batch["unlabeled"]["images"], torch.zeros(2, 32, 32, dtype=torch.bool)).amax(dim=1)
        for threshold in (0.0, sure.median().item()):
            method.config = replace(method.config, confidence=threshold)
            torch.manual_seed(0)
            found.append(method(batch, 0.0))
    assert found[0]["confident"] == 1 and 0 < found[1]["confident"] < 1 and found[1]["confident"].ndim == 0
    torch.testing.assert_close(
        found[1]["loss_unlabeled"], found[1]["confident"] * found[0]["loss_unlabeled"], rtol=1e-4, atol=0
    )


def test_cutmix_pulls_the_student_and_leaves_the_teacher_alone(segmenter: Any) -> None:
    method = CutMix(segmenter, CutMixConfig(confidence=0.2), 4).train()
    with torch.no_grad():
        for parameter in method.teacher.network.parameters():
            parameter.mul_(1.5)
    batch = real_batch("images")
    batch["labeled"]["masks"].fill_(255)  # so that only the consistency has a gradient
    method(batch, 0.0)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in segmenter.decoder.classifier.parameters())
    assert segmenter.backbone.conv1[0].weight.grad.any()
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("updates", [0, 150, 890, 40_000])
def test_cutmix_teacher_averages_every_number_also_statistics(segmenter: Any, updates: int) -> None:
    method = CutMix(segmenter, CutMixConfig(), 4).train()
    with torch.no_grad():
        for tensor in [*segmenter.parameters(), segmenter.decoder.low_level[1].running_mean]:
            tensor.add_(1.0)
    method(real_batch("images"), 0.0)
    before = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
    method.teacher.updates.fill_(updates)
    method.after_step(0.0)
    student, share = segmenter.state_dict(), max(0.01, 9 / (10 + updates))
    for key, value in method.teacher.network.state_dict().items():
        wanted = (1 - share) * before[key] + share * student[key] if value.is_floating_point() else student[key]
        torch.testing.assert_close(value, wanted, msg=key)
    assert before["decoder.low_level.1.num_batches_tracked"] == 2, "it gathers its own from two passes in each step"


def test_cutmix_needs_pairs() -> None:
    with pytest.raises(InputError, match="unlabeled_ratio to 2"):
        CutMix(Given(), CutMixConfig(), 3)(given(3), 0.0)


@pytest.mark.parametrize("color", [False, True])
def test_classmix_by_a_slow_reference(color: bool) -> None:
    batch = given(3)
    method = ClassMix(Given(), ClassMixConfig(confidence=0.7, unlabeled_weight=2.0, color=color), 3)
    unlabeled = batch["unlabeled"]
    probabilities = unlabeled["images"].softmax(1)
    labels = torch.where(unlabeled["valid"], probabilities.argmax(1), 255)
    torch.manual_seed(3)
    segments = class_masks(labels, torch.rand(3, CLASSES))
    torch.manual_seed(3)
    losses = method(batch, 0.0)
    total, sure = 0.0, 0
    for b in range(3):
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                source = b if segments[b, i, j] else (b + 1) % 3
                sure += bool(probabilities[source, :, i, j].max() >= 0.7)
                if unlabeled["valid"][source, i, j]:
                    seen = unlabeled["distorted" if color else "images"][source, :, i, j]
                    total += slow_cross_entropy(seen, int(labels[source, i, j]))
    pixels = 3 * SIZE[0] * SIZE[1]
    assert segments.any() and 0 < sure < pixels
    assert losses["confident"].item() == pytest.approx(sure / pixels) and losses["confident"].ndim == 0
    assert losses["loss_unlabeled"].item() == pytest.approx(sure / pixels * total / pixels, rel=1e-4)
    expected = slow_supervised(batch) + 2.0 * losses["loss_unlabeled"].item()
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_classmix_teacher_averages_parameters_and_keeps_its_own_statistics(segmenter: Any) -> None:
    method = ClassMix(segmenter, ClassMixConfig(), 4).train()
    for number in range(3):
        with torch.no_grad():
            for parameter in segmenter.parameters():
                parameter.add_(1.0)
        method(real_batch("images"), 0.0)
        before = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
        method.after_step(0.0)
        momentum = min(1 - 1 / (number + 1), 0.99)
        student, parameters = segmenter.state_dict(), dict(segmenter.named_parameters())
        for key, value in method.teacher.network.state_dict().items():
            mixed = momentum * before[key] + (1 - momentum) * student[key] if key in parameters else before[key]
            torch.testing.assert_close(value, mixed, msg=key)
    statistics = "decoder.low_level.1.running_mean"
    assert not torch.allclose(method.teacher.network.state_dict()[statistics], segmenter.state_dict()[statistics])


def test_logits_without_dropout_are_those_of_the_segmenter(segmenter: Any) -> None:
    images = random(4, 3, 40, 56)  # no multiple of the output stride
    segmenter.eval()
    clean, same = perturbed_logits(segmenter, images, 1, 0.0)
    torch.testing.assert_close(clean, logits_of(segmenter, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, clean[1:], rtol=1e-4, atol=1e-5)
    _, other = perturbed_logits(segmenter, images, 1, 0.5)
    assert other.shape == same.shape and not torch.allclose(other, same, atol=1e-2)


@pytest.mark.parametrize("teacher", [False, True])
def test_unimatch_loss_is_half_of_its_parts_with_their_weights(segmenter: Any, teacher: bool) -> None:
    method = UniMatch(segmenter, UniMatchConfig(confidence=0.4, teacher=teacher), 4).train()
    parts: list[float] = []
    original = method.pseudo_loss

    def keep(*arguments: Tensor) -> Tensor:
        loss = original(*arguments)
        parts.append(loss.item())
        return loss

    method.pseudo_loss = keep  # type: ignore[method-assign]
    losses = method(real_batch("images", "strong1", "strong2"), 0.0)
    strong1, strong2, feature = parts
    assert min(parts) > 0 and strong1 != strong2
    unlabeled = 0.25 * strong1 + 0.25 * strong2 + 0.5 * feature
    assert losses["loss_unlabeled"].item() == pytest.approx(unlabeled, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(0.5 * (losses["loss_labeled"].item() + unlabeled), rel=1e-5)
    assert 0 < losses["accepted"] < 1


def test_unimatch_counts_confident_pixels_among_all_that_are_not_ignored() -> None:
    method = UniMatch(Given(), UniMatchConfig(), 2)
    logits, labels = random(1, 3, 1, 4), torch.tensor([[[0, 1, 2, 255]]])
    loss = method.pseudo_loss(logits, labels, torch.tensor([[[0.96, 0.95, 0.94, 0.99]]]))
    expected = (slow_cross_entropy(logits[0, :, 0, 0], 0) + slow_cross_entropy(logits[0, :, 0, 1], 1)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_unimatch_pastes_the_next_image_with_its_labels_and_confidences() -> None:
    method = UniMatch(Given(), UniMatchConfig(), 8)
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 32, 32)
    own = (torch.full((8, 32, 32), 0), torch.full((8, 32, 32), 0.1))
    pasted = (torch.arange(8)[:, None, None].expand(8, 32, 32), torch.arange(8.0)[:, None, None].expand(8, 32, 32))
    torch.manual_seed(0)
    mixed, (labels, confidence) = method.mixture(images, own, pasted)
    boxes = mixed[:, 0] != images[:, 0]
    shares = boxes.float().mean(dim=(1, 2))
    assert 0 < (shares > 0).sum() < 8 and shares.max() < 0.45
    following = torch.arange(1, 9)[:, None, None] % 8
    assert torch.equal(mixed[:, 1], torch.where(boxes, following, images[:, 1].long()).float())
    assert torch.equal(labels, torch.where(boxes, following, 0))
    assert torch.equal(confidence, torch.where(boxes, following.float(), 0.1))


def test_unimatch_pseudo_labels_for_pasting_are_made_in_evaluation_mode_and_leave_no_trace(segmenter: Any) -> None:
    segmenter.freeze_backbone_statistics()
    method = UniMatch(segmenter, UniMatchConfig(), 4).train()
    state = {key: value.clone() for key, value in segmenter.state_dict().items()}
    images = random(2, 3, 32, 32)
    first, second = method.evaluated_logits(images), method.evaluated_logits(images[:1])
    torch.testing.assert_close(first[:1], second, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in segmenter.state_dict().items())
    assert segmenter.training and segmenter.decoder.low_level[1].training and not segmenter.backbone.bn1.training


def test_unimatch_with_a_teacher_takes_its_labels_from_the_teacher(segmenter: Any) -> None:
    method = UniMatch(segmenter, UniMatchConfig(teacher=True, confidence=0.0), 4).train()
    assert method.teacher is not None
    with torch.no_grad():
        method.teacher.network.decoder.classifier.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))  # type: ignore[union-attr]
    targets: list[Tensor] = []
    method.pseudo_loss = lambda logits, labels, confidence: targets.append(labels) or logits.sum() * 0  # type: ignore
    method(real_batch("images", "strong1", "strong2"), 0.0)
    assert len(targets) == 3 and all((labels == 1).all() for labels in targets)
    assert not math.isnan(float(method.teacher.updates))
