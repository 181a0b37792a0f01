"""Features of stored images by weights of any origin, kept on disk so that asking again costs nothing."""

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import timm
import torch
from accelerate.utils import set_seed
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import extract_features, finite
from tpssl_hf.files.atomic import replacing_file
from tpssl_hf.models.backbone import WeightsSource, load_backbone, weights_digest
from tpssl_hf.models.timm_export import preprocessing_of

FORMAT = 2  # of the files; another whenever the same key would mean other numbers


@dataclass(frozen=True)
class Features:
    """What a backbone makes of images.

    Attributes:
        values: (N, D) float32.
        origin: where its weights come from.
        cached: whether they were found on disk.
    """

    values: np.ndarray
    origin: WeightsSource
    cached: bool


def open_backbone(
    backbone: str, *, init: str, image_size: int, device: torch.device, seed: int = 0
) -> tuple[nn.Module, ViewSettings, WeightsSource]:
    """Load Φ in evaluation mode, the way images are shown to it, and where it comes from.

    Args:
        backbone: timm architecture.
        init: origin of the weights, see :func:`tpssl_hf.models.backbone.load_backbone`.
        image_size: side of the images, in pixels.
        device: where to compute.
        seed: of random weights.

    Raises:
        InputError: for weights that cannot be had.
    """
    set_seed(seed)
    network, origin = load_backbone(backbone, init=init, image_size=image_size)
    views = ViewSettings.of(preprocessing_of(network), seed, horizontal_flip=False)
    return network.to(device).to(memory_format=torch.channels_last).eval(), views, origin


def features_of(
    store: ImageCache,
    indices: np.ndarray,
    *,
    backbone: str,
    init: str,
    image_size: int,
    device: torch.device,
    statistics: ImageCache | None = None,
    seed: int = 0,
    cache_dir: Path | None = None,
) -> Features:
    """Load Φ and extract features of stored images, resized and cropped at the center; or read them from disk.

    Args:
        store: the images.
        indices: (N,) int64, which of them.
        backbone: timm architecture.
        init: as for :func:`open_backbone`, like what follows.
        image_size: side of the images, in pixels.
        device: where to compute.
        statistics: images to re-estimate BatchNorm statistics on first, up to 1,024 of them, as target pretraining
            does for every backbone it saves; what the base gains by that alone is no merit of adapting.
        seed: of random weights.
        cache_dir: where features are kept; ``tpssl_hf/features`` below ``HF_HOME`` if None.

    Raises:
        InputError: for weights that cannot be had, or whose features are not finite.
    """
    network, views, origin = open_backbone(backbone, init=init, image_size=image_size, device=device, seed=seed)
    measured_on = None if statistics is None else statistics.key
    weights, shown = weights_digest(network.state_dict()), astuple(views.preprocessing)
    key = [FORMAT, timm.__version__, backbone, weights, store.key, shown, measured_on]
    name = hashlib.sha256(json.dumps(key).encode() + indices.tobytes()).hexdigest()[:32]
    folder = cache_dir or Path(huggingface_hub.constants.HF_HOME) / "tpssl_hf" / "features"
    path = folder / f"{name}.npy"
    if (stored := _stored(path, len(indices))) is not None:
        return Features(stored, origin, cached=True)
    if statistics is not None:
        network = with_reestimated_batchnorm(network, sample_for_statistics(statistics), views, device)
    values = finite(extract_features(network, store, indices, views, device), f"{backbone} with init {init}")
    folder.mkdir(parents=True, exist_ok=True)
    # others may compute the same features at the same time
    with replacing_file(path, folder / f"{name}.{os.getpid()}.partial") as partial, partial.open("wb") as file:
        np.save(file, values)
    return Features(values, origin, cached=False)


def _stored(path: Path, count: int) -> np.ndarray | None:
    """Return the features in a file; None where there is none, or one that is damaged and will be written anew."""
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return values if values.ndim == 2 and len(values) == count and np.isfinite(values).all() else None
