"""What timm's models have in common and their shared base, torch's ``nn.Module``, does not declare."""

from typing import Any, Protocol, cast

from torch import Tensor, nn


class TimmNetwork(Protocol):
    """The part of a timm model's interface that is used here.

    Attributes:
        num_classes: rows of the classifier, 0 without one.
        num_features: channels of the last feature map, or width of the tokens.
        pretrained_cfg: facts about the weights: source, license, preprocessing.
    """

    num_classes: int
    num_features: int
    pretrained_cfg: dict[str, Any]

    def forward_features(self, images: Tensor) -> Tensor:
        """Return maps or tokens of images (B, 3, H, W), laid out as the architecture likes it."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K) of what ``forward_features`` gave, or the vectors (B, D) they are made of."""

    def get_classifier(self) -> nn.Module:
        """Return the classifier, for most architectures a linear layer."""

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in its place."""


def timm_network(model: nn.Module) -> TimmNetwork:
    """Return ``model`` itself, as what timm's models are to a type checker."""
    return cast(TimmNetwork, model)
