"""What every segmentation learner must keep, checked for each by its name in SEGMENT."""

import copy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSemanticSegmentation

from tpssl_hf.augment.segment_views import SegmentViewSettings
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.methods.base import Batch
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.segmenter import build_segmenter, save_segmenter
from tpssl_hf.training.optim import build_optimizer

SETTINGS = SegmentViewSettings((32, 48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0, scale=(0.5, 1.5))
NAMES = ["ground", "cat", "dog", "cow"]
CLMB: dict[str, Any] = {"projection_features": 8, "bank_size": 6, "bank_confidence": 0.2, "pixels_per_class": 32}
# name of the case -> learner and settings; confidences that untrained networks reach
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {}),
    "cutmix": ("cutmix", {"confidence": 0.2}),
    "cutmix in color": ("cutmix", {"confidence": 0.2, "color": True}),
    "classmix": ("classmix", {"confidence": 0.2}),
    "classmix in color": ("classmix", {"confidence": 0.2, "color": True}),
    "clmb": ("clmb", CLMB),
    "clmb with quirks": ("clmb", {**CLMB, "ref_quirks": True}),
    "unimatch": ("unimatch", {"confidence": 0.2}),
    "unimatch with a teacher": ("unimatch", {"confidence": 0.2, "teacher": True}),
}
SHARED_KEYS = {
    "optimizer", "learning_rate", "weight_decay", "momentum", "schedule", "head_lr_multiplier", "batch_size",
    "unlabeled_ratio", "exclude_labeled", "scale_min", "scale_max",
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=SEGMENT)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(case: str) -> Any:
    name, changes = CASES[case]
    return replace(SEGMENT[name].config(), **changes)


@cache
def segmenter() -> Any:
    torch.manual_seed(1)
    return build_segmenter("test_resnet", init="random", class_names=NAMES, decoder_width=16, low_level_width=8)[0]


def build(case: str, **changes: Any) -> nn.Module:
    network = copy.deepcopy(segmenter())
    torch.manual_seed(1)
    return SEGMENT[CASES[case][0]].build(network, replace(config_of(case), **changes), 20).train()


@cache
def batch_of(case: str) -> Batch:
    generator = torch.Generator().manual_seed(2)
    batch: dict[str, dict[str, Tensor]] = {}
    for stream, view in SEGMENT[CASES[case][0]].views(SETTINGS, config_of(case)).items():
        masks = torch.randint(0, 4, (4, 10, 13), dtype=torch.uint8, generator=generator)
        masks = masks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        noise = torch.randint(0, 60, (*masks.shape, 3), dtype=torch.uint8, generator=generator)
        index = torch.randperm(20, generator=generator)[:4]
        sizes = torch.tensor([[40, 52], [40, 30], [36, 52], [40, 52]])
        batch[stream] = view(ImageBatch(noise + 60 * masks[..., None], sizes, index, torch.zeros_like(index), masks))
    return batch


def optimizer_of(method: nn.Module) -> torch.optim.Optimizer:
    optimizer = build_optimizer("sgd", method, weight_decay=1e-4, momentum=0.9)
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    return optimizer


def step(method: Any, optimizer: torch.optim.Optimizer, batch: Batch, progress: float, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    loss: Tensor = method(batch, progress)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    method.after_step(progress)
    return loss.detach()


def test_views_are_crops_and_unlabeled_images_come_without_their_masks(case: str) -> None:
    batch = batch_of(case)
    assert set(batch) == ({"labeled"} if case == "supervised" else {"labeled", "unlabeled"})
    assert batch["labeled"]["masks"].shape == (4, 32, 48) and batch["labeled"]["masks"].dtype == torch.int64
    assert "masks" not in batch.get("unlabeled", {})
    views = [v for stream in batch.values() for v in stream.values() if v.ndim == 4]
    assert all(v.shape[1:] == (3, 32, 48) and v.dtype == torch.float32 for v in views)
    assert len({v.double().sum().item() for v in views}) == len(views), "no two are the same"


def test_loss_is_a_finite_scalar_and_everything_else_a_detached_one(case: str) -> None:
    losses = build(case)(batch_of(case), 0.3)
    assert losses["loss"].requires_grad
    for key, value in losses.items():
        assert value.ndim == 0 and torch.isfinite(value), key
        assert key == "loss" or not value.requires_grad, key
    assert {"loss", "loss_labeled"} | ({"loss_unlabeled"} if case != "supervised" else set()) <= set(losses)


def test_every_trainable_parameter_gets_a_gradient_and_no_other(case: str) -> None:
    method = build(case)
    step(method, optimizer_of(method), batch_of(case), 0.3)  # away from timm's zero-initialized residual branches
    method(batch_of(case), 0.3)["loss"].backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None, key
    assert not any("teacher" in key and p.requires_grad for key, p in method.named_parameters())


def test_no_state_lives_outside_the_state_dict(case: str) -> None:
    one = build(case)
    optimizer = optimizer_of(one)
    for number in range(2):
        step(one, optimizer, batch_of(case), 0.1 * number, number)
    other = build(case)
    other.load_state_dict(one.state_dict())
    again = optimizer_of(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(one, optimizer, batch_of(case), 0.5), step(other, again, batch_of(case), 0.5))
    after = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, after[key]), key


def test_gradient_steps_lower_the_labeled_loss(case: str) -> None:
    method = build(case, **({"confidence": 0.99} if "confidence" in CASES[case][1] else {}))
    optimizer = optimizer_of(method)
    series = []
    for number in range(4):
        torch.manual_seed(0)
        series.append(method(batch_of(case), 0.0)["loss_labeled"].item())
        step(method, optimizer, batch_of(case), 0.0, number)
    assert series[-1] < series[0]


def test_results_can_say_which_network_was_scored(case: str) -> None:
    method: Any = build(case)
    assert method.scored == ("teacher" if CASES[case][0] == "cutmix" else "student")
    assert method.deployed is (method.teacher.network if method.scored == "teacher" else method.student)


def test_frozen_statistics_of_the_backbone_never_move(case: str) -> None:
    network = copy.deepcopy(segmenter())
    network.freeze_backbone_statistics()
    method: Any = SEGMENT[CASES[case][0]].build(network, config_of(case), 20).train()
    before = {key: value.clone() for key, value in method.deployed.named_buffers()}
    optimizer = optimizer_of(method)
    for number in range(2):
        step(method, optimizer, batch_of(case), 0.5, number)
        assert method.student.decoder.training and not method.student.backbone.bn1.training
    for key, value in method.deployed.named_buffers():
        moved = not torch.equal(value, before[key])
        assert moved == key.startswith("decoder."), key


def test_the_deployed_network_saves_and_loads_bit_identically(case: str, tmp_path: Path) -> None:
    method: Any = build(case)
    step(method, optimizer_of(method), batch_of(case), 0.5)
    images = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        expected = method.deployed.eval()(images).logits
        folder = save_segmenter(method.deployed, tmp_path / "model")
        loaded = copy.deepcopy(AutoModelForSemanticSegmentation.from_pretrained(folder)).eval()
        assert torch.equal(loaded(images).logits, expected)


class NothingIsRead(TorchDispatchMode):
    """Refuses operations for which the host waits for a GPU: reading a value, shapes that depend on values."""

    REFUSED = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket.__name__
        assert operation not in self.REFUSED, operation
        if operation in ("index", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_from_the_device(case: str) -> None:
    method: Any = build(case)
    with NothingIsRead():
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(()).item()
        method(batch_of(case), 0.3)["loss"].backward()
        method.after_step(0.3)


def test_a_step_that_is_not_finite_leaves_no_trace_in_the_learners_own_state(case: str) -> None:
    method: Any = build(case)
    bad = {s: {k: v * float("nan") if v.ndim == 4 else v for k, v in f.items()} for s, f in batch_of(case).items()}
    statistics = {key: value.clone() for key, value in method.state_dict().items() if "running_" in key}
    method(bad, 0.3)
    method.load_state_dict(statistics, strict=False)  # the engine puts BatchNorm statistics back
    method.after_step(0.3)
    for key, value in method.state_dict().items():
        assert torch.isfinite(value).all(), key


def test_images_without_a_valid_pixel_add_nothing_and_break_nothing(case: str) -> None:
    method: Any = build(case)
    batch = {stream: dict(views) for stream, views in batch_of(case).items()}
    batch["labeled"]["masks"] = torch.full_like(batch["labeled"]["masks"], 255)
    if "unlabeled" in batch:
        batch["unlabeled"]["valid"] = torch.zeros_like(batch["unlabeled"]["valid"])
    losses = method(batch, 0.3)
    losses["loss"].backward()
    assert losses["loss"].item() == 0.0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_the_hyper_parameters_say_where_they_come_from(name: str) -> None:
    config = SEGMENT[name].config
    assert config.__doc__ and "20" in config.__doc__, "cite a paper and its year"
    for item in fields(config):
        assert "20" in item.metadata["help"] or "our choice" in item.metadata["help"], item.name


def test_defaults_name_every_shared_key(name: str) -> None:
    defaults = SEGMENT[name].defaults
    assert set(defaults) == SHARED_KEYS
    assert defaults["schedule"] in ("constant", "poly") and defaults["optimizer"] in ("sgd", "adamw")
    assert (defaults["unlabeled_ratio"] == 0) == (name == "supervised")
