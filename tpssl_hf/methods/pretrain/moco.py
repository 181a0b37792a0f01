"""MoCo v2 (He et al., 2020, arXiv 1911.05722; Chen et al., 2020, arXiv 2003.04297), the best method of Table V.

Deviations: the queue holds 16,384 keys instead of 65,536, because a queue longer than the data set holds stale keys of
the query's own image; batches are not shuffled between processes, because with ``sync_batchnorm`` the statistics run
over all of them and nothing can leak. The symmetric variant is left out: two more forward passes for every step.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import MOCO_VIEW, ViewSettings, two_views
from tpssl_hf.config.allowed import ABOVE_0, FROM_1, SHARE, SHARE_ABOVE_0
from tpssl_hf.config.parser import key
from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import info_nce, normalized_std
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views
from tpssl_hf.models.ema import ema_update, frozen_copy
from tpssl_hf.models.heads import moco_head
from tpssl_hf.models.queue import KeyQueue, check_queue
from tpssl_hf.models.sizes import feature_width


@dataclass(frozen=True)
class MoCoConfig:
    """MoCo v2; defaults are those of its ImageNet runs (Chen et al., 2020), the queue's length is ours."""

    key_momentum: float = key(
        0.999, "EMA momentum of the key network, constant (He et al., 2020, §3.3).", within=SHARE
    )
    temperature: float = key(0.2, "Temperature of InfoNCE (Chen et al., 2020, Table 2).", within=ABOVE_0)
    queue_size: int = key(
        16384, "Keys kept as negatives; a multiple of the batch size (65,536 on ImageNet).", within=FROM_1
    )
    projection_features: int = key(128, "Width of the projections that are compared.", within=FROM_1)
    smallest_crop: float = key(
        0.2, "Least area of a view's crop as a share of the image's, in (0, 1].", within=SHARE_ABOVE_0
    )


class MoCo(Method):
    """A query must find its key, the other view, among the keys of earlier batches (InfoNCE, Eq. 1)."""

    def __init__(self, backbone: nn.Module, config: MoCoConfig) -> None:
        super().__init__()
        self.config = config
        self.projection_features = config.projection_features
        self.backbone = backbone
        width = feature_width(backbone)
        self.projector = moco_head(width, width, config.projection_features)
        self.key_backbone = frozen_copy(backbone)
        self.key_projector = frozen_copy(self.projector)
        self.queue = KeyQueue(config.queue_size, config.projection_features)
        self._new_keys: list[Tensor] = []  # between forward and after_step of one step only

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["images"]``: queries from ``view1``, keys from ``view2``, each (B, 3, H, W)."""
        queries = self.projector(self.backbone(batch["images"]["view1"]))
        with torch.no_grad():
            keys = self.key_projector(self.key_backbone(batch["images"]["view2"]))
        loss = info_nce(queries, keys, self.queue.keys, self.config.temperature)
        self._new_keys.append(keys)
        return {"loss": loss, "loss_moco": loss.detach(), "projection_std": normalized_std(queries)}

    def after_step(self, progress: float) -> None:
        """Store this step's keys and move the key network toward the query network."""
        for keys in self._new_keys:
            self.queue.enqueue(keys)
        self._new_keys = []
        ema_update(self.key_backbone, self.backbone, self.config.key_momentum)
        ema_update(self.key_projector, self.projector, self.config.key_momentum)

    @property
    def deployed(self) -> nn.Module:
        """The query backbone."""
        return self.backbone


def views(settings: ViewSettings, config: MoCoConfig) -> Views:
    """Two views by the same policy (Chen et al., 2020, §3).

    Raises:
        InputError: if ``smallest_crop`` is no share above 0.
    """
    if not 0 < config.smallest_crop <= 1:
        raise InputError(f"smallest_crop is {config.smallest_crop:g}; give a share of the image above 0, at most 1.")
    view = replace(MOCO_VIEW, crop_scale=(config.smallest_crop, 1.0))
    return {"images": lambda images: two_views(images, (view, view), settings)}


def check(backbone: nn.Module, config: MoCoConfig, image_size: int, batch_size: int) -> None:
    """Refuse a queue that the batch does not divide."""
    check_queue(config.queue_size, batch_size)


SPEC = MethodSpec(
    config=MoCoConfig,
    build=MoCo,
    views=views,
    # The original's: SGD, 0.03 for 256 images, decay 1e-4 on all parameters, no warm-up. The paper's rule "10 times
    # lower" is 0.003, in the configs named *_moco_paper.
    defaults={
        "optimizer": "sgd",
        "base_learning_rate": 0.03,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "decay_norm_and_bias": True,
        "warmup_epochs": 0.0,
    },
    check=check,
    crop_scale=MOCO_VIEW.crop_scale,
)
