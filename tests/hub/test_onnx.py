"""Runs as ONNX: names, free axes, the same numbers as torch, nothing of this machine in it, and when it is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from loopback import LoopbackHub
from PIL import Image

from tpssl_hf.errors import InputError
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.onnx import Exported, takes_any_size
from tpssl_hf.hub.publish import publish_run
from tpssl_hf.hub.snippets import onnx_snippets
from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation
from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

OUTPUTS = {
    "adapted": ["last_hidden_state", "pooler_output"],
    "classifier": ["logits"],
    "segmenter": ["logits"],
}


def publish(run: Path, **choices: Any) -> str:
    return publish_run(run, "me/x", PublishConfig(license="mit", onnx=True, **choices), say=str)


@pytest.fixture(scope="module")
def published(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What would be pushed of every run."""
    place = tmp_path_factory.mktemp("onnx")
    return {kind: Path(publish(run, dry_run=str(place / kind))) for kind, run in runs.items()}


def expected(kind: str, folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers makes of a published folder."""
    from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation

    auto = {
        "adapted": AutoModel,
        "classifier": AutoModelForImageClassification,
        "segmenter": AutoModelForSemanticSegmentation,
    }[kind]
    with torch.no_grad():
        outputs = auto.from_pretrained(folder).eval()(images)
    return {name: outputs[name] for name in OUTPUTS[kind]}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_gives_what_torch_gives_for_any_number_of_images(kind: str, published: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(published[kind] / "onnx" / "model.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["pixel_values"]
    assert [entry.name for entry in session.get_outputs()] == OUTPUTS[kind]
    any_size = kind == "segmenter"
    assert session.get_inputs()[0].shape == ["batch", 3, *(("height", "width") if any_size else (32, 32))]
    for count, *size in [(1, 50, 131), (2, 17, 40), (3, 32, 48)] if any_size else [(1, 32, 32), (3, 32, 32)]:
        images = torch.randn((count, 3, *size), generator=torch.Generator().manual_seed(0))
        found = dict(zip(OUTPUTS[kind], session.run(OUTPUTS[kind], {"pixel_values": images.numpy()}), strict=True))
        for name, own in expected(kind, published[kind], images).items():
            np.testing.assert_allclose(found[name], own.numpy(), rtol=0, atol=1e-4)
    if kind == "adapted":
        pooled = timm.create_model(f"local-dir:{published[kind]}", pretrained=True).eval()(images)
        np.testing.assert_allclose(found["pooler_output"], pooled.detach().numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_is_one_file_of_a_stated_opset_without_this_machine_in_it(kind: str, published: dict[str, Path]) -> None:
    assert [path.name for path in (published[kind] / "onnx").iterdir()] == ["model.onnx"]
    content = (published[kind] / "onnx" / "model.onnx").read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    card = (published[kind] / "README.md").read_text()
    assert "opset 18" in card
    assert ("any from 32 pixels on" in card) == (kind == "segmenter")
    for trace in (b'File "', b".py", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in content
    assert not any(entry.data_location for entry in model.graph.initializer)  # nothing outside this file


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_snippet_of_the_card_runs(
    kind: str, published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (published[kind] / "README.md").read_text()
    [block] = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "onnxruntime" in block]
    assert kind != "segmenter" or not re.search("tpssl_hf|transformers|torch", block)
    Image.new("RGB", (70, 36), (90, 120, 30)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda folder, name: Path(folder) / name)
    found: dict[str, Any] = {}
    exec(compile(block.replace("me/x", str(published[kind])), "snippet", "exec"), found)
    images = torch.from_numpy(found["pixels"])
    for name, own in expected(kind, published[kind], images).items():
        np.testing.assert_allclose(found[name], own.numpy(), rtol=0, atol=1e-4)


def test_a_segmenter_that_pads_as_tensorflow_does_or_looks_in_windows_keeps_its_size() -> None:
    def segmenter(backbone: str, window: list[int] | None = None) -> TpsslForSemanticSegmentation:
        names = {0: "ground", 1: "box"}
        return TpsslForSemanticSegmentation(
            TpsslSegmenterConfig(backbone=backbone, decoder_width=16, low_level_width=8, window=window, id2label=names)
        )

    assert takes_any_size(segmenter("test_resnet")) and not takes_any_size(segmenter("test_resnet", [32, 48]))
    assert takes_any_size(segmenter("test_efficientnet")) and not takes_any_size(segmenter("tf_efficientnet_lite0"))


def test_the_card_says_which_sizes_a_segmenter_takes() -> None:
    results = {"recipe": "ssl_segment", "config": {"test_mode": "whole"}}
    fixed = onnx_snippets(results, "me/x", Exported(b"", 18, ("logits",), (32, 48)))
    assert "(batch, 3, 32, 48)" in fixed and ".resize((48, 32))" in fixed
    assert "the scores above were not taken on images resized to this" in fixed
    free = onnx_snippets(results, "me/x", Exported(b"", 18, ("logits",), None))
    assert "(batch, 3, height, width)" in free and "any from 32 pixels on" in free
    assert "resize((" not in free and "it.resize" not in free
    assert ".then((it) => it.resize(48, 32))" in fixed and "transformers import" not in fixed


def test_browsers_get_the_pixels_of_the_run_and_python_goes_on_as_before(published: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    settings = json.loads((published["classifier"] / "preprocessor_config.json").read_text())
    assert not {name for name in settings if "type" in name}  # else transformers would take another processor
    config = json.loads((published["classifier"] / "config.json").read_text())
    before = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"]))
    random = np.random.default_rng(0)
    for size in ((72, 64), (30, 20), (32, 32), (64, 112)):  # even margins: of odd ones the halves may be a pixel off
        image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        wanted = before(image)[None]
        browser = CLIPImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(browser, wanted, rtol=0, atol=1e-5)
        own = AutoImageProcessor.from_pretrained(published["classifier"])(image)["pixel_values"]
        assert torch.equal(own, wanted)
    assert "image_mean" in (published["segmenter"] / "preprocessor_config.json").read_text()  # the run's own


def test_it_is_pushed_with_the_rest_and_goes_with_it(runs: dict[str, Path], hub: LoopbackHub, api: HfApi) -> None:
    publish_run(runs["classifier"], "me/x", PublishConfig(license="mit", onnx=True), api=api, say=str)
    content = hub.head("me/x")["onnx/model.onnx"]
    assert onnxruntime.InferenceSession(content).get_outputs()[0].name == "logits"
    assert len(hub.repositories["me/x"].commits) == 2, "the empty one and ours"
    publish_run(runs["classifier"], "me/x", PublishConfig(license="mit"), api=api, say=str)
    assert not {"onnx/model.onnx", "preprocessor_config.json"} & hub.head("me/x").keys()


def test_a_missing_package_is_named(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpssl_hf.hub.onnx.PACKAGES", ("onnx", "onnx_of_tomorrow"))
    with pytest.raises(InputError, match=r"needs onnx_of_tomorrow, not installed here: .*tpssl-hf\[onnx\]"):
        publish(runs["adapted"], dry_run=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_that_differs_is_refused(
    runs: dict[str, Path], published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = onnx.load(published["classifier"] / "onnx" / "model.onnx")
    for tensor in other.graph.initializer:
        if tensor.name.endswith("fc.bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.01, tensor.name))
    monkeypatch.setattr("tpssl_hf.hub.onnx._graph", lambda *_: other.SerializeToString())
    with pytest.raises(InputError, match="onnxruntime's logits differ from torch's by .* more than 1e-04"):
        publish(runs["classifier"], dry_run=str(tmp_path / "out"))
