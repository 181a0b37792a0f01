"""Any timm backbone: one small member of every family, through every method, or refused in a sentence before a run.

Shapes are what is tested, so most of it is computed on tensors that hold no numbers.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.distill import Distill, DistillConfig
from tpssl_hf.models.backbone import WeightsSource, load_backbone
from tpssl_hf.models.classifier import features_and_logits, load_classifier
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.models.sizes import check_crop
from tpssl_hf.models.teacher import Teacher
from tpssl_hf.models.timm_export import Preprocessing, preprocessing_of, save_timm_folder

SMALL: dict[str, dict[str, Any]] = {
    "byol": {"hidden_features": 32, "projection_features": 16},
    "moco": {"queue_size": 16, "projection_features": 16},
    "simclr": {"projection_features": 16},
    "densecl": {"queue_size": 16, "hidden_features": 32, "projection_features": 16},
    "distill": {"teacher": "made below", "queue_size": 16},
    "pixpro": {"hidden_features": 32, "projection_features": 16},
}


FAMILIES = {  # of timm 1.0.31, and the smallest member of each
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
LARGER = {
    "byoanet": 256,
    "crossvit": 240,
    "csatv2": 128,
    "efficientformer": 224,
    "inception_resnet_v2": 80,
    "inception_v3": 80,
    "inception_v4": 80,
}  # images, in pixels; 64 suits the others
NO_MAPS = (  # tokens or several maps: no densecl, no pixpro
    "beit cait coat convit crossvit deepseek_vit deit efficientformer efficientvim eva gemma4_vit hiera levit "
    "mlp_mixer mvitv2 naflexvit pit tnt twins vision_transformer vision_transformer_hybrid "
    "vision_transformer_relpos vitamin volo xcit "
)
NO_LINEAR_HEAD = (  # no classifier of ours
    "cpubone crossvit dla dpn efficientformer efficientformer_v2 efficientvim iformer levit repvit resnetv2 "
    "sequencer swiftformer vision_transformer_sam "
)
SEGMENTERS = (  # maps of strides 4 and 16
    "byobnet convnext cspnet cspnext efficientnet hardcorenas inception_next mobilenetv3 mobilevit nfnet regnet "
    "res2net resnest resnet resnetv2 rexnet sknet xception_aligned "
)


def backbone_of(architecture: str, size: int) -> nn.Module:
    return load_backbone(architecture, init="random", image_size=size)[0]


def pretrained_once(name: str, backbone: nn.Module, size: int) -> None:
    """Make one step of a method, as a run does it."""
    spec = PRETRAIN[name]
    config = replace(spec.config(), **SMALL[name])
    spec.check(backbone, config, size, 4)
    method = (taught if name == "distill" else spec.build)(backbone, config).train()
    images = {f"view{number}": torch.randn(4, 3, size, size) for number in (1, 2)}
    images |= {f"geometry{number}": torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4) for number in (1, 2)}
    images |= {f"affine{number}": torch.eye(3).expand(4, 3, 3) for number in (1, 2)}
    method({"images": images}, 0.0)["loss"].backward()
    method.after_step(0.0)


def taught(backbone: nn.Module, config: DistillConfig) -> Distill:
    """Put distillation around a backbone, with a teacher that need not be read from anywhere."""
    source = WeightsSource("random", "test_convnext")
    return Distill(backbone, Teacher(backbone_of(source.name, 64), source, Preprocessing(64)), config)


def classified(architecture: str, size: int) -> nn.Module:
    """Make a classifier and ask it in both ways in which learners do."""
    model, _ = load_classifier(architecture, init="random", classes=5, image_size=size)
    images = torch.randn(2, 3, size, size)
    features, logits = features_and_logits(model, images)
    assert logits.shape == model(images).shape == (2, 5)
    assert features.shape[1] == model.get_classifier().in_features
    return model


def segmented(architecture: str) -> None:
    """Make a segmenter and ask it."""
    model, _ = build_segmenter(architecture, init="random", class_names=["a", "b"], decoder_width=16)
    check_crop(model, architecture, (64, 64))
    assert model.train()(pixel_values=torch.randn(2, 3, 64, 64)).logits.shape == (2, 2, 64, 64)


def refused(attempt: Callable[[], Any]) -> bool:
    """Whether it was refused in a sentence; anything else than an InputError is a fault."""
    try:
        attempt()
    except InputError as error:
        assert len(str(error)) > 40
        return True
    return False


def test_every_family_of_timm_is_listed() -> None:
    assert set(FAMILIES) == set(timm.list_modules())


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_any_backbone_goes_through_every_method_or_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no tensors without numbers
    architecture, size = FAMILIES[family], LARGER.get(family, 64)
    with torch.device("meta"):
        backbone = backbone_of(architecture, size)
        lost = {name for name in PRETRAIN if refused(partial(pretrained_once, name, copy.deepcopy(backbone), size))}
        assert lost == ({"densecl", "pixpro"} if family in NO_MAPS.split() else set())
        assert refused(lambda: classified(architecture, size)) == (family in NO_LINEAR_HEAD.split())
        assert refused(lambda: segmented(architecture)) == (family not in SEGMENTERS.split())


@pytest.mark.parametrize("architecture", ["lcnet_035", "mobilenetv3_small_050", "efficientvit_b0", "ghostnet_050"])
def test_heads_fit_what_the_backbone_gives_and_its_folder_gives_the_same(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = backbone_of(architecture, 64)
    for name in ("byol", "moco", "simclr", "densecl"):
        pretrained_once(name, copy.deepcopy(backbone), 64)
    images = torch.randn(2, 3, 64, 64)
    for model in (backbone.eval(), classified(architecture, 64).eval()):
        folder = save_timm_folder(model, tmp_path / "model", preprocessing=preprocessing_of(model), provenance={})
        with torch.no_grad():
            again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize("architecture", ["vgg11", "hgnetv2_b0", "mobilenetv4_conv_small_050", "convmixer_768_32"])
def test_heads_fit_wide_outputs_too(architecture: str) -> None:
    """BYOL needs no autocast, so that these need no numbers."""
    with torch.device("meta"):
        pretrained_once("byol", backbone_of(architecture, 64), 64)
