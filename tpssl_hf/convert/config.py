"""Configuration of converting weights from elsewhere."""

from dataclasses import dataclass

from tpssl_hf.config.parser import key


@dataclass(frozen=True)
class ConvertConfig:
    """Weights from elsewhere."""

    weights: str = key("", "A .pth, .pt, .bin, .ckpt, .tar or .safetensors file; may also be given first, by itself.")
    backbone: str = key("", "The timm model that the file holds; a tag (vit_small_patch16_224.dino) says its images.")
    output_dir: str = key("", "Folder to make, timm's two files; only one that convert made is replaced.")
    branch: str | None = key(
        None, "Which copy, where there are several: a word of its prefix (encoder_k, student), or all of it."
    )
    by_order: bool = key(False, "Names differ throughout: match tensor after tensor by shape.")
    keep_classifier: bool = key(False, "Keep a classifier that fits; otherwise only the backbone is written.")
    image_size: int | None = key(None, "Side of the images in pixels; timm's for this model when not given.")
    mean: float | list[float] | str | None = key(
        None, "Mean the network was trained with, `0.5` or `0.485,0.456,0.406`; by the file's family when not given."
    )
    std: float | list[float] | str | None = key(None, "Standard deviation, likewise.")
    license: str | None = key(None, "License of the weights as the Hub spells it (apache-2.0).")


@dataclass(frozen=True)
class ConvertArgs:
    """Every key of convert."""

    convert: ConvertConfig
