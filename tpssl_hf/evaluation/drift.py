"""How far each stage of a backbone has moved from Φ_pre, in its weights and in what it makes of fixed images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpssl_hf.evaluation.feature_metrics import linear_cka

DISTANCE, ALIKE = "stage_drift/", "stage_cka/"  # what the entries of the log begin with, before the stage's name
IMAGES = 256


def stage_names(backbone: nn.Module) -> list[str]:
    """Return the modules after which timm takes feature maps, those with weights: ``layer1`` or ``stages.0``, say."""
    modules = dict(backbone.named_modules())
    names = [str(part["module"]) for part in getattr(backbone, "feature_info", None) or []]
    return [name for name in names if name in modules and any(True for _ in modules[name].parameters())]


def stage_distances(moved: Mapping[str, tuple[float, float]], stages: list[str]) -> dict[str, float]:
    """Return ‖Φ − Φ_pre‖ / ‖Φ_pre‖ of each stage; ``rest`` is what lies in none: the stem, the last norm.

    Args:
        moved: name of each parameter -> squared distance from its start, squared norm of its start.
        stages: names of the stages.
    """
    sums: dict[str, list[float]] = {}
    for name, values in moved.items():
        stage = next((stage for stage in stages if name.startswith(f"{stage}.")), "rest")
        total = sums.setdefault(stage, [0.0, 0.0])
        total[0] += values[0]
        total[1] += values[1]
    return {
        stage: (sums[stage][0] / max(sums[stage][1], 1e-30)) ** 0.5 for stage in [*stages, "rest"] if stage in sums
    }


@torch.no_grad()
def stage_features(backbone: nn.Module, images: Tensor, stages: list[str]) -> dict[str, Tensor]:
    """Return the mean over places of what each stage makes of ``images`` (B, 3, H, W): (B, C) float32 on the host."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            places = (2, 3) if output.ndim == 4 else 1  # maps (B, C, H, W), or tokens (B, N, C)
            found[name] = output.float().mean(dim=places).cpu()

        return hook

    hooks = [backbone.get_submodule(name).register_forward_hook(keep(name)) for name in stages]
    backbone(images)
    for hook in hooks:
        hook.remove()
    return found


class StageWatch:
    """Compares each stage with what it was in the beginning, on the same images every time."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}

    def begin(self, backbone: nn.Module, images: Tensor) -> None:
        """Keep what Φ_pre's stages make of ``images`` (B, 3, H, W); the backbone is in evaluation mode."""
        self.start = stage_features(backbone, images, stage_names(backbone))

    def check(self, backbone: nn.Module, images: Tensor, moved: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Return entries for the metrics log: distance of weights and linear CKA of features, by stage."""
        stages = list(self.start)
        entries = {f"{DISTANCE}{name}": value for name, value in stage_distances(moved, stages).items()}
        features = stage_features(backbone, images, stages)
        return entries | {f"{ALIKE}{n}": linear_cka(features[n].numpy(), self.start[n].numpy()) for n in stages}
