"""Two processes with half of the images each learn to segment what one process learns with all of them.

Each process draws for itself what it drops out and mixes, and mixes its own images only. So here nothing is dropped
out, all draws are the same number, and the one process mixes the same pairs.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_runs import Forks, worlds
from forking import smooth
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.batchnorm import synchronize_batchnorm
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.training.run_dir import read_metrics

CLASSES, STEPS, DRAWN = 4, 2, 0.4
HALVES = (slice(0, 4), slice(4, 8))
PAIRED = [0, 1, 4, 5, 2, 3, 6, 7]  # the order in which CutMix pairs the images of each half with each other
# What is one number for a batch is the same for all parts of it: every pixel is sure; CLMB's contrast, over the pixels
# of one process, only runs along. No features are left out at random.
CERTAIN: dict[str, dict[str, Any]] = {
    "supervised": {},
    "cutmix": {"confidence": 0.0},
    "classmix": {"confidence": 0.0},
    "clmb": {
        "contrast_weight": 0.0,
        "bank_confidence": 0.2,
        "bank_size": 8,
        "projection_features": 8,
        "pixels_per_class": 4096,
    },
    "unimatch": {"confidence": 0.3, "feature_dropout": 0.0},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    segmenter, _ = build_segmenter(
        "test_resnet", init="random", class_names=list("abcd"), decoder_width=16, low_level_width=8
    )
    return SEGMENT[name].build(segmenter, replace(SEGMENT[name].config(), **CERTAIN[name]), 8).train()


def batch_of(rows: Any) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    names = ("images", "strong1", "strong2", "distorted1", "distorted2")
    coarse = torch.randint(0, CLASSES, (8, 8, 8), generator=generator)
    masks = coarse.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    images = {name: masks[:, None] + torch.randn(8, 3, 64, 64, generator=generator) for name in names}
    masks[:3, :, :40] = 255  # many in one half of the batch: a pixel must weigh the same in both
    moves = torch.empty(8, 4).uniform_(generator=generator)
    moves = moves * torch.tensor([0.5, 0.4, 0.4, 0.0]) + torch.tensor([1.0, 0.0, 0.0, 1.0])
    labeled = {"images": images["images"], "masks": masks, "zoom": moves}  # nothing comes in from outside
    unlabeled = {**images, "valid": masks != 255, "zoom1": moves, "zoom2": moves.flip(0)}
    return {
        "labeled": {key: value[slice(0, 8) if isinstance(rows, list) else rows] for key, value in labeled.items()},
        "unlabeled": {key: value[rows] for key, value in unlabeled.items()},
    }


def learn(name: str, method: Any, forward: Any, rows: Any) -> dict[str, Tensor]:
    """The losses of some steps and the state after them."""
    found, optimizer = {}, torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.03)
    for step in range(STEPS):
        losses = forward(batch_of(rows), step / STEPS)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / STEPS)
        found |= {f"{name}/losses/{step}/{key}": value.detach().clone().float() for key, value in losses.items()}
    return found | {f"{name}/state/{key}": value.clone() for key, value in method.state_dict().items()}


def same_number(*size: Any, device: Any = None) -> Tensor:
    return torch.full(size[0] if isinstance(size[0], torch.Size) else size, DRAWN, device=device)


def as_it_is(layer: nn.Module, values: Tensor) -> Tensor:
    return values


def one_of_two(rank: int, folder: str) -> None:
    nn.Dropout.forward = as_it_is  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.rand, found = same_number, {}
    for name in SEGMENT:
        method: Any = synchronize_batchnorm(build(name), torch.device("cpu"))
        wrapped = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
        found |= learn(name, method, wrapped, HALVES[rank])
    save_file(found, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def recipe_run(output: str, world: dict[str, str]) -> None:
    """Supervised, whose images do not depend on the process."""
    nn.Dropout.forward = as_it_is  # type: ignore[method-assign]
    settings = {"dataset": "digit_scenes", "labels": 10, "method": "supervised", "backbone": "test_resnet"}
    settings |= {"decoder_width": 16, "crop_height": 48, "crop_width": 64, "scale_min": 1.0, "scale_max": 1.0}
    settings |= {"batch_size": 8, "max_steps": 3, "log_every": 1, "learning_rate": 0.02, "precision": "fp32"}
    settings |= {"optimizer": "sgd", "limit_images": 40, "limit_test_images": 6, "cache_dir": f"{output}-cache"}
    os.environ.update(world)
    sys.argv = ["ssl_segment.py", *(f"--{k}={v}" for k, v in (settings | {"output_dir": output}).items())]
    assert sys.modules["ssl_segment"].main() == 0  # as the forking process has prepared it
    if world:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes left."""
    folder = tmp_path_factory.mktemp("two")
    forks.call(__file__, "one_of_two", folder, [0, str(folder)], [1, str(folder)])
    forks.call(__file__, "recipe_run", folder, [str(folder / "one"), {}], data="digit_scenes")
    two = [[str(folder / "two"), world] for world in worlds(2)]
    forks.call(__file__, "recipe_run", folder, *two, data="digit_scenes")
    return folder


@pytest.mark.parametrize("name", SEGMENT)
def test_both_hold_the_same_state_and_it_is_that_of_one_process(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    module = sys.modules[f"tpssl_hf.methods.segment.{name}"]
    method: Any = build(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    monkeypatch.setattr(torch, "rand", same_number)
    monkeypatch.setattr(nn.Dropout, "forward", as_it_is)
    monkeypatch.setattr(nn.ReLU, "forward", smooth)
    if hasattr(module, "next_one"):
        monkeypatch.setattr(module, "next_one", lambda v: torch.cat([half.roll(-1, 0) for half in v.chunk(2)]))
    whole = learn(name, method, method, PAIRED if name == "cutmix" else slice(0, 8))
    one, other = ({key: v for key, v in found.items() if key.startswith(f"{name}/")} for found in both)
    assert one.keys() == other.keys() == whole.keys()
    for key, value in whole.items():
        if "/losses/" in key and "contrast" not in key:
            assert float(one[key] + other[key]) / 2 == pytest.approx(float(value), abs=1e-4), key
        elif "/state/" in key:
            assert torch.equal(one[key], other[key]), key
            if "bank" not in key:  # whose best rows are each process's
                torch.testing.assert_close(one[key], value, rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    moved = [(whole[f"{name}/state/{k}"] - v).abs().max().item() for k, v in before.items() if k.endswith("weight")]
    assert max(moved) > 1e-3  # there is something to compare


def test_recipe_learns_with_two_processes_what_it_learns_with_one(folder: Path) -> None:
    lines, others = (read_metrics(folder / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in lines] == [line["step"] for line in others] == [1, 2, 3]
    for line, other in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert abs(lines[-1]["loss"] - lines[0]["loss"]) > 1e-2  # there is something to compare
    weights, found = (load_file(folder / name / "model" / "model.safetensors") for name in ("one", "two"))
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
