"""Frozen or trained BatchNorm is decided by what labels say of either, and said."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

from tpssl_hf.evaluation.probes import DRAWS, ProbeSplit
from tpssl_hf.tasks.pretrain.batchnorm_choice import BatchNormChoice, choose_batchnorm
from tpssl_hf.tasks.pretrain.crops import Crops

SPLIT = ProbeSplit(np.arange(20), np.arange(20, 60), np.arange(20) % 2, np.arange(40) % 2)
NORMED = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@dataclass
class Asked:
    """A network of which the tests say what it is worth."""

    worth: float

    def answers(self, split: ProbeSplit) -> list[int]:
        return [int(number < self.worth * 40) for number in range(40)] * (1 + DRAWS)

    def crops(self) -> Crops:
        return Crops(np.random.default_rng(0).uniform(0.0, 2 * self.worth, 500).tolist(), 10.0)


@dataclass
class Start:
    kept: Asked
    bn_only: Asked


WORTH = [(0.9, 0.1, "frozen"), (0.1, 0.9, "train"), (0.5, 0.5, "frozen")]


@pytest.mark.parametrize(("kept", "other", "mode"), WORTH)
def test_labels_decide_and_a_tie_is_frozen(kept: float, other: float, mode: str) -> None:
    start: Any = Start(Asked(kept), Asked(other))
    found = choose_batchnorm("auto", NORMED, "timm", start, SPLIT)
    assert found.mode == mode and "points" in found.why and mode in found.sentence()
    assert BatchNormChoice.restored(found.values()) == found and set(found.answers) == {"start", "bn_only"}


@pytest.mark.parametrize(("kept", "other", "mode"), [*WORTH, (0.01, 0.02, "frozen")])
def test_without_labels_crops_decide_unless_neither_knows_any(kept: float, other: float, mode: str) -> None:
    start: Any = Start(Asked(kept), Asked(other))
    found = choose_batchnorm("auto", NORMED, "timm", start, None)
    assert found.mode == mode and "no labels" in found.why and not found.answers


@pytest.mark.parametrize(
    ("asked", "kind", "backbone", "mode"),
    [
        ("auto", "timm", NORMED, "frozen"),
        ("auto", "random", NORMED, "train"),
        ("train", "timm", NORMED, "train"),
        ("frozen", "random", NORMED, "frozen"),
        ("auto", "timm", nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), "none"),
    ],
)
def test_what_is_decided_without_looking(
    asked: Literal["auto", "frozen", "train"], kind: str, backbone: nn.Module, mode: str
) -> None:
    found = choose_batchnorm(asked, backbone, kind, None, None)
    assert found.mode == mode and (found.sentence() == "") == (mode == "none")
