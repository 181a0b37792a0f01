import pytest
import timm
import torch
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.classifier import features_and_logits, load_classifier, split_logits


def classifier(architecture: str, image_size: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_classifier(architecture, init="random", classes=7, image_size=image_size)
    return model


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_vit"])
def test_features_and_logits_are_those_of_the_model(architecture: str) -> None:
    model = classifier(architecture, 64).eval()
    nn.init.normal_(model.get_classifier().weight)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, logits = features_and_logits(model, images)
        assert torch.equal(logits, model(images))
    assert logits.shape == (2, 7) and features.shape == (2, model.get_classifier().in_features)
    torch.testing.assert_close(model.get_classifier()(features), logits)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_vit"])
def test_the_model_is_the_one_timm_makes_for_as_many_classes(architecture: str) -> None:
    model = classifier(architecture, 64)
    size = {"img_size": 64} if architecture == "test_vit" else {}
    reference = timm.create_model(architecture, num_classes=7, **size)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), reference.eval()(images))
    assert model.num_classes == 7


def test_the_head_is_small_and_the_backbone_is_the_one_asked_for() -> None:
    torch.manual_seed(0)
    model, origin = load_classifier("test_resnet", init="random", classes=500)
    head = model.get_classifier()
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02) and head.bias.abs().sum() == 0
    assert origin.kind == "random"


def test_stored_classifier_weights_do_not_survive(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    stored = timm.create_model("test_resnet", num_classes=3)
    save_file(stored.state_dict(), tmp_path / "model.safetensors")
    model, origin = load_classifier("test_resnet", init=str(tmp_path / "model.safetensors"), classes=3)
    assert torch.equal(model.conv1[0].weight, stored.conv1[0].weight) and origin.kind == "file"
    assert not torch.equal(model.get_classifier().weight, stored.get_classifier().weight)


def test_a_classifier_that_is_not_one_linear_layer_is_refused() -> None:
    with pytest.raises(InputError, match="ends in a Conv2d, not in a linear layer"):
        load_classifier("resnetv2_18", init="random", classes=3)


def test_batches_of_one_pass_share_batchnorm_and_keep_their_order() -> None:
    model = classifier("test_resnet").train()
    one, other = torch.randn(2, 3, 32, 32), 3.0 + torch.randn(4, 3, 32, 32)
    whole = model(torch.cat([one, other]))
    first, second = split_logits(model, one, other)
    torch.testing.assert_close(first, whole[:2])
    torch.testing.assert_close(second, whole[2:])
    assert not torch.allclose(first, model(one))
