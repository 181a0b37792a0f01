"""Heads that pretraining methods put on a backbone and throw away afterwards."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE_STRENGTHS = np.logspace(-4, 1, 6)  # for each image, of features whose mean square is 1


def mlp_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """BYOL's projector and predictor: Linear, BatchNorm, ReLU, Linear without bias (Grill et al., 2020, App. C)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features, bias=False),
    )


def moco_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """MoCo v2's and DenseCL's head: Linear, ReLU, Linear, without BatchNorm (Chen et al., 2020, §3)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features), nn.ReLU(inplace=True), nn.Linear(hidden_features, out_features)
    )


def simclr_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """SimCLR's head: Linear, BatchNorm, ReLU, Linear (Chen et al., 2020, arXiv 2002.05709, App. B.9)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features, bias=False),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )


def pixpro_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """PixPro's projector: convolution, BatchNorm, ReLU, convolution, each cell by itself (Xie et al., 2021, §3.1)."""
    return nn.Sequential(
        nn.Conv2d(in_features, hidden_features, 1),
        nn.BatchNorm2d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden_features, out_features, 1),
    )


@torch.no_grad()
def fit_ridge(layer: nn.Linear, features: Tensor, targets: Tensor) -> None:
    """Put ridge regression of ``targets`` on ``features`` into ``layer``, its strength chosen by leaving one out.

    Args:
        layer: D features to K values, with a bias.
        features: (N, D), at least two rows.
        targets: (N, K).
    """
    scale = features.double().square().mean().sqrt().clamp_min(1e-12).item()
    known, wanted = (features.double() / scale).cpu().numpy(), targets.double().cpu().numpy()
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(alphas=len(known) * RIDGE_STRENGTHS).fit(known, wanted)
    layer.weight.copy_(torch.as_tensor(found.coef_ / scale))
    layer.bias.copy_(torch.as_tensor(found.intercept_))


class PixelPropagation(nn.Module):
    """Replace each cell by a mixture of the cells that look like it (Xie et al., 2021, Eq. 3 and 4).

    y_i = Σ_j max(cos(x_i, x_j), 0)^γ · v_j, where v is x after a 1x1 convolution, normalized to length one as in the
    official code.

    Args:
        features: number of channels.
        gamma: γ, how sharply less similar cells are left out; 0 takes all cells alike.
    """

    def __init__(self, features: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.values = nn.Conv2d(features, features, 1)

    def forward(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Mix ``maps`` (B, D, h, w) into float32 maps of the same shape, their lengths left as they come out.

        Args:
            maps: what to mix.
            mask: (B, 1, h, w) in 0..1, how much of each cell may enter into others.
        """
        values = F.normalize(self.values(maps).float(), dim=1) * mask
        with torch.autocast(maps.device.type, enabled=False):  # squares of small bfloat16 similarities would be lost
            cells = F.normalize(maps.float(), dim=1).flatten(2)
            similarities = (cells.transpose(1, 2) @ cells).clamp_min(0) ** self.gamma
            mixed = values.flatten(2) @ similarities  # symmetric, so no transpose
        return mixed.view_as(maps)
