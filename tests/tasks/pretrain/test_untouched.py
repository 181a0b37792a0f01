"""What is known of Φ_pre is found out once."""

from typing import Any

import numpy as np
import torch
from torch import nn

from tpssl_hf.tasks.pretrain.untouched import Start, Untouched


class Counted:
    """Images whose features are their index; they count how often each was shown."""

    def __init__(self) -> None:
        self.shown: list[int] = []
        self.crops_made = 0

    def features(self, network: nn.Module, indices: np.ndarray) -> np.ndarray:
        self.shown += indices.tolist()
        return np.stack([indices, indices], axis=1).astype(np.float32)

    def reestimated(self, network: nn.Module) -> nn.Module:
        return nn.Identity()

    def crops(self, network: nn.Module) -> int:
        self.crops_made += 1
        return self.crops_made


def test_an_image_is_shown_once_and_features_come_as_asked() -> None:
    images: Any = Counted()
    asked = Untouched(nn.Identity(), images)
    first, second = asked.features(np.array([3, 1, 3])), asked.features(np.array([1, 2, 3]))
    assert first[:, 0].tolist() == [3, 1, 3] and second[:, 0].tolist() == [1, 2, 3] and second.dtype == np.float32
    assert images.shown == [3, 1, 2]
    assert asked.crops() is asked.crops()


def test_both_networks_are_kept_apart_until_forgotten() -> None:
    images: Any = Counted()
    backbone = nn.Linear(2, 2)
    start = Start(backbone, images)
    start.kept.features(np.arange(2))
    start.bn_only.features(np.arange(2))
    assert images.shown == [0, 1, 0, 1] and start.kept.network is backbone
    assert start.bn_only is start.bn_only and start.bn_only.network is not backbone
    start.forget()
    start.kept.features(np.arange(2))
    assert images.shown == [0, 1] * 3
    assert torch.equal(start.kept.network.weight, backbone.weight)  # type: ignore[arg-type]
