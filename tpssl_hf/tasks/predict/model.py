"""Load a finished classifier, segmenter or backbone with its own preprocessing."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.models.timm_wrapper.configuration_timm_wrapper import TimmWrapperConfig
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from tpssl_hf.data.masks import Color, color_map
from tpssl_hf.data.reading import PIXEL_LIMIT, UnreadableImage
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration
from tpssl_hf.files.json_file import read_json
from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE
from tpssl_hf.models.hub_download import NotDeliveredError, hub_snapshot
from tpssl_hf.models.sealed import check_seals, read_sealed_weights
from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation
from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig
from tpssl_hf.models.weights_config import check_preprocessing
from tpssl_hf.tasks.predict.thresholds import thresholds_of
from tpssl_hf.training.run_dir import CALIBRATION, RESULTS

PROCESSOR_FILE = "preprocessor_config.json"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, PROCESSOR_FILE, CALIBRATION)
# What is raised for files that are not what they should be.
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError, SafetensorError)
TIMMS_OWN = frozenset(inspect.signature(timm.create_model).parameters) - {"kwargs"}  # no part of an architecture
RUN_FILES = ("config.yaml", "run.lock", "metrics.jsonl", "checkpoints")  # any of them: the folder of a run


@dataclass(frozen=True)
class FinishedModel:
    """A finished model in evaluation mode, on its device.

    Attributes:
        kind: what it answers: classes of images, classes of pixels, or nothing but features.
        network: normalized images (B, 3, H, W) to logits, features, or an output with ``logits``.
        class_names: in the order of the logits; empty for a backbone.
        palette: RGB color of each class of a segmenter, if it has colors.
        processor: the image processor that pipelines of transformers use.
        device: where the network is.
        folder: of its files.
        fingerprint: of weights, configuration and calibration.
        calibration: of a classifier, or None.
        thresholds: from which probability on an image is given each label, where it may have several; else None.
    """

    kind: Literal["backbone", "classifier", "segmenter"]
    network: Any
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    processor: Callable[..., Any]
    device: torch.device
    folder: Path
    fingerprint: str
    calibration: Calibration | MultilabelCalibration | None = None
    thresholds: tuple[float, ...] | None = None

    @property
    def input_size_varies(self) -> bool:
        """Whether images keep their own sizes."""
        return self.kind == "segmenter" and not getattr(self.processor, "do_resize", True)

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Resize, crop and normalize (H, W, 3) uint8 pixels as the model's own image processor does.

        Raises:
            UnreadableImage: for an image so narrow that resizing its shorter side would make it enormous.
        """
        height, width = pixels.shape[:2]
        if self.kind != "segmenter":
            side = max(self.processor.data_config["input_size"][1:])  # type: ignore[attr-defined]
            if side * side * max(height, width) > PIXEL_LIMIT * min(height, width):
                raise UnreadableImage(f"{width} x {height} pixels, too narrow to be resized to {side} pixels")
        prepared: Tensor = self.processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
        return prepared

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return a classifier's logits (B, K) and features (B, D), float32, of normalized images (B, 3, H, W)."""
        maps = self.network.forward_features(images)
        pooled = self.network.forward_head(maps, pre_logits=True)
        return self.network.forward_head(maps).float(), pooled.float()

    def features(self, images: Tensor) -> Tensor:
        """Return what a classifier would read of normalized images (B, 3, H, W): pooled features (B, D), float32."""
        network = self.network
        if self.kind == "segmenter":
            stride = network.config.output_stride
            padded = F.pad(images, (0, -images.shape[3] % stride, 0, -images.shape[2] % stride))
            features: Tensor = network.backbone(padded)[-1].mean(dim=(2, 3))
        else:
            features = network.forward_head(network.forward_features(images), pre_logits=True)
        return features.float()


def load_model(model: str, device: str) -> FinishedModel:
    """Load a finished model.

    Args:
        model: folder of a run, its ``model/`` folder, or a Hub id with an optional ``@revision``.
        device: ``auto`` or what ``torch.device`` takes.

    Raises:
        InputError: for a place without a finished model, a damaged one, one of another kind, and an unknown device.
    """
    where = choose_device(device)
    folder = find_model(model)
    try:
        config = read_json(folder / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE} cannot be read ({error}); the model is damaged, copy it again."
        ) from error
    is_segmenter = isinstance(config, dict) and config.get("model_type") == TpsslSegmenterConfig.model_type
    if not is_segmenter and not (isinstance(config, dict) and timm.is_model(str(config.get("architecture")))):
        raise InputError(
            f"model {model!r} is neither a timm model nor a segmenter of this package; give what pretrain, classify "
            "or segment has left in model/, or a timm model on the Hub."
        )
    try:
        network, names = _segmenter(folder) if is_segmenter else _timm_model(folder, config)
        kind_of_processor = AutoImageProcessor if is_segmenter else TimmWrapperImageProcessor  # auto warns of timm's
        processor = kind_of_processor.from_pretrained(folder, trust_remote_code=False)
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(f"model {model!r} is damaged or incomplete ({reason}); copy or train it again.") from error
    kind: Any = "segmenter" if is_segmenter else "classifier" if names else "backbone"
    palette = (
        tuple(_as_color(color) for color in getattr(network.config, "palette", None) or ()) if is_segmenter else ()
    )
    if is_segmenter and not palette:
        palette = color_map(min(len(names), 256))
    thresholds = thresholds_of(config, len(names), folder / CONFIG_FILE) if kind == "classifier" else None
    calibration = _calibration(folder, several=thresholds is not None) if kind == "classifier" else None
    check_seals(folder, MODEL_FILES[2:])
    network, fingerprint = network.to(where).eval(), _fingerprint(folder)
    return FinishedModel(kind, network, names, palette, processor, where, folder, fingerprint, calibration, thresholds)


def find_model(model: str) -> Path:
    """Return the folder of a model's files, after fetching it if ``model`` is a Hub id.

    Raises:
        InputError: if there is none, or it is that of an unfinished run.
    """
    if not model:
        raise InputError("model is missing; give the folder of a finished run, its model/ folder, or a Hub id.")
    folder = Path(model).expanduser()
    if folder.is_file():
        raise InputError(f"model {model!r} is a file; give the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}.")
    if not folder.is_dir():
        return _from_hub(model)
    if (folder / WEIGHTS_FILE).is_file() or (folder / CONFIG_FILE).is_file():
        return _with_weights(folder)
    if (folder / "model").is_dir() and (folder / "results.json").is_file():
        return _with_weights(folder / "model")
    draws = sorted(part.name for part in folder.glob("label_seed_*") if (part / "model").is_dir())
    if draws:
        raise InputError(f"{model!r} holds several runs: {', '.join(draws)}; give the folder of one of them.")
    if any((folder / name).exists() for name in RUN_FILES):
        raise InputError(f"The run in {model!r} is not finished; start it again, it continues where it stopped.")
    if (folder / "model").is_dir():
        return _with_weights(folder / "model")
    raise InputError(f"Folder {model!r} holds no model: no {WEIGHTS_FILE} and {CONFIG_FILE}, also not in model/.")


def choose_device(device: str) -> torch.device:
    """Return the device asked for.

    Raises:
        InputError: for an unknown one, and one that this machine lacks.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split(". ")[0].split())[:160]
        raise InputError(
            f"device {device!r} cannot be used here ({reason}); give auto, cpu, cuda, cuda:N or mps."
        ) from error
    if chosen.type == "meta":
        raise InputError("device 'meta' computes nothing; give auto, cpu, cuda, cuda:N or mps.")
    return chosen


def _with_weights(folder: Path) -> Path:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise InputError(f"model folder {str(folder)!r} holds no {name}; give a finished model, or copy it again.")
    return folder


def _from_hub(model: str) -> Path:
    repository = model.partition("@")[0]
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise InputError(f"model {model!r} is no folder here and no Hub id; give a folder that exists, or owner/name.")
    try:
        folder = hub_snapshot(model, (*MODEL_FILES, RESULTS))
    except NotDeliveredError as error:
        raise InputError(f"model {model!r} is no folder here, and the Hub did not deliver it ({error}).") from None
    return _with_weights(folder)


def _timm_model(folder: Path, config: dict[str, Any]) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a timm model as ``timm.create_model("local-dir:…")`` does, and the names pipelines give its classes."""
    facts = config.get("pretrained_cfg") or {}
    check_preprocessing(facts, folder / CONFIG_FILE)
    count = config.get("num_classes", facts.get("num_classes", 0))
    arguments = {**(config.get("model_args") or {}), "num_classes": count}
    if others := sorted(arguments.keys() & TIMMS_OWN):  # with which timm would read files that nobody named
        raise InputError(f"{folder / CONFIG_FILE} has {', '.join(others)} among its model_args; take it out.")
    tensors = read_sealed_weights(folder / WEIGHTS_FILE)
    make = functools.partial(timm.create_model, config["architecture"], pretrained=False, pretrained_cfg=dict(facts))
    with torch.device("meta"):  # a config can name sizes that no memory holds
        shapes = {name: tensor.shape for name, tensor in make(**arguments).state_dict().items()}
    if wrong := sorted(name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape):
        raise InputError(
            f"model {str(folder)!r} is damaged or incomplete: its weights lack {len(wrong)} tensors of the network in "
            f"{CONFIG_FILE}, or have them in another shape ({', '.join(wrong[:4])}); copy or train it again."
        )
    network = make(**arguments)
    network.load_state_dict(tensors)
    if tuple(facts.get("input_size", (3,)))[0] != 3:
        raise InputError(f"model {str(folder)!r} takes images of {facts['input_size'][0]} channels; give one for RGB.")
    if count == 1:
        raise InputError(f"model {str(folder)!r} has one class only; a classifier needs two.")
    if not count:
        return network, ()
    names = TimmWrapperConfig.from_pretrained(folder).id2label  # the Auto class would ask to run a file's own code
    return network, tuple(str(names[number]) for number in range(count))


def _segmenter(folder: Path) -> tuple[nn.Module, tuple[str, ...]]:
    if not (folder / PROCESSOR_FILE).is_file():
        raise InputError(f"model folder {str(folder)!r} holds no {PROCESSOR_FILE}; copy the whole folder again.")
    read_sealed_weights(folder / WEIGHTS_FILE)
    network, info = TpsslForSemanticSegmentation.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True
    )
    if lacking := sorted(info["missing_keys"]):
        raise InputError(
            f"model folder {str(folder)!r} lacks {len(lacking)} tensors ({', '.join(lacking[:4])}); copy it again."
        )
    names = network.config.id2label
    return network, tuple(str(names[number]) for number in range(len(names)))


def _as_color(color: Any) -> Color:
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def _calibration(folder: Path, *, several: bool) -> Calibration | MultilabelCalibration | None:
    file, kind = folder / CALIBRATION, MultilabelCalibration if several else Calibration
    try:
        return kind(**read_json(file)) if file.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the model again, or delete this file.") from error


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in MODEL_FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                digest.update(name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
