"""Looking at labeled images takes its share of a budget and no more."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tpssl_hf.tasks.pretrain import budget
from tpssl_hf.tasks.pretrain.selection import choosing_and_judging


@pytest.mark.parametrize(
    ("seconds_each", "budget_seconds", "expected"),
    [(0.002, 600.0, 4000), (0.02, 600.0, 900), (0.2, 600.0, 200), (0.0, 10.0, 4000)],
)
def test_slow_networks_are_shown_fewer_images(
    seconds_each: float, budget_seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = SimpleNamespace(store=range(1000), features=lambda network, indices: indices)
    args = SimpleNamespace(task=SimpleNamespace(probe_images=4000))
    trial: Any = SimpleNamespace(shown=shown, args=args, method=SimpleNamespace(deployed=torch.nn.Identity()))
    monkeypatch.setattr(budget, "seconds_of", lambda work: seconds_each * len(work()))
    assert budget.images_to_look_at(trial, budget_seconds) == expected


def test_fewer_images_are_divided_in_the_same_way() -> None:
    choosing, judging = choosing_and_judging(np.arange(3000) % 10, 500)
    assert choosing is not None and judging is not None
    assert (len(choosing.bank), len(choosing.queries)) == (100, 100)
    assert (len(judging.bank), len(judging.queries)) == (250, 125)
    assert not set(choosing.queries) & set(judging.queries)
