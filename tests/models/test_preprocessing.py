"""Weights are shown images the way they want them, wherever they come from, and what is saved says what was done."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.models.timm_export import Preprocessing, preprocessing_of, save_timm_folder

TAGS = [
    "resnet18.tv_in1k",
    "resnet18.a1_in1k",
    "vit_small_patch16_224.dino",
    "vit_small_patch16_224.augreg_in1k",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "tf_efficientnet_lite0.in1k",
]


def facts_of(tag: str) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(tag)
    assert cfg is not None
    return {
        "input_size": [3, 64, 64],
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
    }


def folder_like(tag: str, folder: Path, network: nn.Module, layout: str = "new") -> Path:
    """Write weights with the preprocessing of ``tag``, as others do, in one of timm's two forms."""
    save_timm_folder(network, folder, preprocessing=Preprocessing(32), provenance={})
    facts = facts_of(tag)
    described = {"pretrained_cfg": facts} if layout == "new" else facts
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 0, **described}))
    return folder


@pytest.mark.filterwarnings("ignore:config.json in .* was changed after it had been saved")  # here on purpose
@pytest.mark.parametrize("tag", TAGS)
def test_what_is_evaluated_is_what_the_weights_want_and_what_is_saved(
    tag: str, tmp_path: Path, tiny_backbone: nn.Module
) -> None:
    """timm's own transform, made of the saved config alone, is the judge."""
    given = folder_like(tag, tmp_path / "given", tiny_backbone)
    model, origin = load_backbone("test_resnet", init=str(given), image_size=48)
    shown, wanted = preprocessing_of(model), facts_of(tag)
    assert [list(shown.mean), list(shown.std)] == [wanted["mean"], wanted["std"]]
    assert (shown.interpolation, shown.crop_pct) == (wanted["interpolation"], wanted["crop_pct"])
    assert shown.image_size == 48 and origin.image_size == 64
    assert origin.size_note(48).endswith("meant for 64 px, this run shows them 48 px") and not origin.size_note(64)
    saved = save_timm_folder(model, tmp_path / "saved", preprocessing=shown, provenance={})
    config = timm.data.resolve_data_config(
        pretrained_cfg=json.loads((saved / "config.json").read_text())["pretrained_cfg"]
    )
    transform = timm.data.create_transform(**config)
    assert config["interpolation"] == wanted["interpolation"]
    # a soft scene: timm resizes, then cuts, and its rounding moves what is cut by up to half a pixel
    soft = Image.fromarray(load_sample_images().images[0]).resize((8, 6)).resize((400, 300), Image.Resampling.BICUBIC)
    scene = np.asarray(soft)
    size = torch.tensor([scene.shape[:2]])
    images = ImageBatch(torch.from_numpy(scene.copy())[None], size, torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    difference = (eval_view(images, ViewSettings.of(shown, 0))[0] - transform(Image.fromarray(scene))).abs()
    assert float(difference.mean()) < 0.05


@pytest.mark.filterwarnings("ignore:config.json in .* was changed after it had been saved")  # here on purpose
@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("place", ["folder", "file", "hub"])
def test_mean_and_std_are_those_beside_the_weights(
    place: str, layout: str, tmp_path: Path, tiny_backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_like("vit_small_patch16_224.augreg_in1k", tmp_path / "given", tiny_backbone, layout)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    init = {"folder": str(folder), "file": str(folder / "model.safetensors"), "hub": "me/weights"}[place]
    shown = preprocessing_of(load_backbone("test_resnet", init=init)[0])
    assert (shown.mean, shown.std, shown.crop_pct, shown.image_size) == ((0.5,) * 3, (0.5,) * 3, 0.9, 64)
    segmenter, _ = build_segmenter("test_resnet", init=init, class_names=["a", "b"], decoder_width=8)
    assert segmenter.config.image_mean == [0.5] * 3


def test_a_file_alone_is_of_the_tag_that_is_named_and_random_weights_see_whole_images() -> None:
    model, origin = load_backbone("resnet18.tv_in1k", init="random")
    assert preprocessing_of(model).interpolation == "bilinear" and preprocessing_of(model).crop_pct == 1.0
    assert origin.weights is None and origin.image_size is None
    with pytest.raises(InputError, match=r"no tag 'tv' of resnet18; it has a1_in1k, .*tv_in1k"):
        load_backbone("resnet18.tv", init="random")
    with pytest.raises(InputError, match="name different weights; leave one tag out"):
        load_backbone("resnet18.tv_in1k", init="resnet18.a1_in1k")


@pytest.mark.parametrize("init", ["timm", "resnet18.tv_in1k"])
def test_timms_weights_are_recorded_with_their_tag_and_digest(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced: what belongs to the tag is known without it."""
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda model, **_: nn.init.ones_(model.bn1.weight))
    model, origin = load_backbone("resnet18.tv_in1k", init=init, image_size=32)
    assert origin.name == "resnet18.tv_in1k" and origin.weights is not None and len(origin.weights) == 64
    assert (origin.image_size, preprocessing_of(model).interpolation) == (224, "bilinear")
    assert preprocessing_of(model).crop_pct == 0.875


def test_the_digest_is_of_the_weights_and_not_of_their_file_or_size(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, _ = load_backbone("test_vit", init="random", image_size=64)
        folders.append(
            save_timm_folder(model, tmp_path / str(seed), preprocessing=preprocessing_of(model), provenance={})
        )
    inits = [str(folders[0]), str(folders[0] / "model.safetensors"), str(folders[1])]
    digests = [load_backbone("test_vit", init=init, image_size=64)[1].weights for init in inits]
    digests.append(load_backbone("test_vit", init=inits[0], image_size=96)[1].weights)
    assert digests[0] == digests[1] == digests[3] != digests[2]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [({"mean": 0.5}, "has mean 0.5, where a list of 3"), ({"std": [1.0, 1.0]}, "has std"), ([], "no description")],
)
def test_a_config_that_cannot_be_meant_is_one_sentence(
    damage: Any, sentence: str, tmp_path: Path, tiny_backbone: nn.Module
) -> None:
    folder = save_timm_folder(tiny_backbone, tmp_path / "model", preprocessing=Preprocessing(32), provenance={})
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": damage}))
    with pytest.raises(InputError, match=sentence):
        load_backbone("test_resnet", init=str(folder))


def test_squashed_images_lose_their_shape_and_nothing_else() -> None:
    rows = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None], 80, axis=1).repeat(3, axis=2)
    images = ImageBatch(torch.from_numpy(rows)[None], torch.tensor([[40, 80]]), torch.zeros(1).long(), torch.zeros(1))
    whole = Preprocessing(40, (0.0,) * 3, (1.0,) * 3, crop_mode="squash")
    torch.testing.assert_close(eval_view(images, ViewSettings.of(whole, 0))[0, 0, :, 0] * 255, torch.arange(40.0))
