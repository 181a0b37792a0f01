"""The DeepLabv3+ decoder: context at several scales from the last map, borders from an early one.

L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff, H. Adam: Encoder-Decoder with Atrous Separable Convolution for Semantic
Image Segmentation, ECCV 2018, arXiv:1802.02611, §3.1. The convolutions here are plain, not separable.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpssl_hf.errors import InputError

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # by output stride: half the stride, twice the rate, the same field of view


def _block(inputs: int, outputs: int, *, kernel: int = 1, rate: int = 1) -> nn.Sequential:
    """Convolution that keeps the size of the map, BatchNorm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, C, h, w) seen at five scales, to (B, ``width``, h, w)."""

    def __init__(self, inputs: int, *, width: int, rates: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        scales = [_block(inputs, width), *(_block(inputs, width, kernel=3, rate=rate) for rate in rates)]
        self.scales = nn.ModuleList(scales)
        self.image = _block(inputs, width)
        self.project = nn.Sequential(_block((len(scales) + 1) * width, width), nn.Dropout(dropout))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps (B, ``width``, h, w).

        Raises:
            InputError: in training mode for one image, whose pooled value has no batch statistics.
        """
        norm = self.image[1]
        if isinstance(norm, nn.BatchNorm2d) and norm.training and len(maps) == 1:  # a synchronized one could do it
            raise InputError(
                "the decoder cannot train on a batch of 1 image, its image pooling is normalized over the batch; give "
                "2 or more, and drop an incomplete last batch."
            )
        image = self.image(maps.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *maps.shape[2:])
        joined: Tensor = self.project(torch.cat([*(scale(maps) for scale in self.scales), image], dim=1))
        return joined


class DeepLabDecoder(nn.Module):
    """Backbone maps of two depths to logits, and the features the logits are a linear function of.

    Args:
        low_channels: channels of the map of stride 4.
        high_channels: channels of the last map.
        classes: number of logits per pixel.
        output_stride: pixels per cell of the last map, 16 or 8; it decides the dilation rates.
        width: channels of all maps inside.
        low_level_width: channels the map of stride 4 is reduced to, few so that context outweighs it.
        dropout: probability on the joined context.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        classes: int,
        *,
        output_stride: int = 16,
        width: int = 256,
        low_level_width: int = 48,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.context = ASPP(high_channels, width=width, rates=RATES[output_stride], dropout=dropout)
        self.low_level = _block(low_channels, low_level_width)
        self.refine = nn.Sequential(_block(width + low_level_width, width, kernel=3), _block(width, width, kernel=3))
        self.classifier = nn.Conv2d(width, classes, 1)
        for layer in self.modules():
            self.reset_layer(layer)

    @torch.no_grad()
    def reset_layer(self, layer: nn.Module) -> None:
        """Draw the weights of one layer anew: He's normal distribution, or N(0, 0.01) for the classifier.

        Every tensor is set through ``nn.init``, which transformers watches to spare what it has loaded from a file.
        """
        if layer is self.classifier:
            nn.init.normal_(self.classifier.weight, std=0.01)
            assert self.classifier.bias is not None
            nn.init.zeros_(self.classifier.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None  # statistics are tracked
            assert layer.num_batches_tracked is not None
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
            nn.init.zeros_(layer.running_mean)
            nn.init.ones_(layer.running_var)
            nn.init.zeros_(layer.num_batches_tracked)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Decode the map of stride 4 (B, C_low, h, w) and the last map (B, C_high, h', w').

        Returns:
            Logits (B, K, h, w) and features (B, ``width``, h, w).
        """
        context = F.interpolate(self.context(high), size=low.shape[2:], mode="bilinear", align_corners=False)
        features: Tensor = self.refine(torch.cat([context, self.low_level(low)], dim=1))
        return self.classifier(features), features
