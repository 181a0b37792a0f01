"""VAT and Self-Tuning, the learners with gradients of images and with a memory of keys."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.losses.semi_supervised import class_group_contrast
from tpssl_hf.methods.classify.self_tuning import ClassQueue, SelfTuning, SelfTuningConfig
from tpssl_hf.methods.classify.vat import VAT, VATConfig

CLASSES = 3


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_resnet", num_classes=CLASSES)
    return model


def batch_of(*views: str) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(3)
    labeled = {v: torch.randn(4, 3, 32, 32) for v in views} | {"labels": torch.tensor([0, 1, 2, 0])}
    return {
        "labeled": labeled,
        "unlabeled": {v: torch.randn(6, 3, 32, 32) for v in views} | {"index": torch.arange(6)},
    }


def divergence(method: VAT, images: Tensor, perturbation: Tensor) -> float:
    with torch.no_grad():
        targets = method.student(images).softmax(1)
        return method.divergence(targets, images + perturbation).item()


def test_the_radius_is_93_for_images_of_224_pixels() -> None:
    assert VATConfig().radius * math.sqrt(3 * 224 * 224) == pytest.approx(93.0, rel=1e-3)


@pytest.mark.parametrize("side", [32, 48])
def test_vat_perturbs_every_image_by_the_radius(network: nn.Module, side: int) -> None:
    method = VAT(network, VATConfig(radius=0.3), 6).train()
    images = torch.randn(5, 3, side, side)
    found = method.perturbation(images, method.student(images).detach().softmax(1))
    norms = found.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((5,), 0.3 * math.sqrt(3 * side * side)), rtol=1e-4, atol=0)
    assert not found.requires_grad and all(p.grad is None for p in method.parameters())


def test_vat_perturbation_changes_predictions_more_than_random_ones(network: nn.Module) -> None:
    method = VAT(network, VATConfig(), 6).eval()
    images = torch.randn(6, 3, 32, 32)
    found = method.perturbation(images, method.student(images).detach().softmax(1))
    norm = found[0].norm()
    random = [
        divergence(method, images, norm * F.normalize(torch.randn(6, 3072), dim=1).view_as(images)) for _ in range(20)
    ]
    assert divergence(method, images, found) > 2.0 * max(random)


def test_vat_loss_is_its_parts_with_the_ramp_on_the_divergence_only(network: nn.Module) -> None:
    method = VAT(network, VATConfig(), 6).train()
    for progress, weight in ((0.0, 0.0), (0.2, 0.15), (0.8, 0.3)):
        losses = method(batch_of("weak"), progress)
        parts = losses["loss_labeled"] + weight * losses["loss_unlabeled"] + 0.06 * losses["entropy"]
        torch.testing.assert_close(losses["loss"].detach(), parts)
        assert losses["loss_unlabeled"] > 0


def test_vat_statistics_are_those_of_the_labeled_images_alone(network: nn.Module) -> None:
    alone = timm.create_model("test_resnet", num_classes=CLASSES)
    alone.load_state_dict(network.state_dict())
    batch = batch_of("weak")
    VAT(network, VATConfig(), 6).train()(batch, 0.5)["loss"].backward()
    alone.train()(batch["labeled"]["weak"])
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), alone.buffers(), strict=True))


@pytest.mark.parametrize("term", ["unlabeled_weight", "entropy_weight"])
def test_vat_clean_predictions_get_gradients_from_the_entropy_only(network: nn.Module, term: str) -> None:
    config = replace(VATConfig(), **{"unlabeled_weight": 0.0, "entropy_weight": 0.0, term: 1.0})
    logits: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        logits.append(output)

    network.get_classifier().register_forward_hook(keep)  # type: ignore[operator]
    VAT(network, config, 6).train()(batch_of("weak"), 1.0)["loss"].backward()
    labeled, clean, _, perturbed = (values.grad.abs().sum().item() for values in logits)  # type: ignore[union-attr]
    assert labeled > 0
    assert (clean > 0, perturbed > 0) == (term == "entropy_weight", term == "unlabeled_weight")


def test_vat_sees_unlabeled_images_in_float32_under_autocast(network: nn.Module) -> None:
    method = VAT(network, VATConfig(), 6).train()
    seen: list[torch.dtype] = []
    network.get_classifier().register_forward_hook(lambda m, i, o: seen.append(o.dtype))  # type: ignore[operator]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method(batch_of("weak"), 1.0)["loss"].backward()
    assert seen == [torch.bfloat16] + 3 * [torch.float32]


@pytest.fixture
def tuning(network: nn.Module) -> SelfTuning:
    torch.manual_seed(1)
    return SelfTuning(network, SelfTuningConfig(queue_size=2, projection_features=8), 6).train()


def units(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_queue_holds_the_last_keys_of_a_class_after_two_batches() -> None:
    queue = ClassQueue(2, 3, 4)
    before, first, second = queue.keys.clone(), units(2, 1), units(2, 2)
    queue.enqueue(first, torch.tensor([1, 1]))
    assert torch.equal(queue.keys[1], torch.stack([first[0], first[1], before[1, 2]]))
    queue.enqueue(second, torch.tensor([1, 1]))
    assert torch.equal(queue.keys[1], torch.stack([second[1], first[1], second[0]]))
    assert torch.equal(queue.keys[0], before[0]) and queue.positions.tolist() == [0, 1]


def test_queue_equals_a_loop_that_stores_one_key_after_the_other() -> None:
    queue, generator = ClassQueue(3, 4, 4), torch.Generator().manual_seed(5)
    slow, position = queue.keys.clone(), [0, 0, 0]
    for number in range(6):
        keys, labels = units(13, number), torch.randint(0, 3, (13,), generator=generator)
        keys[number, 0] = float("nan")
        queue.enqueue(keys, labels)
        for key, label in zip(keys, labels.tolist(), strict=True):
            if torch.isfinite(key).all():
                slow[label, position[label] % 4] = key
                position[label] += 1
        assert torch.equal(queue.keys, slow)
        assert queue.positions.tolist() == [p % 4 for p in position]


def test_self_tuning_compares_with_the_queue_of_before_and_stores_afterwards(tuning: SelfTuning) -> None:
    batch, before = batch_of("strong", "strong2"), tuning.queue.keys.clone()
    stored = {key: value.clone() for key, value in tuning.state_dict().items()}
    losses = tuning(batch, 0.0)
    assert torch.equal(tuning.queue.keys, before)
    assert tuning.pseudo_labels is not None and tuning.pseudo_labels.weights.tolist() == [1.0] * 6
    labels = tuning.pseudo_labels.labels
    tuning.load_state_dict(stored)
    queries, logits = tuning.query(batch["labeled"]["strong"])
    keys = tuning.key(batch["labeled"]["strong2"])
    torch.testing.assert_close(losses["loss_labeled"], F.cross_entropy(logits, batch["labeled"]["labels"]).detach())
    expected = class_group_contrast(queries, keys, batch["labeled"]["labels"], before, 0.07)
    torch.testing.assert_close(losses["loss_contrast"], expected.detach())
    queries_u, logits_u = tuning.query(batch["unlabeled"]["strong"])
    keys_u = tuning.key(batch["unlabeled"]["strong2"])
    assert torch.equal(labels, logits_u.argmax(1))
    expected = class_group_contrast(queries_u, keys_u, labels, before, 0.07)
    torch.testing.assert_close(losses["loss_unlabeled"], expected.detach())
    tuning.after_step(0.0)
    filled = ClassQueue(CLASSES, 2, 8)
    filled.enqueue(torch.cat([keys, keys_u]), torch.cat([batch["labeled"]["labels"], labels]))
    torch.testing.assert_close(tuning.queue.keys, filled.keys)
    after = tuning.queue.keys.clone()
    tuning.after_step(0.0)
    assert torch.equal(tuning.queue.keys, after), "keys are stored once"


def test_self_tuning_key_network_is_the_average_of_backbone_and_projector(tuning: SelfTuning) -> None:
    before = tuning.key_projector.network.weight.clone()
    with torch.no_grad():
        tuning.projector.weight.add_(1.0)
    tuning(batch_of("strong", "strong2"), 0.0)["loss"].backward()
    tuning.after_step(0.0)
    torch.testing.assert_close(tuning.key_projector.network.weight, before + 0.9)
    assert tuning.teacher.updates == 1 and tuning.key_projector.updates == 1
    assert all(p.grad is None for m in (tuning.teacher, tuning.key_projector) for p in m.parameters())
    assert torch.equal(
        tuning.key(batch_of("strong")["labeled"]["strong"]),
        F.normalize(
            tuning.key_projector.network(
                tuning.deployed.forward_head(
                    tuning.deployed.forward_features(batch_of("strong")["labeled"]["strong"]), pre_logits=True
                )
            ),
            dim=1,
        ),
    )


def test_self_tuning_pseudo_labeled_images_move_the_backbone_but_not_the_classifier(tuning: SelfTuning) -> None:
    batch = batch_of("strong", "strong2")
    queries, logits = tuning.query(batch["unlabeled"]["strong"])
    tuning.contrast(queries, tuning.key(batch["unlabeled"]["strong2"]), logits.argmax(1)).backward()
    assert tuning.projector.weight.grad is not None and tuning.projector.weight.grad.any()
    assert tuning.student.conv1[0].weight.grad.any()  # type: ignore[index, union-attr]
    assert tuning.student.get_classifier().weight.grad is None  # type: ignore[operator]
