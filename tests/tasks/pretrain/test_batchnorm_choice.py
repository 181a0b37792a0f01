"""Frozen or trained BatchNorm is decided by what labels say of either, and said."""

from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

from tpssl_hf.evaluation.probes import DRAWS, ProbeSplit
from tpssl_hf.tasks.pretrain.batchnorm_choice import BatchNormChoice, choose_batchnorm
from tpssl_hf.tasks.pretrain.crops import Crops

SPLIT = ProbeSplit(np.arange(20), np.arange(20, 60), np.arange(20) % 2, np.arange(40) % 2)
NORMED = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


class Shown:
    """Images of which the tests say what either network is worth; a re-estimated one has a running mean of 1."""

    def __init__(self, kept: float, other: float) -> None:
        self.worth = {0.0: kept, 1.0: other}

    def of(self, network: nn.Module) -> float:
        return self.worth[float(network[1].running_mean[0])]  # type: ignore[index]

    def reestimated(self, backbone: nn.Module) -> nn.Module:
        other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        nn.init.constant_(other[1].running_mean, 1.0)  # type: ignore[arg-type]
        return other

    def answers(self, network: nn.Module, split: ProbeSplit) -> list[int]:
        return [int(number < self.of(network) * 40) for number in range(40)] * (1 + DRAWS)

    def crops(self, network: nn.Module) -> Crops:
        return Crops(np.random.default_rng(0).uniform(0.0, 2 * self.of(network), 500).tolist(), 10.0)


WORTH = [(0.9, 0.1, "frozen"), (0.1, 0.9, "train"), (0.5, 0.5, "frozen")]


@pytest.mark.parametrize(("kept", "other", "mode"), WORTH)
def test_labels_decide_and_a_tie_is_frozen(kept: float, other: float, mode: str) -> None:
    shown: Any = Shown(kept, other)
    found = choose_batchnorm("auto", NORMED, "timm", shown, SPLIT)
    assert found.mode == mode and "points" in found.why and mode in found.sentence()
    assert BatchNormChoice.restored(found.values()) == found and set(found.answers) == {"start", "bn_only"}


@pytest.mark.parametrize(("kept", "other", "mode"), [*WORTH, (0.01, 0.02, "frozen")])
def test_without_labels_crops_decide_unless_neither_knows_any(kept: float, other: float, mode: str) -> None:
    shown: Any = Shown(kept, other)
    found = choose_batchnorm("auto", NORMED, "timm", shown, None)
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
