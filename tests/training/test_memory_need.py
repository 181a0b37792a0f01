"""Activations of a step, and the memory that is there for them."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tpssl_hf.training import memory_need
from tpssl_hf.training.memory_need import GIB, activation_bytes, free_bytes, too_large


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 4 GiB available and 1 GiB of free swap, without containers, whose precision is still open."""
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {4 * 2**20} kB\nSwapFree: {2**20} kB\n")
    monkeypatch.setattr(memory_need, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory_need, "GROUP", tmp_path)
    return tmp_path


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image, hidden = 3 * 16 * 16 * 4, 8 * 16 * 16 * 4  # the output of the first convolution makes way for ReLU's
    assert image + hidden <= activation_bytes(network, (16, 16)) <= image + 2 * hidden
    assert 3.5 < activation_bytes(network, (32, 32)) / activation_bytes(network, (16, 16)) < 4.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_frozen_network_is_counted_as_one_that_learns() -> None:
    network = nn.Conv2d(3, 8, 3).requires_grad_(False)
    assert activation_bytes(network, (16, 16)) >= 3 * 16 * 16 * 4
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_what_does_not_fit_is_said_in_one_sentence(machine: Path) -> None:
    network = nn.Conv2d(3, 8, 3)
    accelerator = Accelerator(cpu=True)
    assert too_large(network, (64, 64), 100, accelerator) == ""
    said = too_large(network, (64, 64), 200_000, accelerator)
    assert "200000 images of 64 x 64 pixels needs" in said and "5.0 GiB are free" in said and "--batch_size" in said


def test_a_container_has_less_than_its_machine(machine: Path) -> None:
    assert free_bytes() == 5 * GIB
    (machine / "memory.max").write_text(f"{3 * GIB}\n")
    (machine / "memory.current").write_text(f"{2 * GIB}\n")
    (machine / "memory.stat").write_text(f"anon 7\ninactive_file {GIB}\n")
    assert free_bytes() == 2 * GIB
    (machine / "memory.max").write_text("max\n")
    assert free_bytes() == 5 * GIB


def test_nothing_is_said_where_the_system_does_not_tell(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert free_bytes() is None
    assert too_large(nn.Conv2d(3, 8, 3), (64, 64), 10**9, Accelerator(cpu=True)) == ""
