"""What a finished classifier doubts, by the features that its last layer reads."""

import numpy as np
import timm
import torch
from torch import nn

from tpssl_hf.models.backbone import stored_config
from tpssl_hf.models.timm_export import SEVERAL_LABELS

RECIPE = "ssl_classify"  # other weights may have classes too, but not those that are wanted, such as ImageNet's


def classifier_head(model: str) -> nn.Linear | None:
    """Return the last layer of the classifier in the folder ``model``; None if a finetuning made no such thing.

    One whose images may have several labels is none: its logits do not compete.
    """
    config = stored_config(model)
    if config.get("tpssl_hf", {}).get("recipe") != RECIPE or config.get("problem_type") == SEVERAL_LABELS:
        return None
    head = timm.create_model(f"local-dir:{model}", pretrained=True).get_classifier()
    return head if isinstance(head, nn.Linear) else None


@torch.inference_mode()
def doubts(head: nn.Linear, features: np.ndarray) -> np.ndarray:
    """Return the second greatest probability of each image divided by the greatest.

    No temperature changes their order.

    Args:
        head: D features to K logits, K at least 2.
        features: (N, D) float32.

    Returns:
        (N,) float32 in [0, 1]; 1 where two classes are equally probable.
    """
    two = head(torch.from_numpy(features)).topk(2, dim=1).values
    ratio: np.ndarray = (two[:, 1] - two[:, 0]).exp().numpy()
    return ratio
