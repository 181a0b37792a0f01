"""The network of a finished run as one ONNX file, under the names onnxruntime's users and transformers.js expect."""

import importlib.util
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.hub.run_record import MODEL, MODEL_CONFIG, WEIGHTS, Evidence

OPSET = 18  # what torch writes without converting; onnxruntime runs it since 1.14, in browsers too
LARGEST_WEIGHTS = 2_000_000_000  # bytes; one ONNX file holds no 2 GiB
TOLERANCE = 1e-4
INPUT = "pixel_values"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OUTPUTS = {
    "target_pretrain": ("last_hidden_state", "pooler_output"),
    "ssl_classify": ("logits",),
    "ssl_segment": ("logits",),
}


@dataclass(frozen=True)
class Exported:
    """A network as ONNX.

    Attributes:
        content: the file; float32, its weights within.
        opset: of ONNX, that it is written for.
        outputs: names of what it gives for ``pixel_values`` (B, 3, H, W), any B.
        size: the height and width it takes, in pixels; None for any.
    """

    content: bytes
    opset: int
    outputs: tuple[str, ...]
    size: tuple[int, int] | None


class _Outputs(nn.Module):
    """The named outputs of a model of transformers, in order.

    Args:
        model: images (B, 3, H, W) to an output of transformers.
        names: which of its entries.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values)
        return tuple(outputs[name] for name in self.names)


def export_onnx(evidence: Evidence) -> Exported:
    """Export the network of a run, and compare what onnxruntime makes of it with torch.

    A backbone gives what ``AutoModel`` of transformers does, classifiers and segmenters their logits. The size of the
    images is that of the run. A segmenter takes any, unless it looks at large images in windows, its backbone pads as
    TensorFlow does, or torch cannot export it so: then it takes that of its crops.

    Args:
        evidence: what the run says about itself.

    Raises:
        InputError: if a package is missing, the weights are too large for one file, torch cannot export the network,
            or the outputs differ by more than 1e-4 of the largest (of 1, if that is more).
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"`--onnx` needs {' and '.join(missing)}, not installed here: `uv pip install 'tpssl-hf[onnx]'`, or leave "
            "it out."
        )
    folder, recipe = evidence.folder / MODEL, evidence.results["recipe"]
    length = (folder / WEIGHTS).stat().st_size
    if length > LARGEST_WEIGHTS:
        raise InputError(
            f"{folder / WEIGHTS} is {length:,} bytes long, and one ONNX file can hold {LARGEST_WEIGHTS:,}; publish "
            "without `--onnx`."
        )
    config = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    network = _Outputs(_loaded(folder, recipe), OUTPUTS[recipe]).eval()
    if recipe == "ssl_segment":
        height, width = (int(evidence.results["config"][f"crop_{side}"]) for side in ("height", "width"))
        if takes_any_size(network):
            try:
                return _of_any_size(network, (height, width))
            except InputError as error:
                warnings.warn(
                    f"ONNX takes images of {height} x {width} pixels only, because with any size {error}", stacklevel=2
                )
    else:
        height, width = config["pretrained_cfg"]["input_size"][1:]
    content = _graph(network, (height, width))
    for given in (_noise(height, width), _as_the_card_says(folder, recipe, (height, width))):
        _compare(content, network, given)
    return Exported(content, OPSET, network.names, (height, width))


def takes_any_size(network: nn.Module) -> bool:
    """Whether nothing in a segmenter depends on the size of its images in a way that a graph cannot hold.

    That does what windows do, and padding as TensorFlow has it, whose amount follows the size where a layer strides.
    """
    windows = any(getattr(getattr(part, "config", None), "window", None) for part in network.modules())
    same: list[Any] = [layer for layer in network.modules() if type(layer).__name__.endswith("Same")]
    return not windows and all(np.max(layer.stride) == 1 for layer in same)


def _of_any_size(network: "_Outputs", size: tuple[int, int]) -> Exported:
    """Export a segmenter with free height and width, compared with torch at several sizes."""
    height, width = size
    content = _graph(network, size, any_size=True)
    for shape in (size, (height + 13, 2 * width + 1), (2 * height, width), (width // 2 + 7, height + 30)):
        _compare(content, network, _noise(*shape))
    return Exported(content, OPSET, network.names, None)


def _noise(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _loaded(folder: Path, recipe: str) -> nn.Module:
    import transformers

    import tpssl_hf  # noqa: F401  # makes the segmenter known to transformers

    kind = {
        "target_pretrain": transformers.AutoModel,
        "ssl_classify": transformers.AutoModelForImageClassification,
        "ssl_segment": transformers.AutoModelForSemanticSegmentation,
    }[recipe]
    model: nn.Module = kind.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    return model


def _graph(network: _Outputs, size: tuple[int, int], *, any_size: bool = False) -> bytes:
    """Return the network as ONNX with a free batch; height and width are those of ``size``, or free."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    free = {0: "batch", **({2: "height", 3: "width"} if any_size else {})}
    try:
        program = torch.onnx.export(
            network,
            (torch.zeros(3, 3, *size),),  # not the 2 images it is compared on, so that no axis is fixed unnoticed
            dynamo=True,
            input_names=[INPUT],
            output_names=network.names,
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in free.items()},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(f"torch cannot export this network to ONNX ({reason}); publish without `--onnx`.") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # it holds source lines with this machine's paths
    content: bytes = program.model_proto.SerializeToString(deterministic=True)
    return content


def _as_the_card_says(folder: Path, recipe: str, size: tuple[int, int]) -> Tensor:
    """Return a wide and a tall image of other sizes as the card's snippet for onnxruntime prepares them."""
    from transformers import AutoImageProcessor

    processor, pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False), []
    for height, width in ((size[0] // 2 + 1, 3 * size[1]), (2 * size[0] + 1, size[1])):
        ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
        image, options = Image.fromarray(ramp.astype(np.uint8)), {}
        if recipe == "ssl_segment":
            image, options = image.resize((size[1], size[0])), {"shorter_side": 0}
        pixels.append(processor(image, return_tensors="pt", **options)["pixel_values"])
    if {tuple(part.shape[2:]) for part in pixels} != {size}:
        raise InputError(
            f"the image processor of {folder} does not give images of {size[0]} x {size[1]} pixels, which the ONNX "
            "file takes; publish without `--onnx`."
        )
    return torch.cat(pixels)


@torch.no_grad()
def _compare(content: bytes, network: _Outputs, images: Tensor) -> None:
    """Refuse an export that does not give what the network gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for name, own, found in zip(
        network.names, network(images), session.run(network.names, {INPUT: images.numpy()}), strict=True
    ):
        difference = float("inf")
        if own.shape == found.shape:
            difference = float((own - torch.from_numpy(found)).abs().max() / own.abs().max().clamp(min=1))
        if not difference <= TOLERANCE:
            raise InputError(
                f"onnxruntime's {name} differ from torch's by {difference:.1e} of the largest, more than "
                f"{TOLERANCE:.0e}; publish without `--onnx`."
            )


def browser_processor(evidence: Evidence) -> dict[str, Any]:
    """Return the preprocessor_config.json of a backbone or classifier, which transformers.js needs.

    It names no class, so that transformers in Python goes on to take config.json's word, as timm does. Where a margin
    to crop is odd, its halves may differ by a pixel from timm's.

    Args:
        evidence: what the run says about itself.
    """
    config = json.loads((evidence.folder / MODEL / MODEL_CONFIG).read_text(encoding="utf-8"))
    facts = resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    height, width = facts["input_size"][1:]
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": math.floor(min(height, width) / facts["crop_pct"])},
        "resample": int(Image.Resampling[facts["interpolation"].upper()]),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
    }
