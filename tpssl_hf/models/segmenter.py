"""The segmenter: DeepLabv3+ over a timm backbone, as a transformers model."""

import copy
from pathlib import Path
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    AutoModelForSemanticSegmentation,
)

from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import replacing_folder, sync_files
from tpssl_hf.models.backbone import CONFIG_FILE, WEIGHTS_FILE, WeightsSource, load_backbone
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.models.deeplabv3plus import RATES, DeepLabDecoder
from tpssl_hf.models.sealed import seal_folder
from tpssl_hf.models.segmentation_inference import slide
from tpssl_hf.models.segmenter_config import TpsslSegmenterConfig
from tpssl_hf.models.timm_export import preprocessing_of

LOW_STRIDE = 4


class TpsslForSemanticSegmentation(PreTrainedModel):  # type: ignore[misc]
    """DeepLabv3+ over a timm backbone; ``AutoModelForSemanticSegmentation`` loads it after ``import tpssl_hf``.

    Chen et al., ECCV 2018, arXiv:1802.02611, §3.1. The constructor downloads nothing: the backbone has timm's random
    initialization, the decoder its own. :func:`build_segmenter` loads pretrained backbone weights.

    Raises:
        InputError: for a backbone without maps of stride 4 and of ``config.output_stride``, and a decoder or classes
            that do not fit.
    """

    config_class = TpsslSegmenterConfig
    main_input_name = "pixel_values"
    backbone_statistics_frozen = False

    def __init__(self, config: TpsslSegmenterConfig) -> None:
        super().__init__(config)
        if 0 <= config.ignore_index < config.num_labels:
            raise InputError(
                f"ignore_index {config.ignore_index} is one of the {config.num_labels} classes; give one beyond them."
            )
        self.backbone = _build_backbone(config.backbone, config.output_stride)
        info = self.backbone.feature_info
        strides, channels = info.reduction(), info.channels()
        self.low_level = len(strides) - 1 - strides[::-1].index(LOW_STRIDE)  # the deepest map of that stride
        self.decoder = DeepLabDecoder(
            channels[self.low_level],
            channels[-1],
            config.num_labels,
            output_stride=config.output_stride,
            width=config.decoder_width,
            low_level_width=config.low_level_width,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize what is ours; timm's initialization and everything loaded from a file must stay."""
        if any(module is layer for layer in self.decoder.modules()):
            self.decoder.reset_layer(module)
        elif callable(initialize := getattr(module, "init_non_persistent_buffers", None)):
            initialize()  # timm's blur filters are in no file

    @classmethod
    def from_pretrained(cls, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """Load a folder or Hub repository as every transformers model does, but never an incomplete backbone.

        Raises:
            InputError: naming backbone tensors that the file lacks, which transformers would leave uninitialized.
        """
        model, info = super().from_pretrained(*arguments, output_loading_info=True, **options)
        missing = sorted(key for key in info["missing_keys"] if key.startswith("backbone."))
        if missing:
            raise InputError(
                f"{arguments[0] if arguments else 'this model'} lacks {len(missing)} backbone tensors "
                f"({', '.join(missing[:4])}); the file is incomplete or of another backbone, copy it again."
            )
        return (model, info) if output_loading_info else model

    def freeze_backbone_statistics(self) -> None:
        """Keep the backbone's BatchNorm layers on their running statistics, also after ``train()``; γ and β learn."""
        self.backbone_statistics_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        if self.backbone_statistics_frozen:
            for layer in batchnorm_layers(self.backbone):
                layer.eval()
        return self

    def decode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, h, w) and the decoder features (B, D, h, w) they are a linear function of, at stride 4.

        Args:
            pixel_values: normalized images (B, 3, H, W). Up to a multiple of the output stride they are padded with
                zeros, the mean color, to the right and below, which the maps cover as well: backbones differ in
                whether they drop or stretch an incomplete cell.
        """
        height, width = pixel_values.shape[2:]
        stride = self.config.output_stride
        maps = self.backbone(F.pad(pixel_values, (0, -width % stride, 0, -height % stride)))
        logits, features = self.decoder(maps[self.low_level], maps[-1])
        return logits, features

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False
    ) -> SemanticSegmenterOutput:
        """Map normalized images (B, 3, H, W) of any size to logits (B, K, H, W).

        In evaluation, images larger than ``config.window`` get the logarithms of mean probabilities over windows.

        Args:
            pixel_values: images, normalized with the mean and deviation of the config.
            labels: classes (B, H, W); with them the output holds ``loss``, the mean cross-entropy over the pixels that
                are not ``config.ignore_index``, 0 if there is none.
            output_hidden_states: whether ``hidden_states`` holds the decoder features of :meth:`decode`.

        Raises:
            InputError: for labels of another size than the images, and for a batch of one image in training.
        """
        (height, width), window, features = pixel_values.shape[2:], self.config.window, None
        if window and not self.training and (height > window[0] or width > window[1]):
            found = slide(lambda part: self._of_window(part)[0].float(), pixel_values, window)
            logits = found.clamp_min(torch.finfo(found.dtype).tiny).log()
        else:
            logits, features = self._of_window(pixel_values)
        return SemanticSegmenterOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=(features,) if output_hidden_states and features is not None else None,
        )

    def _of_window(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits in the size of the images (B, 3, H, W), and the features of :meth:`decode`."""
        height, width = pixel_values.shape[2:]
        coarse, features = self.decode(pixel_values)
        padded = [length * LOW_STRIDE for length in coarse.shape[2:]]
        logits = F.interpolate(coarse, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]
        return logits, features

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.shape != logits[:, 0].shape:
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, these images need {tuple(logits[:, 0].shape)}; crop and "
                "resize both alike."
            )
        ignored: int = self.config.ignore_index
        total = F.cross_entropy(logits.float(), labels.long(), ignore_index=ignored, reduction="sum")
        return total / (labels != ignored).sum().clamp(min=1)


def _build_backbone(name: str, output_stride: int) -> Any:
    """Return timm's feature extractor: images to a list of maps, whose strides and channels ``feature_info`` holds."""
    if output_stride not in RATES:
        raise InputError(f"output_stride {output_stride} is not 16 or 8; 16 is the usual one, 8 is finer and slower.")
    try:
        backbone = timm.create_model(name, pretrained=False, features_only=True, output_stride=output_stride)
    except (TypeError, AssertionError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"backbone {name!r} gives no feature maps of output stride {output_stride}; a segmenter needs one that "
            "does, a ResNet, ConvNeXt or EfficientNet for example."
        ) from error
    strides = backbone.feature_info.reduction()
    if LOW_STRIDE not in strides or strides[-1] != output_stride:
        raise InputError(
            f"backbone {name!r} gives maps of strides {strides}; a segmenter needs one of stride {LOW_STRIDE} and the "
            f"last of stride {output_stride}, as a ResNet, ConvNeXt or EfficientNet has."
        )
    return backbone


def build_segmenter(
    architecture: str,
    *,
    init: str,
    class_names: list[str],
    palette: list[list[int]] | None = None,
    output_stride: int = 16,
    decoder_width: int = 256,
    low_level_width: int | None = None,
) -> tuple[TpsslForSemanticSegmentation, WeightsSource]:
    """Build a segmenter on Φ with a new decoder, whose weights the global random stream decides.

    Args:
        architecture: as in :func:`tpssl_hf.models.backbone.load_backbone`, which loads Φ.
        init: likewise.
        class_names: one name per class, in the order of the label values.
        palette: one RGB triple in [0, 255] per class, kept in the config for drawing.
        output_stride: pixels per cell of the backbone's last map, 16 or 8.
        decoder_width: channels of the decoder's maps.
        low_level_width: channels the map of stride 4 is reduced to; 48 for every 256 of ``decoder_width`` when not
            given, so that context outweighs it.

    Raises:
        InputError: for repeated or too few class names, a palette of another length, a backbone without such maps,
            and as ``load_backbone`` does.
    """
    if len(class_names) < 2 or len(set(class_names)) != len(class_names):
        raise InputError(f"class_names {class_names} must be 2 or more different names; correct the list.")
    if palette is not None and len(palette) != len(class_names):
        raise InputError(f"the palette has {len(palette)} colors for {len(class_names)} classes; give one for each.")
    loaded, origin = load_backbone(architecture, init=init)
    shown = preprocessing_of(loaded)
    config = TpsslSegmenterConfig(
        backbone=architecture.partition(".")[0],
        output_stride=output_stride,
        decoder_width=decoder_width,
        low_level_width=low_level_width or max(1, decoder_width * 48 // 256),
        palette=palette,
        image_mean=shown.mean,
        image_std=shown.std,
        provenance={"backbone": origin.as_dict()},
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    model = TpsslForSemanticSegmentation(config)
    load_features(model.backbone, loaded.state_dict(), f"init {init!r}")
    return model, origin


def load_features(features: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy a plain timm state into timm's feature extractor of the same architecture, bit by bit.

    The extractor holds the layers up to the last map under their plain names, except that it may join the first two
    parts of a name: ``stages.0.blocks…`` becomes ``stages_0.blocks…``. What comes after the last map is left out.

    Args:
        features: what ``timm.create_model(..., features_only=True)`` returns.
        tensors: plain timm keys.
        where: source of the tensors, for the message.

    Raises:
        InputError: naming tensors of the extractor that ``tensors`` lacks.
    """
    own = features.state_dict()
    # timm's extractors keep the names, join the first two parts, or put all under "model"
    found = {
        next((name for name in (key, f"model.{key}") if name in own), key.replace(".", "_", 1)): tensor
        for key, tensor in tensors.items()
    }
    missing = sorted(own.keys() - found.keys())
    if missing:
        raise InputError(
            f"{where} lacks {len(missing)} tensors of the backbone's maps ({', '.join(missing[:4])}); is it another "
            "architecture?"
        )
    features.load_state_dict({key: found[key] for key in own})


def save_segmenter(
    model: TpsslForSemanticSegmentation,
    folder: Path,
    *,
    shorter_side: int | None = None,
    image_size: tuple[int, int] | None = None,
    window: tuple[int, int] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write weights, config and image processor, so that the Auto classes and pipelines of transformers load them.

    The folder appears as a whole or not at all, sealed (:mod:`tpssl_hf.models.sealed`).

    Args:
        model: the segmenter.
        folder: where to; replaced if it exists.
        shorter_side: to which the image processor shrinks larger images, as the cache of training did; None for never.
        image_size: height and width it then resizes to; None keeps the shape.
        window: as in the config.
        provenance: JSON facts added to those of the config: data set, method, paper, license.
    """
    from tpssl_hf.models.segmenter_processor import processor_of  # transformers loads it after this module

    model = copy.deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format)
    model.config.provenance = {**model.config.provenance, **(provenance or {})}
    model.config.window = window
    processor = processor_of(model.config, shorter_side, image_size)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        seal_folder(temporary)
        (temporary / WEIGHTS_FILE).chmod((temporary / CONFIG_FILE).stat().st_mode)  # its owner alone could read it
        sync_files(temporary)
    return folder


AutoModelForSemanticSegmentation.register(TpsslSegmenterConfig, TpsslForSemanticSegmentation)
# The image-segmentation pipeline looks names up in this table, and otherwise logs that the model is not supported.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[TpsslSegmenterConfig.model_type] = TpsslForSemanticSegmentation.__name__
