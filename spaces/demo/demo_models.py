"""The models of the demo: loaded once from folders or the Hub, asked one image at a time."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

import tpssl_hf  # noqa: F401  # tells transformers about the segmenter
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE
from tpssl_hf.models.segmentation_inference import predict_masks
from tpssl_hf.models.timm_export import SEVERAL_LABELS

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
BUILD = "uv run --extra demo python spaces/demo/app.py --build"
RESULTS = "results.json"  # of the run that left a model
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Classifier:
    """A classifier and what an image goes through before it.

    Attributes:
        model: transformers' wrapper of a timm model.
        processor: its image processor.
        class_names: in the order of the logits.
        tested: share of the test images that it names rightly, and how many they are; None where its run does not say.
    """

    model: Any
    processor: Any
    class_names: list[str]
    tested: tuple[float, int] | None = None

    @torch.inference_mode()
    def confidences(self, image: Image.Image) -> dict[str, float]:
        """Return the probability of each class."""
        return self._probabilities(self._maps([image]))

    @torch.inference_mode()
    def confidences_and_feature(self, image: Image.Image) -> tuple[dict[str, float], np.ndarray]:
        """Return the probability of each class, and the feature (D,) as in ``features``, of one pass."""
        maps = self._maps([image])
        return self._probabilities(maps), self._pooled(maps)[0]

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return what the backbone makes of images, (N, D) float32 of length one."""
        return self._pooled(self._maps(images))

    def _maps(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"].to(DEVICE)
        maps: torch.Tensor = self.model.timm_model.forward_features(pixels)
        return maps

    def _probabilities(self, maps: torch.Tensor) -> dict[str, float]:
        logits = self.model.timm_model.forward_head(maps)[0].float()
        return dict(zip(self.class_names, logits.softmax(dim=0).tolist(), strict=True))

    def _pooled(self, maps: torch.Tensor) -> np.ndarray:
        values = self.model.timm_model.forward_head(maps, pre_logits=True).float()
        return torch.nn.functional.normalize(values, dim=1).cpu().numpy()


@dataclass(frozen=True)
class Segmenter:
    """A segmenter and what an image goes through before it.

    Attributes:
        model: images (B, 3, H, W) to logits.
        processor: its image processor.
        class_names: in the order of the mask values.
        shorter_side: pixels to which the shorter side of larger images is shrunk.
    """

    model: Any
    processor: Any
    class_names: list[str]
    shorter_side: int

    def mask(self, image: Image.Image) -> np.ndarray:
        """Return the class of each pixel (h, w) of the image, shrunk to ``shorter_side`` if it is larger."""
        factor = min(1.0, self.shorter_side / min(image.size))
        width, height = (max(1, round(length * factor)) for length in image.size)
        shrunk = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3) if factor < 1 else image
        pixels = self.processor(shrunk, return_tensors="pt")["pixel_values"].to(DEVICE)
        with torch.inference_mode():
            return predict_masks(self.model, pixels)[0].cpu().numpy()


@dataclass(frozen=True)
class Neighbors:
    """Training images and their features.

    Attributes:
        features: (N, D) float32 of length one.
        thumbnails: (N, S, S, 3) uint8.
        captions: of each image.
    """

    features: np.ndarray
    thumbnails: np.ndarray
    captions: list[str]

    def nearest(self, feature: np.ndarray, count: int) -> list[tuple[Image.Image, str]]:
        """Return the images whose features have the largest cosine with ``feature`` (D,), nearest first."""
        cosines = self.features @ feature
        order = np.argsort(-cosines, kind="stable")[:count].tolist()
        return [(Image.fromarray(self.thumbnails[i]), f"{self.captions[i]} · {cosines[i]:.3f}") for i in order]


def load_classifier(location: str) -> Classifier:
    """Load a classifier in timm's layout.

    Raises:
        InputError: if it is not there, cannot be had from the Hub or is no such classifier.
    """
    model, processor = _loaded(location, AutoModelForImageClassification)
    if not hasattr(model, "timm_model"):
        raise InputError(f"{location} is no timm model; give one that `tpssl-hf classify` has left.")
    if model.config.problem_type == SEVERAL_LABELS:
        raise InputError(
            f"{location} gives an image several labels, which the demo does not show; give a classifier of one."
        )
    return Classifier(model, processor, _class_names(model), _tested(_folder(location)))


def load_segmenter(location: str, shorter_side: int) -> Segmenter:
    """Load a segmenter.

    Raises:
        InputError: if it is not there, cannot be had from the Hub or is no segmenter.
    """
    model, processor = _loaded(location, AutoModelForSemanticSegmentation)
    return Segmenter(model, processor, _class_names(model), shorter_side)


def load_neighbors(path: Path, classifier: Classifier) -> Neighbors:
    """Read what demo_build.py has written for ``classifier``.

    Raises:
        InputError: if it is not there, damaged, or of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            features, thumbnails = stored["features"].astype(np.float32), stored["thumbnails"]
            captions = [str(caption) for caption in stored["captions"]]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"The file of neighbors {path} cannot be read; `{BUILD}` makes it.") from error
    width = classifier.features([Image.new("RGB", (32, 32))]).shape[1]
    if features.shape != (len(captions), width) or len(thumbnails) != len(captions):
        raise InputError(f"The file of neighbors {path} is of another model; `{BUILD}` makes it anew.")
    return Neighbors(features, thumbnails, captions)


def _loaded(location: str, kind: Any) -> tuple[Any, Any]:
    """Load model and processor; weights are read from safetensors files only, and no code comes with them."""
    folder = _folder(location)
    try:
        model = kind.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise InputError(
            f"The model {location} is damaged or of another kind ({reason}); `{BUILD}` makes one."
        ) from error
    return model.to(DEVICE).eval(), processor


def _folder(location: str) -> Path:
    """Return the local folder of a model, after fetching it if ``location`` is a Hub id."""
    folder = Path(location)
    if not folder.is_dir() and HUB_ID.fullmatch(location):
        repository, _, revision = location.partition("@")
        try:
            patterns = ["*.json", "*.safetensors"]
            return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except Exception as error:  # the client lets through what its HTTP library raises, whichever that is
            raise InputError(
                f"The model {location} is no folder here and the Hub did not deliver it ({type(error).__name__}); "
                f"try again later, or make one with `{BUILD}`."
            ) from None  # the client's own words may repeat a token
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"The model {location} is not there yet; `{BUILD}` makes it.")
    return folder


def _tested(folder: Path) -> tuple[float, int] | None:
    """Return accuracy and number of test images from the ``results.json`` of the run that left a model."""
    for file in (folder / RESULTS, folder.parent / RESULTS):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            return float(results["metrics"]["accuracy"]), int(results["test"]["images"])
        except (OSError, ValueError, KeyError, TypeError):  # published without it, or of another kind
            continue
    return None


def _class_names(model: Any) -> list[str]:
    return [str(model.config.id2label[number]) for number in range(len(model.config.id2label))]
