"""What the ``config.json`` of a segmenter says; apart from the network, so that ``AutoConfig`` alone stays cheap."""

from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class TpsslSegmenterConfig(PretrainedConfig):  # type: ignore[misc]
    """Settings of :class:`tpssl_hf.models.segmenter.TpsslForSemanticSegmentation`.

    Args:
        backbone: timm model name without weight tag.
        output_stride: pixels per cell of the backbone's last map, 16 or 8.
        decoder_width: channels of the decoder's maps.
        low_level_width: channels the map of stride 4 is reduced to.
        palette: one RGB triple in [0, 255] per class, for drawing; None if there is none.
        image_mean: RGB mean of values in [0, 1] that images are normalized with.
        image_std: RGB standard deviation likewise.
        ignore_index: label of pixels that do not count.
        window: height and width of the windows that larger images are predicted in, overlapping by half, as they were
            scored; None for whole images.
        provenance: JSON facts: base weights, their license, data set, method, paper.
        **settings: what every transformers config takes; ``id2label``, ``label2id`` and ``num_labels`` above all.
    """

    model_type = "tpssl-segmenter"

    def __init__(
        self,
        backbone: str = "resnet50",
        output_stride: int = 16,
        decoder_width: int = 256,
        low_level_width: int = 48,
        palette: list[list[int]] | None = None,
        image_mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        image_std: tuple[float, ...] = (0.229, 0.224, 0.225),
        ignore_index: int = 255,
        window: Sequence[int] | None = None,
        provenance: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.backbone = backbone
        self.output_stride = output_stride
        self.decoder_width = decoder_width
        self.low_level_width = low_level_width
        self.palette = palette
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.ignore_index = ignore_index
        self.window = None if window is None else list(window)
        self.provenance = provenance or {}
        super().__init__(**settings)


AutoConfig.register(TpsslSegmenterConfig.model_type, TpsslSegmenterConfig)
