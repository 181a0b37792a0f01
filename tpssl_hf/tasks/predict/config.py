"""Configuration of applying a finished model: which model, which images, where to."""

from dataclasses import dataclass

from tpssl_hf.config.allowed import FROM_1, SHARE
from tpssl_hf.config.parser import carry_out_keys, key


@dataclass(frozen=True)
class EmbedConfig:
    """Embeddings of a finished model."""

    model: str = key("", "Finished model: folder of a run, its model/ folder, or a Hub id[@revision].", carry_out=True)
    dataset: str = key(
        "", "digits | cifar10 | cifar100 | svhn, a Hub id, or a folder (images, parquet, saved).", carry_out=True
    )
    split: str = key("train", "Split whose images are used.")
    dataset_config: str | None = key(None, "Configuration name of a Hub data set that has several.")
    image_column: str | None = key(None, "Column that holds the images; found by its type when not given.")
    limit_images: int | None = key(None, "Cap the number of images (fixed random subset).", within=FROM_1)
    output_dir: str | None = key(
        None,
        "Folder of the results, unfinished ones in it are continued; when not given, one in outputs/predictions or "
        "outputs/embeddings, named after model, images and keys.",
        carry_out=True,
    )
    batch_size: int = key(32, "Images per forward pass.", carry_out=True, within=FROM_1)
    device: str = key("auto", "auto | cpu | cuda | cuda:N | mps; auto takes a GPU if there is one.", carry_out=True)
    num_workers: int = key(2, "Threads that decode images ahead of the device.", carry_out=True)
    save_every: int = key(1000, "Images per part: what a killed run has to compute again at most.", within=FROM_1)


@dataclass(frozen=True)
class PredictConfig(EmbedConfig):
    """Predictions of a finished model."""

    top_k: int = key(5, "Classification: most probable classes kept for each image.", within=FROM_1)
    accept: float | None = key(
        None,
        "Classification: also write which predictions to take as they are, so that this share of them is right, such "
        "as 0.95, and which to look at.",
        carry_out=True,
        within=SHARE,
    )
    export: str | None = key(
        None,
        "Also write exports/: imagefolder, coco, label_studio, cvat; several with commas between. With accept, data "
        "sets hold what is accepted, and the annotation tools what is to be looked at.",
        several=True,
        carry_out=True,
    )
    push_to_hub: str | None = key(
        None,
        "Also publish the labels or masks, without the images, as a data set of the Hub, `owner/name`.",
        carry_out=True,
    )
    hub_private_repo: bool = key(
        False,
        "With push_to_hub: make the data set visible to you, or the organization's members, only.",
        carry_out=True,
    )
    overlays: bool = key(False, "Segmentation: also write each image with its mask laid over it.")


@dataclass(frozen=True)
class EmbedArgs:
    """Every key of embed."""

    embed: EmbedConfig


@dataclass(frozen=True)
class PredictArgs:
    """Every key of predict."""

    predict: PredictConfig


# Where things lie, and how fast it goes. Data set and model are compared by their content instead.
CARRY_OUT = carry_out_keys(PredictArgs)
