import copy
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tpssl_hf.errors import InputError
from tpssl_hf.training.checkpoint import (
    CheckpointError,
    load_latest,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)


def save(folder: Path, step: int, **settings: Any) -> Path:
    return save_checkpoint(
        folder, step, {"method": {"weight": torch.full((3,), float(step))}}, {"at": step}, **settings
    )


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.equal(right)


def test_every_kind_of_tensor_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "plain": base,
        "shared": base[1:3],
        "transposed": base.t(),
        "expanded": torch.ones(1, 1).expand(5, 7),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(2)),
        "half": torch.randn(3, 3).bfloat16(),
        "zero_dimensional": torch.tensor(7),
        "no_elements": torch.empty(0, 3),
        "not_finite": torch.tensor([float("inf"), -0.0]),
        "booleans": torch.tensor([True, False]),
        "random_state": torch.get_rng_state(),
    }
    save_checkpoint(tmp_path, 5, {"method": tensors, "optimizer": {}}, {})
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 5 and checkpoint.path == tmp_path / "step_5"
    assert checkpoint.tensors["optimizer"] == {}
    assert checkpoint.tensors["method"].keys() == tensors.keys()
    assert all(same_bits(checkpoint.tensors["method"][name], tensor) for name, tensor in tensors.items())


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    state = {"loss": 0.1 + 0.2, "best": float("-inf"), "none": None, "nested": {"list": [1, 2.0, "three", True]}}
    save_checkpoint(tmp_path, 1, {}, state)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.state == state and checkpoint.tensors == {}


def test_state_that_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "new", 1, {}, {"path": tmp_path})
    with pytest.raises(ValueError, match="keep is 0"):
        save(tmp_path / "new", 1, keep=0)
    assert not (tmp_path / "new").exists()


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "missing") is None
    (tmp_path / ".tmp-abc").mkdir()
    (tmp_path / "step_x").mkdir()
    assert load_latest(tmp_path) is None


def test_newest_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        assert save(tmp_path, step) == tmp_path / f"step_{step}"
    assert steps(tmp_path) == ["step_10", "step_11"]
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 11 and checkpoint.state == {"at": 11}
    save(tmp_path, 12, keep=1)
    assert steps(tmp_path) == ["step_12"]


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, {}, {"at": "again"})
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.state == {"at": "again"} and checkpoint.tensors == {}
    assert steps(tmp_path) == ["step_3"]


def test_a_new_checkpoint_outlives_damaged_ones_with_a_higher_number(tmp_path: Path) -> None:
    save(tmp_path, 30)
    (tmp_path / "step_30" / "state.json").write_text("{}")
    save(tmp_path, 10, keep=1)
    with pytest.warns(UserWarning, match=r"step_30 \(state.json"):
        checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 10


def test_what_a_killed_save_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-0123").mkdir()
    (tmp_path / ".tmp-0123" / "method.safetensors").write_bytes(b"half")
    (tmp_path / "step_1").rename(tmp_path / ".replaced-step_1")  # killed between the two renames of a replacement
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 1
    save(tmp_path, 2)
    assert steps(tmp_path) == ["step_1", "step_2"]


def test_all_damaged_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "method.safetensors").unlink()
    with pytest.raises(InputError, match=r"Every checkpoint is damaged: .*step_2.*step_1.*delete .* to start over"):
        load_latest(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 1, "step": 2, "files": {}}'],
    ids=["empty", "list", "no_keys", "not_utf8", "deep", "no_files"],
)
def test_unreadable_manifest_is_damage(tmp_path: Path, manifest: bytes) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "MANIFEST.json").write_bytes(manifest)
    with pytest.warns(UserWarning, match=r"step_2 \(MANIFEST.json.*step_1 is used instead"):
        checkpoint = load_latest(tmp_path)
    assert checkpoint is not None and checkpoint.step == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, only 1 can be read"),
        ({"step": 1}, "it belongs to step 1"),
        ({"files": {"../step_1/state.json": {}}}, "it names files outside its folder"),
    ],
)
def test_sealed_manifest_must_fit_its_folder(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = save(tmp_path, 2) / "MANIFEST.json"
    manifest = json.loads(file.read_text()) | changes
    del manifest["seal"]
    file.write_text(json.dumps(manifest | {"seal": hashlib.sha256(json.dumps(manifest).encode()).hexdigest()}))
    with pytest.raises(InputError, match=f"MANIFEST.json: {message}"):
        load_latest(tmp_path)


def test_folder_that_cannot_be_made_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"needs about \d+ bytes, \d+ bytes are free.*no older checkpoint"):
        save(Path("/proc/tpssl_hf/checkpoints"), 1)
    assert issubclass(CheckpointError, InputError) and issubclass(CheckpointError, OSError)


def test_a_write_that_changed_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    read_bytes = Path.read_bytes

    def lossy(path: Path) -> bytes:
        data = read_bytes(path)
        return data[:-1] + b"?" if path.name == "method.safetensors" else data

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lossy)
        with pytest.raises(CheckpointError, match=r"SHA-256.*intact \(step_1\)"):
            save(tmp_path, 2)
    assert steps(tmp_path) == ["step_1"]


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd_without_momentum": lambda parameters: SGD(parameters, lr=0.1),
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: Adam(parameters, lr=1e-2, amsgrad=True),
    "adamw_tensor_lr": lambda parameters: AdamW(parameters, lr=torch.tensor(1e-2), foreach=False),
    "lars": lambda parameters: Lars(parameters, lr=0.1, momentum=0.9, weight_decay=1e-6),
}


def step_once(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "accelerate"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_next_step_after_a_resume_is_bit_identical(tmp_path: Path, name: str, wrapped: bool) -> None:
    def build(model: nn.Module) -> Optimizer:
        optimizer = OPTIMIZERS[name](model.parameters())
        return Accelerator(cpu=True).prepare(optimizer) if wrapped else optimizer

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = build(model)
    for seed in range(3):
        step_once(model, optimizer, seed)
    tensors, state = pack_optimizer(optimizer)
    save_checkpoint(tmp_path, 3, {"method": model.state_dict(), "optimizer": tensors}, {"optimizer": state})
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    resumed_model = copy.deepcopy(model)
    resumed_model.load_state_dict(checkpoint.tensors["method"])
    resumed = build(resumed_model)
    unpack_optimizer(resumed, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    for seed in (3, 4):
        step_once(model, optimizer, seed)
        step_once(resumed_model, resumed, seed)
    assert all(
        same_bits(left, right)
        for left, right in zip(model.state_dict().values(), resumed_model.state_dict().values(), strict=True)
    )
    again = load_latest(tmp_path)
    assert again is not None
    for key, tensor in again.tensors["optimizer"].items():  # training on did not change what was loaded
        assert same_bits(checkpoint.tensors["optimizer"][key], tensor)


def test_optimizer_state_keeps_its_types() -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"state": {0: {"rows": {1: torch.ones(2)}}}, "param_groups": [{"betas": (0.9, 0.99), "x": None}]}

        def load_state_dict(self, loaded: dict[str, Any]) -> None:
            self.loaded = loaded

    odd: Any = Odd()
    tensors, state = pack_optimizer(odd)
    assert list(tensors) == ["optimizer/state/0/rows/1"]
    unpack_optimizer(odd, tensors, json.loads(json.dumps(state)))
    assert odd.loaded["param_groups"] == [{"betas": (0.9, 0.99), "x": None}]
    assert same_bits(odd.loaded["state"][0]["rows"][1], torch.ones(2))


def test_optimizer_state_without_an_exact_form_is_refused() -> None:
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    optimizer.param_groups[0]["schedule"] = lambda step: step
    with pytest.raises(TypeError, match="optimizer/param_groups/0/schedule is a function"):
        pack_optimizer(optimizer)
