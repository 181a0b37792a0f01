"""Learners over two processes: the same state everywhere, and that of one process with the joined batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from forked_runs import Forks
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.models.batchnorm import synchronize_batchnorm

CLASSES, IMAGES, WHOLE = 3, 12, slice(0, 8)
STEPPED = ("mean_teacher", "vat", "freematch", "self_tuning")  # the ones that differ in passes and states
SMALL: dict[str, dict[str, Any]] = {"self_tuning": {"queue_size": 2, "projection_features": 8}}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    spec = CLASSIFY[name]
    classifier = timm.create_model("test_resnet", num_classes=CLASSES)
    return spec.build(classifier, replace(spec.config(), **SMALL.get(name, {})), IMAGES).train()


def batch_of(rows: slice) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    views = ("weak", "weak2", "strong", "strong2")
    images = {v: torch.randn(8, 3, 32, 32, generator=generator)[rows] for v in views}
    labels = torch.randint(0, CLASSES, (8,), generator=generator)[rows]
    index = torch.randperm(IMAGES, generator=generator)[:8][rows]
    return {"labeled": {**images, "labels": labels}, "unlabeled": {**images, "index": index}}


def statistics_of(rows: slice) -> dict[str, Tensor]:
    """The learners' own states after one batch of predictions."""
    generator = torch.Generator().manual_seed(2)
    probabilities = (3.0 * torch.randn(8, CLASSES, generator=generator)).softmax(1)[rows]
    index, labels = torch.arange(8)[rows], probabilities.argmax(1)
    flexible: Any = build("flexmatch")
    free: Any = build("freematch")
    soft: Any = build("softmatch")
    tuning: Any = build("self_tuning")
    flexible.remember(index, labels)
    free.observe(probabilities)
    soft.observe(probabilities)
    tuning.queue.enqueue(torch.randn(8, 8, generator=generator)[rows], labels)
    states = {"flexmatch": flexible, "freematch": free, "softmatch": soft, "self_tuning": tuning}
    return {
        f"{name}/{key}": value
        for name, method in states.items()
        for key, value in method.state_dict().items()
        if not key.startswith(("student", "teacher", "projector", "key_projector"))
    }


def one_step(name: str, rows: slice) -> dict[str, Tensor]:
    """The state after one step in DDP."""
    method: Any = synchronize_batchnorm(build(name), torch.device("cpu"))
    wrapped = nn.parallel.DistributedDataParallel(method, broadcast_buffers=False)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for number in range(2):  # a second step finds out whether the first one used every parameter
        torch.manual_seed(10 * number + rows.start)
        wrapped(batch_of(rows), 0.5)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.5)
    return {f"{name}/{key}": value.clone() for key, value in method.state_dict().items()}


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = slice(4 * rank, 4 * rank + 4)
    save_file(statistics_of(own), f"{folder}/statistics_{rank}.safetensors")
    steps = {key: value for name in STEPPED for key, value in one_step(name, own).items()}
    save_file(steps, f"{folder}/steps_{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    forks.call(__file__, "one_of_two", folder, [0, str(folder)], [1, str(folder)])
    return folder


def test_statistics_and_queues_are_those_of_one_process_with_the_joined_batch(folder: Path) -> None:
    whole = statistics_of(WHOLE)
    assert len(whole) == 1 + 3 + 3 + 2
    for rank in range(2):
        found = load_file(folder / f"statistics_{rank}.safetensors")
        assert found.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")


def test_both_processes_hold_the_same_state_after_steps_on_different_images(folder: Path) -> None:
    first, second = (load_file(folder / f"steps_{rank}.safetensors") for rank in range(2))
    assert {key.split("/")[0] for key in first} == set(STEPPED)
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=0, atol=0, msg=lambda m, k=key: f"{k}: {m}")
