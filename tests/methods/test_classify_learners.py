"""The formulas of each semi-supervised learner against slow references, and the mistakes others have made."""

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.methods.classify.fixmatch import FixMatch, FixMatchConfig
from tpssl_hf.methods.classify.flexmatch import FlexMatch, FlexMatchConfig
from tpssl_hf.methods.classify.freematch import FreeMatch, FreeMatchConfig
from tpssl_hf.methods.classify.mean_teacher import MeanTeacher, MeanTeacherConfig
from tpssl_hf.methods.classify.softmatch import SoftMatch, SoftMatchConfig
from tpssl_hf.methods.classify.uda import UDA, UDAConfig

CLASSES = 3


class Given(nn.Module):
    """A classifier whose logits are the first numbers of each image, times one trainable factor."""

    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * images.flatten(1)[:, :CLASSES]


def images(logits: Tensor) -> Tensor:
    return F.pad(logits, (0, 12 - CLASSES)).view(-1, 3, 2, 2)


def given(weak: Tensor, strong: Tensor, index: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
    labeled = {"weak": images(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])), "labels": torch.tensor([0, 1])}
    index = torch.arange(len(weak)) if index is None else index
    return {"labeled": labeled, "unlabeled": {"weak": images(weak), "strong": images(strong), "index": index}}


def confident(*rows: tuple[int, float]) -> Tensor:
    """Logits that give each (class, probability), the rest evenly."""
    probabilities = torch.full((len(rows), CLASSES), 0.0)
    for row, (label, p) in zip(probabilities, rows, strict=True):
        row.fill_((1.0 - p) / (CLASSES - 1))
        row[label] = p
    return probabilities.log()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return model


def counted(model: nn.Module) -> int:
    return int(next(b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")))


def real_batch(*views: str) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(3)
    labeled = {"weak": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 0])}
    return {
        "labeled": labeled,
        "unlabeled": {v: torch.randn(6, 3, 32, 32) for v in views} | {"index": torch.arange(6)},
    }


def test_fixmatch_by_hand() -> None:
    weak = confident((0, 0.96), (1, 0.94), (2, 0.99), (0, 0.5))
    strong = confident((0, 0.5), (1, 0.5), (0, 0.6), (0, 0.5))
    method = FixMatch(Given(), FixMatchConfig(), 4)
    losses = method(given(weak, strong), 0.0)
    expected = (-math.log(0.5) - math.log(0.2)) / 4
    assert losses["loss_unlabeled"].item() == pytest.approx(expected, rel=1e-5)
    supervised = -(math.log(math.e / (math.e + 2)) + math.log(math.e**2 / (math.e**2 + 2))) / 2
    assert losses["loss"].item() == pytest.approx(supervised + expected, rel=1e-5)
    assert method.pseudo_labels is not None and method.pseudo_labels.weights.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert method.pseudo_labels.labels.tolist() == [0, 1, 2, 0] and losses["accepted"].item() == 0.5


def test_fixmatch_aligns_predictions_with_the_shares_of_the_labels() -> None:
    """By the means of Berthelot et al., 2020: q · p(y) / p̃(y), normalized; the labels are half 0, half 1."""
    weak = confident((0, 0.9), (0, 0.9), (0, 0.5), (2, 0.9))
    method = FixMatch(Given(), FixMatchConfig(alignment=1.0, threshold=0.8), 4)
    method(given(weak, weak), 0.0)
    share = 0.9  # of the first update: 1 - 1 / 10
    predicted = share * weak.softmax(dim=1).mean(dim=0) + (1 - share) / CLASSES
    labeled = (torch.tensor([0.5, 0.5, 0.0]) + 10 / CLASSES) / 11
    torch.testing.assert_close(method.predicted_shares, predicted)
    torch.testing.assert_close(method.labeled_shares, labeled)
    expected = F.normalize(weak.softmax(dim=1) * labeled / predicted, p=1.0)
    assert method.pseudo_labels is not None
    torch.testing.assert_close(method.pseudo_labels.confidence, expected.amax(dim=1))
    assert method.pseudo_labels.labels.tolist() == expected.argmax(dim=1).tolist() == [0, 0, 1, 2]


def test_fixmatch_without_alignment_takes_predictions_as_they_are() -> None:
    weak = confident((0, 0.96), (0, 0.96), (0, 0.96))
    method = FixMatch(Given(), FixMatchConfig(alignment=0.0), 3)
    method(given(weak, weak), 0.0)
    assert method.pseudo_labels is not None
    torch.testing.assert_close(method.pseudo_labels.confidence, torch.full((3,), 0.96))
    torch.testing.assert_close(method.predicted_shares, torch.full((CLASSES,), 1 / CLASSES))


def test_fixmatch_counts_rejected_images_in_the_mean() -> None:
    weak, strong = confident((0, 0.99)), confident((0, 0.5))
    alone = FixMatch(Given(), FixMatchConfig(), 9)(given(weak, strong), 0.0)["loss_unlabeled"]
    weak, strong = confident((0, 0.99), *[(1, 0.5)] * 6), confident((0, 0.5), *[(1, 0.9)] * 6)
    joined = FixMatch(Given(), FixMatchConfig(), 9)(given(weak, strong), 0.0)["loss_unlabeled"]
    torch.testing.assert_close(joined, alone / 7)


def test_fixmatch_without_any_accepted_image_has_no_unlabeled_loss_and_finite_gradients(network: nn.Module) -> None:
    method = FixMatch(network, FixMatchConfig(threshold=1.1), 6).train()
    losses = method(real_batch("weak", "strong"), 0.0)
    losses["loss"].backward()
    assert losses["loss_unlabeled"].item() == 0.0 and losses["accepted"].item() == 0.0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("make", [FixMatch, UDA, FlexMatch, FreeMatch, SoftMatch])
def test_all_images_go_through_the_network_together(make: Any, network: nn.Module) -> None:
    config = {
        FixMatch: FixMatchConfig, UDA: UDAConfig, FlexMatch: FlexMatchConfig, FreeMatch: FreeMatchConfig,
        SoftMatch: SoftMatchConfig,
    }[make]()  # fmt: skip
    make(network, config, 6).train()(real_batch("weak", "strong"), 0.0)
    assert counted(network) == 1


@pytest.mark.parametrize("make", [FixMatch, FlexMatch, FreeMatch, SoftMatch, UDA])
def test_gradients_of_the_consistency_come_through_strong_views_only(make: Any) -> None:
    config = {
        FixMatch: FixMatchConfig, UDA: UDAConfig, FlexMatch: FlexMatchConfig, FreeMatch: FreeMatchConfig,
        SoftMatch: SoftMatchConfig,
    }[make]()  # fmt: skip
    weak, strong = confident((0, 0.99), (1, 0.99)), confident((0, 0.4), (1, 0.4))
    batch = given(weak, strong)
    for view in ("weak", "strong"):
        batch["unlabeled"][view].requires_grad_()
    make(Given(), config, 2)(batch, 0.0)["loss"].backward()
    weak_gradient, strong_gradient = batch["unlabeled"]["weak"].grad, batch["unlabeled"]["strong"].grad
    assert weak_gradient is None  # its network has no BatchNorm
    assert strong_gradient is not None and strong_gradient.any()


def entropy(probabilities: Tensor) -> float:
    return -sum(p * math.log(p) for p in probabilities.tolist() if p)


def test_uda_targets_are_sharpened_and_the_threshold_is_not() -> None:
    weak, strong = confident((0, 0.79), (1, 0.81)), confident((0, 0.5), (1, 0.4))
    method = UDA(Given(), UDAConfig(), 2)
    losses = method(given(weak, strong), 0.0)
    assert method.pseudo_labels is not None and method.pseudo_labels.weights.tolist() == [0.0, 1.0]
    assert method.pseudo_labels.confidence.tolist() == pytest.approx([0.79, 0.81])
    powers = [p ** (1 / 0.4) for p in (0.095, 0.81, 0.095)]
    target = torch.tensor([p / sum(powers) for p in powers])
    expected = sum(t * math.log(t / p) for t, p in zip(target.tolist(), (0.3, 0.4, 0.3), strict=True)) / 2
    assert losses["loss_unlabeled"].item() == pytest.approx(expected, rel=1e-4)
    assert entropy(target) < entropy(torch.tensor([0.095, 0.81, 0.095]))
    blunt = UDA(Given(), UDAConfig(temperature=1.0), 2)(given(weak, strong), 0.0)
    assert blunt["loss_unlabeled"] < losses["loss_unlabeled"] - 0.05


def some_batches(count: int = 6, size: int = 8, images_in_all: int = 20) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    batches = []
    for _ in range(count):
        weak, strong = 4.0 * torch.randn(2, size, CLASSES, generator=generator)
        batches.append((weak, strong, torch.randperm(images_in_all, generator=generator)[:size]))
    return batches


def reference_loss(strong: Tensor, labels: list[int], weights: list[float]) -> float:
    terms = [-w * float(row.log_softmax(0)[y]) for row, y, w in zip(strong, labels, weights, strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("warmup", [True, False])
def test_flexmatch_follows_a_slow_reference(warmup: bool) -> None:
    method = FlexMatch(Given(), FlexMatchConfig(threshold=0.9, threshold_warmup=warmup), 20)
    memory = {number: -1 for number in range(20)}
    accepted = []
    for weak, strong, index in some_batches():
        losses = method(given(weak, strong, index), 0.0)
        sigma = [sum(label == c for label in memory.values()) for c in range(CLASSES)]
        unused = sum(label == -1 for label in memory.values()) if warmup else 0
        beta = [s / max(*sigma, unused, 1) for s in sigma]
        confidences, labels = (v.tolist() for v in weak.softmax(1).max(1))
        weights = [float(p >= 0.9 * beta[y] / (2 - beta[y])) for p, y in zip(confidences, labels, strict=True)]
        for number, p, y in zip(index.tolist(), confidences, labels, strict=True):
            if p >= 0.9:
                memory[number] = y
        assert method.pseudo_labels is not None and method.pseudo_labels.weights.tolist() == weights
        assert losses["loss_unlabeled"].item() == pytest.approx(reference_loss(strong, labels, weights), rel=1e-4)
        assert method.memory.tolist() == list(memory.values())
        accepted.append(sum(weights))
    assert accepted[0] == 8 and min(accepted) < 8, "all at first, fewer later"


def test_flexmatch_stores_the_last_confident_label_of_a_image_that_comes_twice() -> None:
    method = FlexMatch(Given(), FlexMatchConfig(), 5)
    method.remember(torch.tensor([3, 3, 3, 0, 1]), torch.tensor([1, 2, -1, -1, 0]))
    assert method.memory.tolist() == [-1, 0, -1, 2, -1]
    method.remember(torch.tensor([3, 1]), torch.tensor([-1, 1]))
    assert method.memory.tolist() == [-1, 1, -1, 2, -1]


def test_freematch_follows_a_slow_reference() -> None:
    method = FreeMatch(Given(), FreeMatchConfig(statistics_momentum=0.7, fairness_weight=0.5), 20)
    tau, mean, histogram = 1 / CLASSES, [1 / CLASSES] * CLASSES, [1 / CLASSES] * CLASSES
    seen = set()
    for k, (weak, strong, index) in enumerate(some_batches()):
        losses, m = method(given(weak, strong, index), 0.0), min(0.7, (1 + k) / (10 + k))
        method.after_step(0.0)
        rows = weak.softmax(1).tolist()
        labels = [row.index(max(row)) for row in rows]
        tau = m * tau + (1 - m) * sum(map(max, rows)) / 8
        mean = [m * p + (1 - m) * sum(row[c] for row in rows) / 8 for c, p in enumerate(mean)]
        histogram = [m * h + (1 - m) * labels.count(c) / 8 for c, h in enumerate(histogram)]
        weights = [float(max(row) >= tau * mean[y] / max(mean)) for row, y in zip(rows, labels, strict=True)]
        assert method.pseudo_labels is not None and method.pseudo_labels.weights.tolist() == weights
        assert losses["loss_unlabeled"].item() == pytest.approx(reference_loss(strong, labels, weights), rel=1e-4)
        torch.testing.assert_close(method.histogram, torch.tensor(histogram))
        kept = [row.softmax(0).tolist() for row, w in zip(strong, weights, strict=True) if w]
        named = [row.index(max(row)) for row in kept]
        found = [sum(row[c] for row in kept) / named.count(c) if c in named else 0.0 for c in range(CLASSES)]
        wanted = [p / h for p, h in zip(mean, histogram, strict=True)]
        terms = [w / sum(wanted) * math.log(f / sum(found) + 1e-12) for w, f in zip(wanted, found, strict=True)]
        assert losses["loss_fairness"].item() == pytest.approx(sum(terms), rel=1e-3)
        total = losses["loss_labeled"] + losses["loss_unlabeled"] + 0.5 * losses["loss_fairness"]
        torch.testing.assert_close(losses["loss"].detach(), total)
        seen |= set(weights)
    assert seen == {0.0, 1.0}


def test_softmatch_follows_a_slow_reference() -> None:
    n = 2.0
    method = SoftMatch(Given(), SoftMatchConfig(statistics_momentum=0.7), 20)
    mu, variance, mean = 1 / CLASSES, 1.0, [1 / CLASSES] * CLASSES
    for k, (weak, strong, index) in enumerate(some_batches()):
        losses, m = method(given(weak, strong, index), 0.0), min(0.7, (1 + k) / (10 + k))
        method.after_step(0.0)
        rows = weak.softmax(1).tolist()
        labels, tops = [row.index(max(row)) for row in rows], [max(row) for row in rows]
        average = sum(tops) / 8
        mu = m * mu + (1 - m) * average
        variance = m * variance + (1 - m) * sum((p - average) ** 2 for p in tops) / 7
        mean = [m * p + (1 - m) * sum(row[c] for row in rows) / 8 for c, p in enumerate(mean)]
        weights = []
        for row in rows:
            aligned = [p / q for p, q in zip(row, mean, strict=True)]
            top = max(aligned) / sum(aligned)
            weights.append(math.exp(-(min(top - mu, 0.0) ** 2) / (2 * variance / n**2)))
        assert method.pseudo_labels is not None and method.pseudo_labels.labels.tolist() == labels
        assert method.pseudo_labels.weights.tolist() == pytest.approx(weights, rel=1e-4)
        assert losses["loss_unlabeled"].item() == pytest.approx(reference_loss(strong, labels, weights), rel=1e-4)


@pytest.mark.parametrize(("learner", "config"), [(FreeMatch, FreeMatchConfig()), (SoftMatch, SoftMatchConfig())])
def test_statistics_of_a_short_run_are_those_of_its_predictions_not_of_their_start(learner: Any, config: Any) -> None:
    """By 0.999 alone, all of 30 steps' images are accepted: the mean confidence is still about 1 / classes."""
    method = learner(Given(), config, 20)
    for k in range(30):
        weak, strong, index = some_batches()[k % 3]
        method(given(weak, strong, index), 0.0)
        method.after_step(0.0)
    found = method.mean_confidence if learner is FreeMatch else method.confidence_mean
    tops = torch.cat([weak.softmax(1).amax(1) for weak, _, _ in some_batches()])
    assert found == pytest.approx(tops.mean().item(), abs=0.05)
    assert method.pseudo_labels.weights.min() < 0.9


def test_mean_teacher_by_hand_and_its_ramp() -> None:
    batch = given(confident((0, 0.5)), confident((0, 0.5)))
    batch["unlabeled"] = {"weak": images(confident((0, 0.5))), "weak2": images(confident((1, 0.8)))}
    method = MeanTeacher(Given(), MeanTeacherConfig(), 1)
    squares = ((0.5 - 0.1) ** 2 + (0.25 - 0.8) ** 2 + (0.25 - 0.1) ** 2) / CLASSES
    for progress, weight in ((0.0, 0.0), (0.1, 12.5), (0.4, 50.0), (0.9, 50.0)):
        losses = method(batch, progress)
        assert losses["loss_unlabeled"].item() == pytest.approx(squares, rel=1e-5)
        torch.testing.assert_close(losses["loss"].detach(), losses["loss_labeled"] + weight * losses["loss_unlabeled"])


def test_mean_teacher_pulls_the_student_and_leaves_the_teacher_alone(network: nn.Module) -> None:
    method = MeanTeacher(network, MeanTeacherConfig(), 6).train()
    batch = real_batch("weak", "weak2")
    with torch.no_grad():
        for parameter in method.teacher.network.parameters():
            parameter.mul_(1.5)
    teacher_before = [b.clone() for b in method.teacher.network.buffers()]
    losses = method(batch, 1.0)
    gradients = torch.autograd.grad(losses["loss"], list(network.parameters()))
    labeled = torch.autograd.grad(method(batch, 0.0)["loss"], list(network.parameters()))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(gradients, labeled, strict=True))
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher_before, method.teacher.network.buffers(), strict=True))


def test_mean_teacher_statistics_are_those_of_the_labeled_images_alone(network: nn.Module) -> None:
    alone = timm.create_model("test_resnet", num_classes=CLASSES)
    alone.load_state_dict(network.state_dict())
    batch = real_batch("weak", "weak2")
    MeanTeacher(network, MeanTeacherConfig(), 6).train()(batch, 0.5)
    alone.train()(batch["labeled"]["weak"])
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), alone.buffers(), strict=True))
