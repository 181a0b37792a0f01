"""What a run's checkpoints leave behind in its process."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tpssl_hf.training import checkpoint_manager
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.run_dir import RunDir


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("due", [True, False])
def test_old_cycles_are_collected_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, due: bool) -> None:
    monkeypatch.setattr(checkpoint_manager, "COLLECT_EVERY", -1.0 if due else 1e9)
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters())
    with RunDir(tmp_path, {}) as run:
        manager = CheckpointManager(Accelerator(cpu=True), run, tmp_path / "checkpoints", network, optimizer, {}, 2)
        cycle = Cycle()
        gc.collect()  # it is old now, and seen by no collection of the young
        alive = weakref.ref(cycle)
        del cycle
        manager.save(1, {})
    assert (alive() is None) == due
