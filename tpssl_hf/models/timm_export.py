"""The published form of a backbone or classifier: timm's two files, which timm and transformers read without us."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import save_for_hf
from torch import nn

from tpssl_hf.files.atomic import replacing_folder, sync_files
from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE
from tpssl_hf.models.sealed import seal_folder

SEVERAL_LABELS = "multi_label_classification"  # the problem type of transformers
THRESHOLDS = "thresholds"  # of each label, in the provenance of a classifier of several


@dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before the network: a central square of it, resized to ``image_size``, normalized.

    Attributes:
        image_size: side of the square input in pixels.
        mean: RGB mean, of values in [0, 1].
        std: RGB standard deviation.
        interpolation: ``bilinear`` or ``bicubic``.
        crop_pct: side of the square as a fraction of the image's shorter side.
        crop_mode: ``center``; or ``squash``, where the fraction is of either side and the image loses its shape.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return how the weights of ``model`` want images shown: the one answer, for whatever loads weights.

    :func:`tpssl_hf.models.backbone.load_backbone` has put what belongs to the weights into ``pretrained_cfg``; what is
    missing there is timm's default. Resizing is bilinear for weights that say so, else bicubic.
    """
    facts = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    return Preprocessing(
        image_size=int(facts["input_size"][-1]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        interpolation="bilinear" if facts["interpolation"] == "bilinear" else "bicubic",
        crop_pct=min(1.0, float(facts["crop_pct"])),
        crop_mode="squash" if facts["crop_mode"] == "squash" else "center",
    )


def save_timm_folder(
    model: nn.Module,
    folder: Path,
    *,
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
    license: str | None = None,
    label_names: list[str] | None = None,
    problem_type: str | None = None,
    more_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write ``model.safetensors`` and ``config.json`` so that plain timm and plain transformers load the same network.

    The folder appears as a whole or not at all, sealed (:mod:`tpssl_hf.models.sealed`). timm's own record of where
    weights came from describes the weights it ships, so it is replaced by ``provenance`` (under the key ``tpssl_hf``)
    and a tag of ours; ``num_classes`` leaves ``model_args``, where transformers would pass it twice.

    Args:
        model: a timm model, with or without classifier.
        folder: where to; replaced if it exists.
        preprocessing: what the image processor does.
        provenance: JSON facts: base weights, their license, data set, method, paper.
        license: license of these weights, as the Hub spells it.
        label_names: class names of a classifier, in order.
        problem_type: that of transformers, whose pipeline takes a sigmoid of each logit for ``SEVERAL_LABELS``.
        more_files: content of other files by name.
    """
    model = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format)
    size = preprocessing.image_size
    with replacing_folder(folder) as temporary:
        save_for_hf(
            model,
            temporary,
            safe_serialization=True,
            model_config={"label_names": label_names} if label_names else None,
            data_config={
                "input_size": (3, size, size),
                "mean": preprocessing.mean,
                "std": preprocessing.std,
                "crop_pct": preprocessing.crop_pct,
                "crop_mode": preprocessing.crop_mode,
                "interpolation": preprocessing.interpolation,
            },
        )
        config_path = temporary / CONFIG_FILE
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config |= {"problem_type": problem_type} if problem_type else {}
        _tell_origin(config, provenance, license)
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in (more_files or {}).items():
            (temporary / name).write_bytes(content)
        seal_folder(temporary)
        (temporary / WEIGHTS_FILE).chmod(config_path.stat().st_mode)  # safetensors makes it readable by its owner only
        sync_files(temporary)
    return folder


def _tell_origin(config: dict[str, Any], provenance: dict[str, Any], license: str | None) -> None:
    """Replace what timm says of the weights it ships by what is known of these."""
    config.get("model_args", {}).pop("num_classes", None)
    inherited = config["pretrained_cfg"]
    for stale in ("license", "origin_url", "paper_name", "paper_ids", "notes", "hf_hub_id", "url", "file"):
        inherited.pop(stale, None)
    inherited["tag"] = "tpssl"
    if license:
        inherited["license"] = license
    config["tpssl_hf"] = provenance
