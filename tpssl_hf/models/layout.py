"""The published form of a backbone or classifier: timm's two files, which timm and transformers read without us."""

import copy
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before the network: shorter side to ``image_size``, centre crop, normalisation.

    Attributes:
        image_size: side of the square input in pixels.
        mean: RGB mean, of values in [0, 1].
        std: RGB standard deviation.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"


def save_timm_folder(
    model: nn.Module,
    folder: Path,
    *,
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
    licence: str | None = None,
    label_names: list[str] | None = None,
) -> Path:
    """Write ``model.safetensors`` and ``config.json`` so that plain timm and plain transformers load the same network.

    The folder appears as a whole or not at all. timm's own record of where weights came from describes the weights it
    ships, so it is replaced by ``provenance`` (under the key ``tpssl_hf``) and a tag of ours; ``num_classes`` leaves
    ``model_args``, where transformers would pass it twice.

    Args:
        model: a timm model, with or without classifier.
        folder: where to; replaced if it exists.
        preprocessing: what the image processor does.
        provenance: JSON facts: base weights, their licence, data set, method, paper.
        licence: licence of these weights, as the Hub spells it.
        label_names: class names of a classifier, in order.
    """
    model = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    size = preprocessing.image_size
    try:
        save_for_hf(
            model,
            temporary,
            safe_serialization=True,
            model_config={"label_names": label_names} if label_names else None,
            data_config={
                "input_size": (3, size, size),
                "mean": preprocessing.mean,
                "std": preprocessing.std,
                "crop_pct": 1.0,
                "interpolation": preprocessing.interpolation,
            },
        )
        config_path = temporary / CONFIG_FILE
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config.get("model_args", {}).pop("num_classes", None)
        inherited = config["pretrained_cfg"]
        for stale in ("license", "origin_url", "paper_name", "paper_ids", "notes", "hf_hub_id", "url", "file"):
            inherited.pop(stale, None)
        inherited["tag"] = "tpssl"
        if licence:
            inherited["license"] = licence
        config["tpssl_hf"] = provenance
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / WEIGHTS_FILE).chmod(config_path.stat().st_mode)  # safetensors makes it readable by its owner only
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
