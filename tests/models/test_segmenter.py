"""The segmenter in every loader, and on weights that must arrive bit by bit."""

import copy
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from tpssl_hf.errors import InputError
from tpssl_hf.models.segmentation_inference import predict_masks
from tpssl_hf.models.segmenter import (
    TpsslForSemanticSegmentation,
    TpsslSegmenterConfig,
    build_segmenter,
    load_features,
    save_segmenter,
)
from tpssl_hf.models.shrinking import reduced_size, shrunk
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder

TINY = ["test_resnet", "test_convnext", "test_efficientnet"]
NAMES = ["background", "cat", "dog"]
PALETTE = [[0, 0, 0], [64, 0, 0], [64, 0, 128]]


def segmenter(architecture: str = "test_resnet", *, init: str = "random", **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"class_names": NAMES, "decoder_width": 16, "low_level_width": 8, **options}
    return build_segmenter(architecture, init=init, **options)[0]


def with_random_norms(model: nn.Module) -> nn.Module:
    """A lost statistic must show, and a branch that starts at zero must pass gradients."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 64, 48)), generator=torch.Generator().manual_seed(1))


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def in_memory(loaded: nn.Module) -> Any:
    """Copy the weights from the mapped file, where they are aligned so that convolutions sum in another order."""
    return copy.deepcopy(loaded)


def folder_of(architecture: str, folder: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(7)
    adapted = with_random_norms(timm.create_model(architecture, num_classes=0)).eval()
    return save_timm_folder(adapted, folder, preprocessing=Preprocessing(32), provenance={}), adapted


# --- the network


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("architecture", TINY)
def test_logits_have_the_size_of_the_images_and_maps_the_strides(architecture: str, output_stride: int) -> None:
    model = segmenter(architecture, output_stride=output_stride).eval()
    sizes: list[Any] = []
    model.decoder.register_forward_pre_hook(lambda _, maps: sizes.extend(tuple(m.shape[2:]) for m in maps))
    assert model(images()).logits.shape == (2, 3, 64, 48)
    assert sizes == [(16, 12), (64 // output_stride, 48 // output_stride)]


@pytest.mark.parametrize("architecture", TINY)
def test_any_size_gives_the_logits_of_the_image_with_a_border_of_the_mean_color(architecture: str) -> None:
    model = with_random_norms(segmenter(architecture)).eval()
    for height, width in [(1, 1), (1, 40), (17, 33), (31, 16)]:
        image = images(1, 3, height, width)
        bordered = torch.zeros(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
        bordered[:, :, :height, :width] = image
        with torch.no_grad():
            logits = model(image).logits
            assert torch.equal(logits, model(bordered).logits[:, :, :height, :width])
        assert logits.shape == (1, 3, height, width)


@pytest.mark.parametrize("architecture", TINY)
def test_a_gradient_reaches_every_trainable_parameter(architecture: str) -> None:
    model = with_random_norms(segmenter(architecture)).train()
    model(images(), labels=torch.randint(0, 3, (2, 64, 48))).loss.backward()
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in parameters if p.grad is None or not p.grad.any()] == []


def test_the_loss_is_the_mean_over_the_pixels_that_are_not_255() -> None:
    model, labels = segmenter().eval(), torch.randint(0, 3, (2, 64, 48))
    labels[:, :20] = 255
    output = model(images(), labels=labels)
    each = -output.logits.log_softmax(dim=1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
    torch.testing.assert_close(output.loss, each[labels != 255].mean())
    assert torch.equal(model(images(), labels=labels.to(torch.uint8)).loss, output.loss)


def test_a_batch_without_labeled_pixels_has_loss_zero_and_a_gradient() -> None:
    model = segmenter().train()
    loss = model(images(), labels=torch.full((2, 64, 48), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_decoder_features_are_there_for_other_learners() -> None:
    model = segmenter().eval()
    logits, features = model.decode(images())
    assert logits.shape == (2, 3, 16, 12) and features.shape == (2, 16, 16, 12)
    torch.testing.assert_close(model.decoder.classifier(features), logits)
    output = model(images(), output_hidden_states=True)
    assert torch.equal(output.hidden_states[0], features)
    upsampled = F.interpolate(logits, (64, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.logits, upsampled)


def test_frozen_statistics_stay_while_their_scales_learn() -> None:
    model = segmenter()
    model.freeze_backbone_statistics()
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(images(), labels=torch.randint(0, 3, (2, 64, 48))).loss.backward()
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    norm = next(layer for layer in model.backbone.modules() if isinstance(layer, nn.BatchNorm2d))
    assert norm.weight.requires_grad and norm.weight.grad is not None and not norm.training
    assert model.training and model.backbone.training and model.decoder.training


def test_statistics_that_are_not_frozen_follow_the_batches() -> None:
    model = segmenter().train()
    norm = next(layer for layer in model.backbone.modules() if isinstance(layer, nn.BatchNorm2d))
    before = norm.running_mean.clone()  # type: ignore[union-attr, operator]
    model(images())
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


# --- weights of the backbone


@pytest.mark.parametrize("architecture", TINY)
def test_the_backbone_of_a_folder_arrives_bit_by_bit(architecture: str, tmp_path: Path) -> None:
    folder, adapted = folder_of(architecture, tmp_path / "model")
    model = segmenter(architecture, init=str(folder)).eval()
    stored = load_file(folder / "model.safetensors")
    own = model.backbone.state_dict()
    plain = {key if key in stored else key.replace("_", ".", 1): tensor for key, tensor in own.items()}
    assert all(torch.equal(tensor, stored[key]) for key, tensor in plain.items())
    beyond_the_maps = ("head.norm.", "conv_head.", "bn2.")
    assert all(key.startswith(beyond_the_maps) for key in stored.keys() - plain.keys())
    with torch.no_grad():
        reference = timm.create_model(architecture, num_classes=0, output_stride=16)
        reference.load_state_dict(adapted.state_dict())
        expected = reference.eval().forward_intermediates(images(), intermediates_only=True)[-1]
        assert torch.equal(model.backbone(images())[-1], expected)


def test_a_random_backbone_has_timms_initialization() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("test_resnet", num_classes=0)
    assert equal_states(segmenter().backbone, reference)


def test_a_missing_backbone_tensor_is_named() -> None:
    tensors = timm.create_model("test_convnext", num_classes=0).state_dict()
    features = timm.create_model("test_convnext", features_only=True)
    load_features(features, tensors, "this state")
    del tensors["stages.1.blocks.0.conv_dw.weight"]
    with pytest.raises(InputError, match=r"this state lacks 1 .*stages_1\.blocks\.0\.conv_dw\.weight"):
        load_features(features, tensors, "this state")


def test_a_folder_without_a_backbone_tensor_is_refused(tmp_path: Path) -> None:
    folder, _ = folder_of("test_resnet", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layer1.0.bn1.running_var"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"layer1\.0\.bn1\.running_var"):
        segmenter(init=str(folder))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("test_vit", {}, "gives no feature maps of output stride 16"),
        ("densenet121", {"output_stride": 8}, "gives no feature maps of output stride 8"),
        ("test_resnet", {"output_stride": 32}, "output_stride 32 is not 16 or 8"),
        ("test_resnet", {"class_names": ["one", "one"]}, "different names"),
        ("test_resnet", {"palette": PALETTE[:2]}, "2 colors for 3 classes"),
        ("test_resnet", {"class_names": [f"c{i}" for i in range(256)]}, "ignore_index 255 is one of the 256 classes"),
    ],
)
def test_what_cannot_be_built_is_refused(architecture: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        segmenter(architecture, **options)


def test_a_backbone_without_an_early_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpssl_hf.models.segmenter.LOW_STRIDE", 3)
    with pytest.raises(InputError, match=r"gives maps of strides \[2, 4, 8, 16, 16\]; .* needs one of stride 3"):
        segmenter()


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels have shape \(2, 48, 64\)"):
        segmenter()(images(), labels=torch.zeros(2, 48, 64, dtype=torch.int64))


# --- the published folder


@pytest.fixture
def model() -> Any:
    return with_random_norms(segmenter(palette=PALETTE)).eval()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return save_segmenter(channels_last, tmp_path / "model", provenance={"paper": "arXiv:2205.03001"})


@torch.inference_mode()
@pytest.mark.parametrize("loader", [TpsslForSemanticSegmentation, AutoModelForSemanticSegmentation])
def test_a_saved_segmenter_comes_back_bit_by_bit(loader: Any, model: Any, folder: Path) -> None:
    loaded, info = loader.from_pretrained(folder, output_loading_info=True)
    assert type(loaded) is TpsslForSemanticSegmentation and not info["missing_keys"] and not info["unexpected_keys"]
    assert equal_states(loaded, model) and not loaded.training
    assert torch.equal(in_memory(loaded)(images()).logits, model(images()).logits)


@torch.inference_mode()
def test_buffers_that_are_in_no_file_come_back_as_well(tmp_path: Path) -> None:
    blurred = segmenter("resnetblur18").eval()
    loaded = TpsslForSemanticSegmentation.from_pretrained(save_segmenter(blurred, tmp_path / "model"))
    assert torch.equal(in_memory(loaded)(images()).logits, blurred(images()).logits)


def test_other_classes_give_a_new_classifier_and_leave_the_rest(model: Any, folder: Path) -> None:
    loaded = AutoModelForSemanticSegmentation.from_pretrained(
        folder, id2label={i: f"c{i}" for i in range(7)}, ignore_mismatched_sizes=True
    )
    old, new = model.state_dict(), loaded.state_dict()
    changed = {key for key in old if old[key].shape != new[key].shape or not torch.equal(old[key], new[key])}
    assert changed == {"decoder.classifier.weight", "decoder.classifier.bias"}
    assert 0.005 < loaded.decoder.classifier.weight.std() < 0.02 and not loaded.decoder.classifier.bias.any()


def test_a_published_file_without_a_backbone_tensor_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.layer2.0.conv1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 .*backbone\.layer2\.0\.conv1\.weight"):
        AutoModelForSemanticSegmentation.from_pretrained(folder)


def test_the_config_keeps_names_palette_and_provenance(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is TpsslSegmenterConfig
    assert config.id2label == dict(enumerate(NAMES)) and config.label2id["dog"] == 2 and config.num_labels == 3
    assert config.palette == PALETTE and config.ignore_index == 255 and config.backbone == "test_resnet"
    assert config.provenance["paper"] == "arXiv:2205.03001" and config.provenance["backbone"]["kind"] == "random"


def test_the_processor_normalizes_as_the_backbone_wants(tmp_path: Path) -> None:
    model = segmenter("test_efficientnet")
    facts = timm.create_model("test_efficientnet").pretrained_cfg
    white = Image.fromarray(np.full((21, 33, 3), 255, dtype=np.uint8))
    for image_size, expected in [(None, (21, 33)), ((32, 64), (32, 64))]:
        processor = AutoImageProcessor.from_pretrained(save_segmenter(model, tmp_path / "m", image_size=image_size))
        pixels = processor(white, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, *expected)
        torch.testing.assert_close(pixels[0, :, 5, 5], (1 - torch.tensor(facts["mean"])) / torch.tensor(facts["std"]))


@pytest.mark.parametrize("size", [(21, 33), (64, 64), (90, 131), (300, 75), (40, 700)])
def test_the_processor_shrinks_as_the_cache_does(size: tuple[int, int], tmp_path: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(save_segmenter(segmenter(), tmp_path / "m", shorter_side=48))
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    stored = np.array(shrunk(image, reduced_size(*size, 48)))
    mean, std = (torch.tensor(values) for values in (processor.image_mean, processor.image_std))
    expected = ((torch.from_numpy(stored) / 255 - mean) / std).permute(2, 0, 1)[None]
    for given in (image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        torch.testing.assert_close(processor(given, return_tensors="pt")["pixel_values"], expected)
    grays = processor(image.convert("L"), return_tensors="pt")["pixel_values"]
    assert grays.shape == expected.shape
    labels = np.zeros(size, dtype=np.uint8)
    labels[: size[0] // 2] = 2
    both = processor(image, segmentation_maps=labels, return_tensors="pt")
    assert both["labels"].shape[1:] == expected.shape[2:] and set(both["labels"].unique().tolist()) == {0, 2}
    assert processor(image, shorter_side=0, return_tensors="pt")["pixel_values"].shape[2:] == size


@torch.inference_mode()
def test_windows_that_were_scored_are_those_of_the_saved_model(tmp_path: Path) -> None:
    model = segmenter()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(save_segmenter(model, tmp_path / "m", window=(32, 48)))
    images = torch.randn(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    slid, whole = (predict_masks(model, images, mode=mode, window=(32, 48)) for mode in ("slide", "whole"))
    assert torch.equal(predict_masks(loaded, images), slid) and not torch.equal(slid, whole)
    one = images[..., :32, :48]
    torch.testing.assert_close(loaded(one).logits, model.eval()(one).logits)  # logits still, where one window is all


def test_the_pipeline_names_the_classes_at_the_size_of_the_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.pipelines.base.logger.error", lambda message: pytest.fail(message))
    noise = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    answers = pipeline("image-segmentation", model=str(folder))(Image.fromarray(noise))
    assert {answer["label"] for answer in answers} <= set(NAMES)
    covered = sum(np.asarray(answer["mask"]) // 255 for answer in answers)
    assert covered.shape == (45, 70) and (covered == 1).all()


def test_nothing_is_pickled_and_an_existing_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.bin").write_text("old")
    save_segmenter(segmenter(), target)
    files = sorted(target.iterdir())
    assert [path.name for path in files] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert all(path.stat().st_mode & stat.S_IRGRP for path in files)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert json.loads((target / "config.json").read_text())["model_type"] == "tpssl-segmenter"


# One process for each order of the imports, forked from one that has loaded what takes longest and matters to neither.
BOTH_ORDERS = """
import os, sys, timm
assert not {"tpssl_hf", "transformers"} & set(sys.modules)
if before := os.fork():
    from transformers import AutoModelForSemanticSegmentation
    import tpssl_hf
else:
    import tpssl_hf
    from transformers import AutoConfig
    AutoConfig.from_pretrained(sys.argv[1])
    from transformers import AutoModelForSemanticSegmentation
found = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1])
assert type(found).__name__ == "TpsslForSemanticSegmentation"
assert not before or os.waitpid(before, 0)[1] == 0
"""


def test_one_import_before_or_after_transformers_is_enough(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", BOTH_ORDERS, str(folder)], check=True)
