"""Heads that pretraining methods put on a backbone and throw away afterwards."""

from torch import nn


def mlp_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """BYOL's projector and predictor: Linear, BatchNorm, ReLU, Linear without bias (Grill et al., 2020, App. C)."""
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features, bias=False),
    )
