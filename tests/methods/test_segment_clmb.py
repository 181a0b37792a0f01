"""CLMB: its losses against loops over pixels, what it remembers, and the two slips of the official code."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tpssl_hf.methods.segment.clmb import CLMB, CLMBConfig, cell_labels, pseudo_ramp
from tpssl_hf.methods.segment.clmb_bank import bank_contrast, normalized_weights, sample_by_class
from tpssl_hf.models.segmenter import build_segmenter

CLASSES, WIDTH = 3, 8
SMALL = CLMBConfig(projection_features=WIDTH, bank_size=5, bank_confidence=0.3, pixels_per_class=400)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(config: CLMBConfig) -> CLMB:
    torch.manual_seed(0)
    names = ["ground", "cat", "dog"]
    segmenter, _ = build_segmenter(
        "test_resnet", init="random", class_names=names, decoder_width=16, low_level_width=8
    )
    return CLMB(segmenter, config, 4).train()


def batch_of() -> dict[str, dict[str, Tensor]]:
    still = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    masks = torch.randint(0, CLASSES, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    masks = masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    masks[0, :8] = 255
    labeled = {"images": random(3, 3, 32, 32), "masks": masks, "zoom": still.expand(3, 4)}
    unlabeled = {name: random(2, 3, 32, 32, seed=n) for n, name in enumerate(("images", "distorted1", "distorted2"))}
    valid = torch.ones(2, 32, 32, dtype=torch.bool)
    return {
        "labeled": labeled,
        "unlabeled": {**unlabeled, "valid": valid, "zoom1": still.expand(2, 4), "zoom2": still.expand(2, 4)},
    }


def test_the_bank_of_a_run_stays_within_its_size() -> None:
    method = build(SMALL)
    for _ in range(4):
        method(batch_of(), 0.5)["loss"].backward()
        method.after_step(0.5)
    assert method.bank.rows.shape == (CLASSES, 5, WIDTH) and method.bank.filled.any()
    assert CLMBConfig().bank_size == 256


@torch.no_grad()
def slow_contrast(
    predictions: Tensor, present: Tensor, scores: Tensor, memory: Tensor, filled: Tensor, memory_scores: Tensor | None
) -> float:
    total = 0.0
    for c in range(len(predictions)):
        left = [i for i in range(present.shape[1]) if present[c, i]]
        right = [j for j in range(filled.shape[1]) if filled[c, j]]
        if len(left) <= 1 or len(right) <= 1:
            continue
        w = [1 / (1 + math.exp(-float(scores[c, i]))) for i in left]
        v = [1.0 if memory_scores is None else 1 / (1 + math.exp(-float(memory_scores[c, j]))) for j in right]
        w, v = [len(w) * value / sum(w) for value in w], [len(v) * value / sum(v) for value in v]
        pairs = [
            a * b * (1 - float(F.cosine_similarity(predictions[c, i], memory[c, j], dim=0)))
            for a, i in zip(w, left, strict=True)
            for b, j in zip(v, right, strict=True)
        ]
        total += sum(pairs) / len(pairs)
    return total / len(predictions)


@pytest.mark.parametrize("alike", [False, True])
def test_the_contrast_is_the_weighted_mean_over_pairs(alike: bool) -> None:
    classes = 4
    predictions, memory = (
        random(classes, 6, WIDTH).requires_grad_(),
        random(classes, 5, WIDTH, seed=1).requires_grad_(),
    )
    present, filled = torch.ones(classes, 6, dtype=torch.bool), torch.ones(classes, 5, dtype=torch.bool)
    present[0, 3:], filled[0, 4:] = False, False
    present[2, 1:] = False  # one prediction
    filled[3, 1:] = False  # one memory
    scores, memory_scores = random(classes, 6, seed=2), random(classes, 5, seed=3)
    used = torch.zeros_like(memory_scores) if alike else memory_scores
    weights, memory_weights = normalized_weights(scores, present), normalized_weights(used, filled)
    loss = bank_contrast(predictions, present, weights, memory, filled, memory_weights)
    expected = slow_contrast(predictions, present, scores, memory, filled, None if alike else memory_scores)
    assert expected > 0 and loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert memory.grad is None and predictions.grad is not None
    assert predictions.grad[:2].any() and not predictions.grad[2:].any()


@pytest.mark.parametrize("quirks", [False, True])
def test_memories_weigh_alike_only_with_the_official_slip(quirks: bool) -> None:
    method = build(replace(SMALL, ref_quirks=quirks))
    memory = random(CLASSES, 5, WIDTH, seed=1)
    method.bank.enqueue(memory, torch.ones(CLASSES, 5, dtype=torch.bool))
    features, labels = random(2, WIDTH, 4, 4), torch.arange(16).view(1, 4, 4).expand(2, 4, 4) % CLASSES
    torch.manual_seed(4)
    loss = method.contrast(features, labels)
    torch.manual_seed(4)
    rows, present = sample_by_class(features, labels, CLASSES, 400)
    scores = method.selectors(rows, present)
    memory_scores = None
    if not quirks:
        assert method.memory_selectors is not None
        memory_scores = method.memory_selectors(method.bank.rows, method.bank.filled)
    expected = slow_contrast(rows, present, scores, method.bank.rows, method.bank.filled, memory_scores)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert (method.memory_selectors is None) == quirks


def test_an_empty_bank_gives_no_contrast() -> None:
    method = build(SMALL)
    losses = method(batch_of(), 0.5)
    assert losses["loss_contrast"].item() == 0.0 and losses["bank_filled"].item() == 0.0


def test_memories_are_what_the_teacher_is_right_and_sure_about() -> None:
    method = build(replace(SMALL, bank_rows_per_image=99, bank_size=400))
    images, cells = random(3, 3, 32, 32), torch.randint(0, CLASSES, (3, 8, 8), generator=torch.Generator())
    method.teacher.network.eval()  # so that the pass below gives the same
    method.teacher_projector.network.eval()
    with torch.no_grad():
        method.teacher.network.decoder.classifier.weight.mul_(1000.0)  # type: ignore[union-attr, operator]
        coarse, features = method.teacher.network.decode(images)  # type: ignore[operator]
        projections = method.teacher_projector.network(features)
    confidence, found = coarse.softmax(1).max(1)
    for threshold in (0.0, confidence.median().item()):
        method.config = replace(method.config, bank_confidence=threshold)
        rows, present = method.memories(images, cells)
        right = (found == cells) & (confidence > threshold)
        for c in range(CLASSES):
            wanted = projections.permute(0, 2, 3, 1)[right & (cells == c)]
            assert present[c].sum() == min(len(wanted), 297)
            torch.testing.assert_close(
                rows[c, present[c]].sum(0), wanted.sum(0), rtol=1e-3, atol=1e-3, msg=f"class {c}"
            )
    assert 0 < right.sum() < (found == cells).sum()


@pytest.mark.parametrize("quirks", [False, True])
def test_memories_are_those_of_highest_score_or_with_the_official_slip_of_lowest(quirks: bool) -> None:
    method: Any = build(replace(SMALL, bank_rows_per_image=2, bank_confidence=0.0, ref_quirks=quirks))
    method.selectors.forward = lambda rows, present: rows[:, :, 0]
    method.teacher.network.eval()
    method.teacher_projector.network.eval()
    images = random(3, 3, 32, 32)
    with torch.no_grad():
        coarse, features = method.teacher.network.decode(images)
        scores, found = method.teacher_projector.network(features)[:, 0], coarse.argmax(dim=1)
    rows, present = method.memories(images, found)
    assert present.any()
    for c in range(CLASSES):
        best = scores[found == c].sort(descending=not quirks).values[:5]  # the size of the bank
        torch.testing.assert_close(rows[c, present[c], 0], best, rtol=1e-4, atol=1e-5)


def test_each_step_adds_so_many_features_of_a_class_per_labeled_image() -> None:
    method = build(replace(SMALL, bank_rows_per_image=2, bank_size=100, bank_confidence=0.0))
    rows, present = method.memories(random(3, 3, 32, 32), torch.zeros(3, 8, 8, dtype=torch.int64))
    assert rows.shape == (CLASSES, 6, WIDTH) and not present[1:].any()


def test_pseudo_labels_fade_in_and_stay() -> None:
    assert pseudo_ramp(0.0, 0.1) == pytest.approx(math.exp(-5))
    assert pseudo_ramp(0.05, 0.1) == pytest.approx(math.exp(-1.25))
    assert pseudo_ramp(0.1, 0.1) == pseudo_ramp(1.0, 0.1) == pseudo_ramp(0.0, 0.0) == 1.0


def test_the_loss_is_its_parts_with_their_weights() -> None:
    method = build(replace(SMALL, contrast_start=0.2, bank_start=0.1))
    for progress, contrast in ((0.05, 0.0), (0.15, 0.0), (0.5, 0.1), (0.6, 0.1)):
        losses = method(batch_of(), progress)
        parts = losses["loss_labeled"] + pseudo_ramp(progress, 0.2) * losses["loss_unlabeled"]
        parts = parts + 0.01 * losses["entropy"] + contrast * losses["loss_contrast"]
        torch.testing.assert_close(losses["loss"].detach(), parts)
        method.after_step(progress)
        assert method.bank.filled.any() == (progress >= 0.1)
    assert losses["loss_contrast"] > 0


def test_images_and_their_labels_are_mixed_and_moved_together() -> None:
    method = build(SMALL)
    blocks = torch.randint(0, CLASSES, (20, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    images = 1.0 + labels[:, None].expand(-1, 3, -1, -1)
    weights = 0.1 + labels
    moves = torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 10 + [[1.0, 0.0, 0.0, -1.0]] * 10)
    torch.manual_seed(1)
    mixed, found, carried = method.augmented(images, labels, moves, 1.0, weights)
    torch.testing.assert_close(mixed[:, 0], 1.0 + found, rtol=0, atol=1e-3)
    torch.testing.assert_close(carried, 0.1 + found)
    following = labels.roll(-1, 0)
    assert (found[:10] != following[:10]).any(), "something was pasted"
    unmixed, same, _ = method.augmented(images, labels, moves, 0.0)
    assert torch.equal(same[:10], following[:10]) and torch.equal(same[10:], following[10:].flip(-1))
    assert unmixed.shape == images.shape


def test_pseudo_labels_are_weighed_by_a_power_of_their_confidence() -> None:
    method = build(SMALL)
    batch = batch_of()
    batch["unlabeled"]["valid"][0, 5] = False
    method.teacher.network.eval()
    images, masks, weights = method.augmented_batch(batch["labeled"], batch["unlabeled"], False)
    confidence, labels = method.teacher.network(batch["unlabeled"]["images"]).logits.softmax(1).max(1)
    labels[0, 5] = 255
    order = [1, 0]  # without mixing each image stands in the place of the one before
    for start in (3, 5):
        torch.testing.assert_close(weights[start : start + 2], confidence[order] ** 6, rtol=1e-3, atol=1e-5)
        assert torch.equal(masks[start : start + 2], labels[order])
    assert torch.equal(masks[:3].sort(dim=0).values, batch["labeled"]["masks"].sort(dim=0).values)
    torch.testing.assert_close(images[5:7], batch["unlabeled"]["distorted2"][order], rtol=1e-3, atol=1e-3)
    assert not torch.equal(images[3:5], images[5:7])


def test_the_teacher_follows_by_a_rising_momentum_and_in_no_statistics() -> None:
    method: Any = build(SMALL)
    method.teacher.updates.fill_(1_000_000)
    with torch.no_grad():
        for tensor in (*method.student.parameters(), *method.projector.parameters(), *method.student.buffers()):
            tensor.add_(1)
    before = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
    method.after_step(0.5)
    parameters = dict(method.student.named_parameters())
    for key, value in method.teacher.network.state_dict().items():
        share = 0.0025 if key in parameters else 0.0
        torch.testing.assert_close(
            (value - before[key]).double(), torch.full_like(value, share).double(), atol=1e-5, rtol=1e-3
        )
    for own, other in zip(method.teacher_projector.network.parameters(), method.projector.parameters(), strict=True):
        torch.testing.assert_close(other.detach() - own, torch.full_like(own, 0.1))  # its first update takes 0.9


def test_cells_have_the_label_in_their_middle_and_none_beyond_the_image() -> None:
    labels = torch.arange(10 * 13).view(1, 10, 13) % 250
    cells = cell_labels(labels, (4, 4))
    assert cells.shape == (1, 4, 4)
    assert torch.equal(cells[0, :2, :3], labels[0, [2, 6]][:, [2, 6, 10]])
    assert (cells[0, 2:] == 255).all() and (cells[0, :, 3] == 255).all()
