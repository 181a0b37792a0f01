"""The data sets that can be named instead of being described column by column."""

from dataclasses import dataclass
from typing import Literal

EMBEDDED = "embedded"


@dataclass(frozen=True)
class DatasetSpec:
    """What must be known about a data set and cannot be read from its files.

    Attributes:
        source: Hub id, or ``EMBEDDED`` for a data set that an installed package carries.
        config: name of the configuration on the Hub, or None where there is only one.
        image_column: column that holds the images.
        label_column: column that holds the class numbers, or the masks.
        train_split: name of the split to learn from.
        test_split: name of the split to report on.
        task: what its labels are for.
        class_names: names in the order of the class numbers; None where the data set itself carries them.
        ignore_index: label value that counts as "no label", or None where there is none.
        flip_is_safe: whether an image means the same when mirrored; False for digits and letters.
        citation: where the data set was published.
        license: terms of use, as far as its authors state any.
    """

    source: str
    config: str | None
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    task: Literal["classification", "segmentation"]
    class_names: tuple[str, ...] | None
    ignore_index: int | None
    flip_is_safe: bool
    citation: str
    license: str


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(
        source=EMBEDDED,  # 1,797 images of 8 x 8 inside scikit-learn
        config=None,
        image_column="image",
        label_column="label",
        train_split="train",
        test_split="test",
        task="classification",
        class_names=tuple("0123456789"),
        ignore_index=None,
        flip_is_safe=False,
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49",
        license="CC BY 4.0",
    ),
    "cifar10": DatasetSpec(
        source="uoft-cs/cifar10",
        config=None,
        image_column="img",
        label_column="label",
        train_split="train",
        test_split="test",
        task="classification",
        class_names=None,
        ignore_index=None,
        flip_is_safe=True,
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        license="not stated by its authors",
    ),
    "cifar100": DatasetSpec(
        source="uoft-cs/cifar100",
        config=None,
        image_column="img",
        label_column="fine_label",
        train_split="train",
        test_split="test",
        task="classification",
        class_names=None,
        ignore_index=None,
        flip_is_safe=True,
        citation="Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        license="not stated by its authors",
    ),
    "svhn": DatasetSpec(
        source="ufldl-stanford/svhn",
        config="cropped_digits",
        image_column="image",
        label_column="label",
        train_split="train",  # 73,257 images; the 531,131 of `extra` are a different, easier set
        test_split="test",
        task="classification",
        class_names=None,
        ignore_index=None,
        flip_is_safe=False,
        citation="Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011",
        license="non-commercial use only",
    ),
    "digit_scenes": DatasetSpec(
        source=EMBEDDED,  # several of the digits on textured ground, drawn when they are loaded
        config=None,
        image_column="image",
        label_column="mask",
        train_split="train",
        test_split="test",
        task="segmentation",
        class_names=("ground", *"0123456789"),
        ignore_index=255,
        flip_is_safe=False,
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49",
        license="CC BY 4.0",
    ),
}
