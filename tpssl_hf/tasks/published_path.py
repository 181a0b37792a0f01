"""What whoever loads a finished model gets from it, beside what its own evaluation says of the same images.

Some images go from their original files through the folder that was saved: transformers' pipeline and, for
classifiers, timm's own loader and transform, each as the card shows them. Whatever makes their answers differ from
those that were scored (bit depth, transparency, shape, resizing, normalization, weights) shows here, known or not.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.scan import decode_image

IMAGES = 32
# An image differs if another class comes first and some probability moved by more than this; below it is rounding, of
# which images between two classes are a matter.
NOTABLE = 0.1
MEDIAN_ALLOWED = 0.05
PIXELS_ALLOWED, PIXELS_OF_ONE_ALLOWED = 0.02, 0.1  # shares of pixels that get another class: of all, of one image
SHOWN = 3

# A path or Pillow image, and what the evaluation says of it, to an answer of the same kind: probabilities (K,), or
# classes (h, w).
Ask = Callable[[Any, np.ndarray], np.ndarray]
Difference = Callable[[np.ndarray, np.ndarray], tuple[float, float, str | None]]


@dataclass
class Agreement:
    """How the answers of one published path compare with those of the evaluation.

    Attributes:
        path: through what the images went.
        equal: share of images, or of the pixels of masks, that get the same class.
        median_difference: over the images, of the probability that differs most, or of the share of pixels that do.
        greatest_difference: likewise.
        differing: where images stand whose answer differs by more than rounding, and how.
        failed: where images stand that gave no answer, and why.
        agree_if_read_as_trained: how many of both kinds agree once they are read by ``decode_image``.
    """

    path: str
    equal: float = 0.0
    median_difference: float | None = None
    greatest_difference: float | None = None
    differing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    agree_if_read_as_trained: int = 0

    def trouble(self, images: int, allowed: float) -> str | None:
        """Say so if the answers differ by more than rounding, ``allowed`` being a median or share of pixels."""
        odd = {**self.failed, **self.differing}
        if "every image" in odd:
            return f"cannot use the folder ({odd['every image']})"
        if not odd and (self.median_difference or 0.0) > allowed:
            return f"{self.median_difference:.3f} off in the median of {images} images"
        if not odd:
            return None
        shown = "; ".join(f"{place}: {how}" for place, how in list(odd.items())[:SHOWN])
        said = f"{len(odd)} of {images} images answered otherwise than in the evaluation ({shown})"
        if not self.agree_if_read_as_trained:
            return f"{said}, also if they are read as in training"
        which = "they" if self.agree_if_read_as_trained == len(odd) else f"{self.agree_if_read_as_trained} of them"
        return f"{said}; read as in training, by tpssl_hf.data.scan.decode_image, {which} agree"


def some_of(indices: np.ndarray) -> np.ndarray:
    """Return up to 32 of ``indices`` (N,), evenly spaced, so that sorted classes all remain."""
    places = np.linspace(0, len(indices) - 1, min(IMAGES, len(indices))).round().astype(np.int64)
    return np.asarray(indices[places])


def check_classifier(
    folder: Path,
    store: ImageCache,
    indices: np.ndarray,
    probabilities: np.ndarray,
    names: list[str],
    device: torch.device,
    of: str,
    *,
    several: bool = False,
) -> dict[str, Any]:
    """Compare what transformers' pipeline and timm make of images with ``probabilities`` (N, K) of the evaluation.

    Args:
        folder: what :func:`tpssl_hf.models.timm_export.save_timm_folder` left.
        store: where the images are from.
        indices: (N,) int64, which of them.
        probabilities: what the evaluation says of them.
        names: of the K classes.
        device: where to compute.
        of: which images these are, for people.
        several: whether an image may have several of the K labels, so that each has a probability of its own.

    Returns:
        What ``results.json`` says under ``published_path``; its ``warning`` is None where all is well.
    """
    with _quietly():
        asked = _Asked(store, indices, list(probabilities))
        difference: Difference = _label_difference if several else partial(_class_difference, names)
        found = [
            asked.compare("transformers' pipeline", partial(_pipeline_classes, folder, device, several), difference),
            asked.compare("timm", partial(_timm_classes, folder, device, several), difference),
        ]
    return _summed_up(found, len(indices), of, MEDIAN_ALLOWED, store)


def check_segmenter(
    folder: Path, store: ImageCache, indices: np.ndarray, masks: list[np.ndarray], device: torch.device, of: str
) -> dict[str, Any]:
    """Compare what transformers' pipeline makes of images with the classes (h, w) that the evaluation found.

    They are compared in the size of the evaluation. The other arguments are those of :func:`check_classifier`.
    """
    with _quietly():
        asked = _Asked(store, indices, masks)
        found = asked.compare("transformers' pipeline", partial(_pipeline_masks, folder, device), _pixel_difference)
    return _summed_up([found], len(indices), of, PIXELS_ALLOWED, store)


@dataclass(frozen=True)
class _Asked:
    """Images of a store and what the evaluation says of them."""

    store: ImageCache
    indices: np.ndarray
    answers: Sequence[np.ndarray]

    def compare(self, path: str, load: Callable[[], Ask], difference: Difference) -> Agreement:
        """Ask about every image; whatever stops a user of the folder is a finding here, and no end of the run."""
        found = Agreement(path)
        try:
            ask = load()
        except Exception as error:
            found.failed["every image"] = _reason(error)
            return found
        equal, moved = [], []
        files = zip(self.indices.tolist(), self.store.encoded(self.indices), self.answers, strict=True)
        for index, value, own in files:
            assert value is not None  # the store holds its pixels
            where = self.store.place_of(index, value)
            try:
                same, moves, how = difference(own, ask(_feed(value), own))
            except Exception as error:
                found.failed[where] = _reason(error)
                equal.append(0.0)
            else:
                equal.append(same)
                moved.append(moves)
                if how is None:
                    continue
                found.differing[where] = how
            found.agree_if_read_as_trained += self._agrees_if_read_as_trained(value, own, ask, difference)
        found.equal = statistics.fmean(equal)
        if moved:
            found.median_difference, found.greatest_difference = statistics.median(moved), max(moved)
        return found

    def _agrees_if_read_as_trained(
        self, value: dict[str, Any], own: np.ndarray, ask: Ask, difference: Difference
    ) -> bool:
        try:
            read = Image.fromarray(decode_image(value, **_range_of(self.store)))
            return difference(own, ask(read, own))[2] is None
        except Exception:  # why is told of the image as it is
            return False


def _range_of(store: ImageCache) -> dict[str, Any]:
    """Return what ``decode_image`` must be told to read gray values of more than eight bits as the store did."""
    found = getattr(store, "wide_range", None)
    return {} if found is None else {"wide_range": found}


def _feed(value: dict[str, Any]) -> Any:
    """Return what a user would hand over: the path of a file, or its bytes opened as an image."""
    return str(value["path"]) if value["bytes"] is None else Image.open(BytesIO(value["bytes"]))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]


def _class_difference(names: list[str], own: np.ndarray, found: np.ndarray) -> tuple[float, float, str | None]:
    """Return whether the same class comes first, the greatest difference of a probability, and what is notable."""
    moved, first, other = float(np.abs(own - found).max()), int(own.argmax()), int(found.argmax())
    how = None
    if first != other and moved > NOTABLE:
        how = f"{names[other]!r} ({found[other]:.2f}) and not {names[first]!r} ({own[first]:.2f})"
    return float(first == other), moved, how


def _label_difference(own: np.ndarray, found: np.ndarray) -> tuple[float, float, str | None]:
    """Return whether all probabilities of labels agree, their greatest difference, and what is notable."""
    moved = float(np.abs(own - found).max())
    return float(moved <= NOTABLE), moved, f"a label {moved:.2f} off" if moved > NOTABLE else None


def _pixel_difference(own: np.ndarray, found: np.ndarray) -> tuple[float, float, str | None]:
    """Return the share of pixels that get the same class and of those that do not, and what is notable."""
    moved = float((own != found).mean())
    return 1 - moved, moved, f"{moved:.0%} of the pixels" if moved > PIXELS_OF_ONE_ALLOWED else None


def _summed_up(found: list[Agreement], images: int, of: str, allowed: float, store: ImageCache) -> dict[str, Any]:
    said: dict[str, list[str]] = {}
    for agreement in found:
        if trouble := agreement.trouble(images, allowed):
            said.setdefault(trouble, []).append(agreement.path)
    return {
        "images": images,
        "of": of,
        "warning": "; ".join(f"{' and '.join(paths)}: {trouble}" for trouble, paths in said.items()) or None,
        **_range_of(store),
        "paths": [asdict(agreement) for agreement in found],
    }


def _pipeline_classes(folder: Path, device: torch.device, several: bool) -> Ask:
    from transformers import pipeline

    asked = pipeline("image-classification", model=str(folder), device=device)
    names, function = asked.model.config.id2label, "sigmoid" if several else "softmax"

    def ask(feed: Any, own: np.ndarray) -> np.ndarray:
        answers = asked(feed, top_k=len(own), function_to_apply=function)
        scores = {answer["label"]: answer["score"] for answer in answers}
        return np.array([scores[names[number]] for number in range(len(own))])

    return ask


def _timm_classes(folder: Path, device: torch.device, several: bool) -> Ask:
    import timm

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(device)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))

    @torch.inference_mode()
    def ask(feed: Any, own: np.ndarray) -> np.ndarray:
        image = ImageOps.exif_transpose(Image.open(feed) if isinstance(feed, str) else feed).convert("RGB")
        logits = network(transform(image)[None].to(device))
        probabilities: np.ndarray = (logits.sigmoid() if several else logits.softmax(dim=1))[0].cpu().numpy()
        return probabilities

    return ask


def _pipeline_masks(folder: Path, device: torch.device) -> Ask:
    from transformers import pipeline

    asked = pipeline("image-segmentation", model=str(folder), device=device)

    @torch.inference_mode()
    def ask(feed: Any, own: np.ndarray) -> np.ndarray:
        inputs = asked.preprocess(feed)
        [full] = inputs["target_size"]
        outputs = asked.forward(inputs)
        [found] = asked.image_processor.post_process_semantic_segmentation(outputs, target_sizes=[own.shape])
        for answer in asked.postprocess(outputs):  # what a user gets, in the size of the image
            if answer["mask"].size != full[::-1]:
                raise ValueError(f"a mask of {answer['mask'].size} for an image of {full[::-1]} pixels")
        classes: np.ndarray = found.cpu().numpy()
        return classes

    return ask


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep bars and hints of transformers, and of timm's unclosed files, out of the run's own words."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
