"""DenseCL (Wang et al., 2021, arXiv 2011.09157): MoCo v2 on whole images and on the cells of their feature maps.

Not in the paper's tables; it is the dense method of MoCo's family beside PixPro. Deviation: queues of 16,384 keys, for
the reason given in ``moco.py``; the dense weight is constant, without the original's optional warm-up.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import MOCO_VIEW, ViewSettings, two_views
from tpssl_hf.config.allowed import ABOVE_0, FROM_1, SHARE
from tpssl_hf.config.parser import key
from tpssl_hf.losses.contrastive import info_nce, normalized_std
from tpssl_hf.methods.base import Batch, Losses, Method, MethodSpec, Views
from tpssl_hf.methods.pretrain import moco
from tpssl_hf.models.ema import ema_update, frozen_copy
from tpssl_hf.models.feature_maps import feature_maps, freeze_beyond_maps, map_size
from tpssl_hf.models.heads import moco_head
from tpssl_hf.models.queue import KeyQueue, check_queue
from tpssl_hf.models.timm_network import timm_network


@dataclass(frozen=True)
class DenseCLConfig:
    """DenseCL; defaults are the official ones (Wang et al., 2021, §4.1), the queues' length is ours."""

    key_momentum: float = key(0.999, "EMA momentum of the key network, constant.", within=SHARE)
    temperature: float = key(0.2, "Temperature of both losses.", within=ABOVE_0)
    queue_size: int = key(16384, "Keys kept by each of the two queues; a multiple of the batch size.", within=FROM_1)
    hidden_features: int = key(2048, "Width of the hidden layer of both heads.", within=FROM_1)
    projection_features: int = key(128, "Width of the projections that are compared.", within=FROM_1)
    dense_weight: float = key(
        0.5, "Weight of the dense loss, in [0, 1]; the rest is the loss on whole images (Eq. 3)."
    )


class DenseHead(nn.Module):
    """Global and dense projection of one feature map: (B, D, h, w) to (B, P) and (B, h·w, P)."""

    def __init__(self, width: int, config: DenseCLConfig) -> None:
        super().__init__()
        self.whole = moco_head(width, config.hidden_features, config.projection_features)
        self.cells = moco_head(width, config.hidden_features, config.projection_features)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Project the mean of the map, and each cell (a linear layer per cell is a 1x1 convolution)."""
        return self.whole(maps.mean(dim=(2, 3))), self.cells(maps.flatten(2).transpose(1, 2))


class DenseCL(Method):
    """Whole images and matched cells must find their keys among the keys of earlier batches."""

    def __init__(self, backbone: nn.Module, config: DenseCLConfig) -> None:
        super().__init__()
        self.config = config
        self.projection_features = config.projection_features
        freeze_beyond_maps(backbone)
        self.backbone = backbone
        self.projector = DenseHead(timm_network(backbone).num_features, config)
        self.key_backbone = frozen_copy(backbone)
        self.key_projector = frozen_copy(self.projector)
        self.queue = KeyQueue(config.queue_size, config.projection_features)
        self.dense_queue = KeyQueue(config.queue_size, config.projection_features)
        self._new_keys: list[tuple[Tensor, Tensor]] = []  # between forward and after_step of one step only

    def forward(self, batch: Batch, progress: float) -> Losses:
        """Return ``loss`` for ``batch["images"]``: queries from ``view1``, keys from ``view2``, each (B, 3, H, W)."""
        query_maps = feature_maps(self.backbone, batch["images"]["view1"])
        queries, query_cells = self.projector(query_maps)
        with torch.no_grad():
            key_maps = feature_maps(self.key_backbone, batch["images"]["view2"])
            keys, key_cells = self.key_projector(key_maps)
        weight, temperature = self.config.dense_weight, self.config.temperature
        loss_whole = info_nce(queries, keys, self.queue.keys, temperature)
        positives = torch.gather(key_cells, 1, match(query_maps, key_maps)[:, :, None].expand_as(key_cells))
        loss_dense = info_nce(query_cells.flatten(0, 1), positives.flatten(0, 1), self.dense_queue.keys, temperature)
        self._new_keys.append((keys, key_cells.float().mean(dim=1)))
        return {
            "loss": (1 - weight) * loss_whole + weight * loss_dense,
            "loss_whole": loss_whole.detach(),
            "loss_dense": loss_dense.detach(),
            "projection_std": normalized_std(queries),
        }

    def after_step(self, progress: float) -> None:
        """Store this step's keys, one per image in each queue, and move the key network."""
        for keys, cells in self._new_keys:
            self.queue.enqueue(keys)
            self.dense_queue.enqueue(cells)
        self._new_keys = []
        ema_update(self.key_backbone, self.backbone, self.config.key_momentum)
        ema_update(self.key_projector, self.projector, self.config.key_momentum)

    @property
    def deployed(self) -> nn.Module:
        """The query backbone."""
        return self.backbone


@torch.no_grad()
def match(query_maps: Tensor, key_maps: Tensor) -> Tensor:
    """For each cell of the query map the most similar cell of the key map, by cosine of backbone features (Eq. 2).

    Args:
        query_maps: (B, D, h, w).
        key_maps: (B, D, h, w).

    Returns:
        (B, h·w) int64 positions in the flattened key map.
    """
    queries = F.normalize(query_maps.float().flatten(2), dim=1)
    keys = F.normalize(key_maps.float().flatten(2), dim=1)
    with torch.autocast(queries.device.type, enabled=False):
        return (queries.transpose(1, 2) @ keys).argmax(dim=2)


def views(settings: ViewSettings, config: DenseCLConfig) -> Views:
    """MoCo v2's views."""
    return {"images": lambda images: two_views(images, (MOCO_VIEW, MOCO_VIEW), settings)}


def check(backbone: nn.Module, config: DenseCLConfig, image_size: int, batch_size: int) -> None:
    """Refuse a backbone without maps, images smaller than its stride, and a queue that the batch does not divide."""
    map_size(backbone, image_size)
    check_queue(config.queue_size, batch_size)


SPEC = MethodSpec(
    config=DenseCLConfig,
    build=DenseCL,
    views=views,
    defaults=moco.SPEC.defaults,
    check=check,
    crop_scale=MOCO_VIEW.crop_scale,
)
