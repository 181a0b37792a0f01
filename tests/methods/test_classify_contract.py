"""What every semi-supervised learner must keep, checked for each by its name in CLASSIFY."""

import copy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.methods.base import Batch, PseudoLabels
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.training.optim import build_optimizer

SETTINGS = ViewSettings(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0)
CLASSES, IMAGES = 4, 20
SMALL: dict[str, dict[str, Any]] = {"self_tuning": {"queue_size": 2, "projection_features": 16}}
LABELERS = {"uda", "fixmatch", "self_tuning", "flexmatch", "freematch", "softmatch", "pseudo_label"}
LABELS_ALONE = {"supervised", "linear_probe"}  # no unlabeled images
NOISY = {"vat"}  # draws noise; the engine seeds every step
TRAINED = [name for name, spec in CLASSIFY.items() if spec.fit_labels is None]  # the others make no step
CASES = [(n, b) for n in TRAINED for b in ("test_resnet", "test_vit")]
SIZE = {"test_resnet": {}, "test_vit": {"img_size": 32}}


@pytest.fixture(params=CASES, ids=[f"{n}-{b}" for n, b in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(params=TRAINED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def classifier_of(architecture: str) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **SIZE[architecture])
    return model


def build(name: str, architecture: str = "test_resnet") -> nn.Module:
    classifier = copy.deepcopy(classifier_of(architecture))
    torch.manual_seed(1)
    spec = CLASSIFY[name]
    return spec.build(classifier, replace(spec.config(), **SMALL.get(name, {})), IMAGES).train()


@cache
def batch_of(name: str) -> Batch:
    generator = torch.Generator().manual_seed(2)
    batch: dict[str, dict[str, Tensor]] = {}
    for stream, view in CLASSIFY[name].views(SETTINGS, CLASSIFY[name].config()).items():
        count = 4 if stream == "labeled" else 6
        images = ImageBatch(
            torch.randint(0, 256, (count, 40, 36, 3), dtype=torch.uint8, generator=generator),
            torch.tensor([[40, 36]]).expand(count, 2),
            torch.randperm(IMAGES, generator=generator)[:count],
            torch.zeros(count, dtype=torch.int64),
        )
        batch[stream] = view(images)
    batch["labeled"]["labels"] = torch.randint(0, CLASSES, (4,), generator=generator)
    return batch


def optimizer_of(method: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer("sgd", method, weight_decay=1e-4, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    return optimizer


def step(method: Any, optimizer: torch.optim.Optimizer, batch: Batch, progress: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    loss: Tensor = method(batch, progress)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress)
    return loss.detach()


def test_views_are_the_streams_of_the_learner_and_differ(name: str) -> None:
    batch = batch_of(name)
    assert set(batch) == ({"labeled"} if name in LABELS_ALONE else {"labeled", "unlabeled"})
    views = [v for stream in batch.values() for v in stream.values() if v.ndim == 4]
    assert all(v.shape[1:] == (3, 32, 32) and v.dtype == torch.float32 for v in views)
    assert len({v.double().sum().item() for v in views}) == len(views), "every view draws for itself"
    assert ("index" in batch.get("unlabeled", {})) == (name in LABELERS)


def test_loss_is_a_finite_scalar_and_everything_else_a_detached_one(case: tuple[str, str]) -> None:
    name, architecture = case
    losses = build(name, architecture)(batch_of(name), 0.3)
    assert losses["loss"].requires_grad
    for key, value in losses.items():
        assert value.ndim == 0 and torch.isfinite(value), key
        assert key == "loss" or not value.requires_grad, key
    wanted = {"loss", "loss_labeled"} | ({"loss_unlabeled"} if name not in LABELS_ALONE else set())
    assert wanted | ({"accepted"} if name in LABELERS else set()) <= set(losses)


def test_every_trainable_parameter_gets_a_gradient_and_no_other(case: tuple[str, str]) -> None:
    name, architecture = case
    method = build(name, architecture)
    step(method, optimizer_of(method), batch_of(name), 0.3)  # away from timm's zero-initialized residual branches
    method(batch_of(name), 0.3)["loss"].backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key
    assert not any("teacher" in key and p.requires_grad for key, p in method.named_parameters())


def test_no_state_lives_outside_the_state_dict(case: tuple[str, str]) -> None:
    name, architecture = case
    one = build(name, architecture)
    optimizer = optimizer_of(one)
    for number in range(2):
        step(one, optimizer, batch_of(name), 0.1 * number)
    other = build(name, architecture)
    other.load_state_dict(one.state_dict())
    again = optimizer_of(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(one, optimizer, batch_of(name), 0.5), step(other, again, batch_of(name), 0.5))
    after = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, after[key]), key


def test_steps_do_not_depend_on_the_clock_or_but_for_noise_a_global_stream(name: str) -> None:
    losses = []
    for seed in (5, 6):
        method = build(name)
        losses.append(step(method, optimizer_of(method), batch_of(name), 0.2, 5 if name in NOISY else seed))
    assert torch.equal(*losses)


def test_gradient_steps_lower_the_labeled_loss(name: str) -> None:
    method = build(name)
    optimizer = optimizer_of(method)
    series = []
    for number in range(5):
        series.append(method(batch_of(name), 0.0)["loss_labeled"].item())
        step(method, optimizer, batch_of(name), 0.0, number)
    assert series[-1] < series[0]


def test_the_deployed_network_is_an_average_that_starts_at_the_student(name: str) -> None:
    method: Any = build(name)
    student, deployed = dict(method.student.named_parameters()), dict(method.deployed.named_parameters())
    assert student.keys() == deployed.keys()
    before = {key: p.detach().clone() for key, p in student.items()}
    assert all(torch.equal(deployed[key], before[key]) and not deployed[key].requires_grad for key in before)
    step(method, optimizer_of(method), batch_of(name), 0.5)
    for key, start in before.items():
        torch.testing.assert_close(deployed[key].detach(), 0.1 * start + 0.9 * student[key].detach())
    for a, b in zip(method.deployed.buffers(), method.student.buffers(), strict=True):
        assert torch.equal(a, b)


@torch.inference_mode()
def test_the_deployed_network_saves_and_loads_bit_identically(case: tuple[str, str], tmp_path: Path) -> None:
    name, architecture = case
    method: Any = build(name, architecture)
    folder = save_timm_folder(method.deployed, tmp_path / "model", preprocessing=Preprocessing(32), provenance={})
    loaded = timm.create_model(architecture, pretrained=False, num_classes=CLASSES, **SIZE[architecture])
    loaded.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), method.deployed.eval()(images))


def test_pseudo_labels_are_kept_for_the_audit(name: str) -> None:
    method: Any = build(name)
    assert getattr(method, "pseudo_labels", None) is None
    losses = method(batch_of(name), 0.3)
    if name not in LABELERS:
        assert getattr(method, "pseudo_labels", None) is None
        return
    kept: PseudoLabels = method.pseudo_labels
    assert torch.equal(kept.index, batch_of(name)["unlabeled"]["index"])
    assert kept.labels.dtype == torch.int64 and kept.labels.min() >= 0 and kept.labels.max() < CLASSES
    for values in (kept.confidence, kept.weights):
        assert values.dtype == torch.float32 and values.min() >= 0 and values.max() <= 1
    assert all(len(getattr(kept, f.name)) == 6 and not getattr(kept, f.name).requires_grad for f in fields(kept))
    torch.testing.assert_close(losses["accepted"], kept.weights.mean())


class NothingIsRead(TorchDispatchMode):
    """Refuses operations for which the host waits for a GPU: reading a value, shapes that depend on values."""

    REFUSED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket.__name__
        assert operation not in self.REFUSED, operation
        if operation in ("index", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device(name: str) -> None:
    method: Any = build(name)
    with NothingIsRead():
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(()).item()
        method(batch_of(name), 0.3)["loss"].backward()
        method.after_step(0.3)


def test_a_step_that_is_not_finite_leaves_no_trace_in_the_learners_own_state(name: str) -> None:
    method: Any = build(name)
    bad = {s: {k: v * float("nan") if v.ndim == 4 else v for k, v in f.items()} for s, f in batch_of(name).items()}
    statistics = {key: value.clone() for key, value in method.student.state_dict().items()}
    method(bad, 0.3)
    method.student.load_state_dict(statistics)  # the engine puts BatchNorm statistics back
    method.after_step(0.3)
    for key, value in method.state_dict().items():
        assert torch.isfinite(value).all(), key


@pytest.mark.parametrize("name", CLASSIFY)
def test_the_hyper_parameters_say_where_they_come_from(name: str) -> None:
    config = CLASSIFY[name].config
    assert config.__doc__ and "20" in config.__doc__, "cite a paper and its year"
    for item in fields(config):
        assert "20" in item.metadata["help"] or "our choice" in item.metadata["help"], item.name
