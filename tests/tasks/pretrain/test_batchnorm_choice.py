"""Frozen or trained BatchNorm is decided by what labels say of either, and said."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.tasks.pretrain import batchnorm_choice
from tpssl_hf.tasks.pretrain.batchnorm_choice import LookedAt, choose_batchnorm
from tpssl_hf.tasks.pretrain.selection import BANK_SEEDS

SPLIT = ProbeSplit(np.arange(20), np.arange(20, 60), np.arange(20) % 2, np.arange(40) % 2)
NORMED = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Images whose features are the network's own running mean, so that the tests say what either is worth."""

    def reestimated(backbone: nn.Module, *_: Any) -> nn.Module:
        other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        nn.init.constant_(other[1].running_mean, 1.0)  # type: ignore[arg-type]
        return other

    monkeypatch.setattr(batchnorm_choice, "with_reestimated_batchnorm", reestimated)
    monkeypatch.setattr(batchnorm_choice, "sample_for_statistics", lambda store: [])
    monkeypatch.setattr(
        batchnorm_choice,
        "extract_features",
        lambda network, store, indices, *_: np.full((len(indices), 1), float(network[1].running_mean[0])),
    )
    return LookedAt(None, None, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kept", "other", "mode"), [(0.9, 0.1, "frozen"), (0.1, 0.9, "train"), (0.5, 0.5, "frozen")])
def test_labels_decide_and_a_tie_is_frozen(
    kept: float, other: float, mode: str, looked_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(features: Any, split: ProbeSplit) -> list[int]:
        share = other if features(np.arange(1))[0, 0] == 1.0 else kept
        return [int(number < share * 40) for number in range(40)] * (1 + BANK_SEEDS)

    monkeypatch.setattr(batchnorm_choice, "answers_of", answers)
    found = choose_batchnorm("auto", NORMED, "timm", looked_at, SPLIT)
    assert found.mode == mode and "points" in found.why and mode in found.sentence()


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
