import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tpssl_hf.evaluation.drift import StageWatch, stage_distances, stage_features, stage_names
from tpssl_hf.evaluation.feature_metrics import linear_cka
from tpssl_hf.methods.pretrain.anchor import Anchor


class Around(nn.Module):
    projection_features = teacher_source = None

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.deployed = backbone


def backbone_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": 64} if name == "test_vit" else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return model.eval()


IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["layer1", "layer2", "layer3", "layer4"]),
        ("test_convnext", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("test_vit", [f"blocks.{number}" for number in range(6)]),
    ],
)
def test_stages_are_those_timm_knows_and_each_gives_a_row_per_image(name: str, stages: list[str]) -> None:
    backbone = backbone_of(name)
    assert stage_names(backbone) == stages
    features = stage_features(backbone, IMAGES, stages)
    assert list(features) == stages and all(f.ndim == 2 and len(f) == 8 for f in features.values())
    assert not any(module._forward_hooks for module in backbone.modules())


def test_only_the_stage_that_moved_shows_a_distance_and_only_it_and_later_ones_look_different() -> None:
    backbone = backbone_of("test_resnet")
    anchor, watch = Anchor(Around(backbone), 0.0), StageWatch()
    watch.begin(backbone, IMAGES)
    assert all(
        value == pytest.approx(1.0) for n, value in watch.check(backbone, IMAGES, anchor.moved()).items() if "cka" in n
    )
    with torch.no_grad():
        for parameter in backbone.get_submodule("layer3").parameters():
            parameter.add_(torch.randn_like(parameter))
    entries = watch.check(backbone, IMAGES, anchor.moved())
    assert entries["stage_drift/layer3"] > 0.1
    assert [entries[f"stage_drift/{n}"] for n in ("layer1", "layer2", "layer4", "rest")] == [0.0] * 4
    assert entries["stage_cka/layer2"] == pytest.approx(1.0) and entries["stage_cka/layer3"] < 0.99


def test_distances_are_relative_to_the_start_of_the_stage() -> None:
    moved = {"a.weight": (1.0, 4.0), "a.bias": (3.0, 12.0), "b.weight": (0.0, 1.0), "norm.weight": (4.0, 1.0)}
    assert stage_distances(moved, ["a", "b"]) == {"a": 0.5, "b": 0.0, "rest": 2.0}


def test_alikeness_is_linear_cka_with_the_start() -> None:
    backbone = backbone_of("test_resnet")
    watch = StageWatch()
    watch.begin(backbone, IMAGES)
    other = backbone_of("test_resnet")
    with torch.no_grad():
        other.conv1.weight.mul_(-1.0) if hasattr(other.conv1, "weight") else other.conv1[0].weight.mul_(-1.0)
    found = watch.check(other, IMAGES, {})["stage_cka/layer4"]
    expected = linear_cka(
        stage_features(other, IMAGES, ["layer4"])["layer4"].numpy(),
        stage_features(backbone, IMAGES, ["layer4"])["layer4"].numpy(),
    )
    assert found == expected and 0 <= found < 1


def test_what_has_moved_adds_up_to_the_drift_of_the_loss() -> None:
    backbone = backbone_of("test_resnet")
    anchor = Anchor(Around(copy.deepcopy(backbone)), 0.0)
    with torch.no_grad():
        for parameter in anchor.deployed.parameters():
            parameter.add_(0.01)
    moved = np.array(list(anchor.moved().values()))
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert moved[:, 0].sum() == pytest.approx(1e-4 * count, rel=1e-3)
    assert moved[:, 1].sum() == pytest.approx(float(anchor.anchor_norm) ** 2, rel=1e-4)
