import copy

import pytest
import timm
import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.evaluation.batchnorm import with_reestimated_batchnorm
from tpssl_hf.evaluation.features import batches_of

SETTINGS = ViewSettings(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), seed=0)
CPU = torch.device("cpu")


def images_of(count: int, seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    index = torch.arange(count)
    return ImageBatch(pixels, torch.full((count, 2), 32), index, torch.zeros_like(index))


def backbone_of(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if views of quite another kind had been seen
            module.running_mean.fill_(3.0)
            module.running_var.fill_(9.0)
    return model


def test_reestimated_statistics_are_those_of_torch_in_training_mode() -> None:
    batches = [images_of(16, seed) for seed in (0, 1, 2)]
    backbone = backbone_of()
    reference = copy.deepcopy(backbone).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # torch's way of saying: the mean over all batches
    with torch.no_grad():
        for batch in batches:
            reference(eval_view(batch, SETTINGS))
    found = with_reestimated_batchnorm(backbone, batches, SETTINGS, CPU).state_dict()
    for name, value in reference.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_recalibrating_leaves_the_original_and_all_weights_alone() -> None:
    backbone = backbone_of().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    network = with_reestimated_batchnorm(backbone, [images_of(8)], SETTINGS, CPU)
    assert backbone.training and not network.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    for (name, value), own in zip(network.named_parameters(), backbone.parameters(), strict=True):
        assert torch.equal(value, own), name
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_reestimated_features_no_longer_depend_on_the_statistics_of_the_views() -> None:
    one, other = backbone_of(), backbone_of()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(-1.0)
    images = eval_view(images_of(8), SETTINGS)
    with torch.no_grad():
        assert not torch.equal(one.eval()(images), other.eval()(images))
        outputs = [
            with_reestimated_batchnorm(network, [images_of(8)], SETTINGS, CPU)(images) for network in (one, other)
        ]
    assert torch.equal(*outputs)


def test_a_network_without_batchnorm_comes_back_as_it_is_and_reads_no_images() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32)

    def unread() -> object:
        pytest.fail("read an image for nothing")
        yield

    network = with_reestimated_batchnorm(backbone, unread(), SETTINGS, CPU)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (256, 1), (257, 2), (600, 3)])
def test_batches_cover_all_indices_in_order_and_are_never_too_long(count: int, parts: int) -> None:
    batches = batches_of(torch.arange(count).numpy())
    assert len(batches) == parts and max(map(len, batches)) <= 256
    assert [i for batch in batches for i in batch] == list(range(count))
