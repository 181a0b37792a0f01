import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpssl_hf.errors import InputError
from tpssl_hf.models.deeplabv3plus import DeepLabDecoder


def small(output_stride: int = 16) -> DeepLabDecoder:
    torch.manual_seed(0)
    decoder = DeepLabDecoder(5, 7, 3, output_stride=output_stride, width=8, low_level_width=4)
    for layer in decoder.modules():  # a new BatchNorm would hide a missing or exchanged one
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return decoder


def block(maps: Tensor, layers: nn.Module, padding: int = 0, rate: int = 1) -> Tensor:
    convolution, norm = layers[0], layers[1]  # type: ignore[index]
    maps = F.conv2d(maps, convolution.weight, padding=padding, dilation=rate)
    return F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_the_decoder_is_the_published_graph(output_stride: int, rates: tuple[int, ...]) -> None:
    decoder = small(output_stride).eval()
    low, high = torch.randn(2, 5, 40, 28), torch.randn(2, 7, 10, 7)
    context = decoder.context
    parts = [block(high, context.scales[0])]
    parts += [block(high, context.scales[i + 1], rate, rate) for i, rate in enumerate(rates)]
    pooled = block(F.adaptive_avg_pool2d(high, 1), context.image)
    joined = block(torch.cat([*parts, pooled.repeat(1, 1, 10, 7)], dim=1), context.project[0])
    joined = F.interpolate(joined, (40, 28), mode="bilinear", align_corners=False)
    expected = torch.cat([joined, block(low, decoder.low_level)], dim=1)
    for layers in decoder.refine:
        expected = block(expected, layers, padding=1)
    logits, features = decoder(low, high)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits, F.conv2d(expected, decoder.classifier.weight, decoder.classifier.bias))
    assert logits.shape == (2, 3, 40, 28) and features.shape == (2, 8, 40, 28)


def test_the_full_decoder_on_a_resnet50_has_the_published_widths() -> None:
    with torch.device("meta"):
        decoder = DeepLabDecoder(256, 2048, 21)
    pyramid = 2 * 2048 * 256 + 3 * 9 * 2048 * 256 + 5 * 256 * 256
    rest = 256 * 48 + 9 * (256 + 48) * 256 + 9 * 256 * 256 + (256 * 21 + 21)
    norms = 2 * (6 * 256 + 48 + 2 * 256)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == pyramid + rest + norms


def test_a_gradient_reaches_every_parameter() -> None:
    decoder = small().train()
    logits, _ = decoder(torch.randn(2, 5, 40, 28), torch.randn(2, 7, 10, 7))
    F.cross_entropy(logits, torch.randint(0, 3, (2, 40, 28))).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_logits_are_close_to_zero_so_that_no_class_is_preferred() -> None:
    torch.manual_seed(0)
    logits, _ = DeepLabDecoder(5, 7, 3)(torch.randn(2, 5, 40, 28), torch.randn(2, 7, 10, 7))
    assert 0 < logits.abs().max() < 2


def test_one_image_cannot_train_but_can_be_predicted() -> None:
    decoder, low, high = small(), torch.randn(1, 5, 8, 8), torch.randn(1, 7, 2, 2)
    with pytest.raises(InputError, match="batch of 1 image"):
        decoder.train()(low, high)
    assert decoder.eval()(low, high)[0].shape == (1, 3, 8, 8)
