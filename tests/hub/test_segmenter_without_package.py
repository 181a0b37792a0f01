"""What the card of a segmenter says to people who have only torch, timm and safetensors, or only onnxruntime."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.snippets import snippets
from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation, save_segmenter
from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig


def loader(usage: str) -> str:
    """The block of a card that needs neither tpssl_hf nor transformers."""
    [block] = [text for text in re.findall(r"```python\n(.*?)```", usage, re.DOTALL) if "safetensors.torch" in text]
    return block


def alone(block: str, folder: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block beside image.png, on the files of a folder, where tpssl_hf and transformers cannot be imported."""
    image.save(folder / "image.png")
    with monkeypatch.context() as patch:
        for name in ("tpssl_hf", "transformers"):
            for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
                patch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError):
            exec("import tpssl_hf", {})
        patch.setattr("huggingface_hub.hf_hub_download", lambda _, name: folder / name)
        patch.chdir(folder)
        found: dict[str, Any] = {}
        exec(compile(block, "snippet", "exec"), found)
    return found


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def check(found: dict[str, Any], folder: Path, image: Image.Image) -> None:
    """Compare the network that a block has built, and the pixels it shows it, with what transformers makes of them."""
    from transformers import AutoImageProcessor

    model = TpsslForSemanticSegmentation.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    given = torch.from_numpy(found["pixels"])
    assert given.shape == pixels.shape and float((given - pixels).abs().mean()) < 0.01  # of a deviation of about 1
    with torch.no_grad():
        for images in (given, torch.randn(2, 3, 45, 70, generator=torch.Generator().manual_seed(0))):
            own = model(images).logits
            alike = 1e-4 * min(1.0, float(own.std()))  # a run of two steps gives small numbers
            torch.testing.assert_close(found["network"](images), own, rtol=0, atol=alike)
    torch.testing.assert_close(found["logits"], found["network"](given), rtol=0, atol=1e-5)


def test_the_block_of_a_published_card_gives_the_logits_of_the_run(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, image = tmp_path / "out", photo(60, 45)
    publish_run(runs["segmenter"], "me/x", PublishConfig(license="mit", dry_run=str(folder)), say=str)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "transformers knows it only after\n`import tpssl_hf`" in card and "library_name: tpssl_hf" in card
    assert "it runs in torch and timm, as below" in card and "onnx" not in card and "windows" not in card
    found = alone(loader(card), folder, image, monkeypatch)
    check(found, folder, image)


@pytest.mark.parametrize(
    ("backbone", "stride", "shorter_side", "size", "shown"),
    [("test_resnet", 8, None, (40, 56), (40, 56)), ("test_efficientnet", 16, 32, None, (28, 64))],
)
def test_it_fits_other_backbones_strides_and_images_that_are_shrunk_or_resized(
    backbone: str,
    stride: int,
    shorter_side: int | None,
    size: tuple[int, int] | None,
    shown: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = dict(enumerate("abc"))
    config = TpsslSegmenterConfig(backbone, stride, decoder_width=24, low_level_width=7, id2label=names)
    torch.manual_seed(0)
    model = TpsslForSemanticSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder, image = tmp_path / "model", photo(90, 40)
    save_segmenter(model, folder, shorter_side=shorter_side, image_size=size)
    mode = "whole" if size is None else "resize"
    usage = snippets({"recipe": "ssl_segment", "backbone": backbone, "config": {"test_mode": mode}}, "me/x")
    found = alone(loader(usage), folder, image, monkeypatch)
    check(found, folder, image)
    assert found["mask"].shape == shown and found["config"]["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_the_card_says_where_it_runs_and_what_it_does_not_do() -> None:
    results = {"recipe": "ssl_segment", "backbone": "test_resnet", "config": {"test_mode": "slide"}}
    usage = snippets(results, "me/x", onnx=True)
    assert "it runs in onnxruntime, or torch and timm, as below" in usage
    assert "cut into windows of that size" in usage and "the lines above see images whole" in usage
