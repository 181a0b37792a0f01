from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tpssl_hf.data.mask_sources import load_mask_source
from tpssl_hf.data.masks import color_map, decode_mask
from tpssl_hf.data.reading import decode_image
from tpssl_hf.data.segmentation_classes import CAMVID, CITYSCAPES, VOC
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, image: Any, encode: Any) -> Write:
    """Write an image, or a mask of the given values, below ``tmp_path / "set"``."""

    def make(name: str, values: Any = None) -> None:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image(len(name)) if values is None else np.array(values, np.uint8)))

    return make


def stems(source: Source) -> dict[str, str | None]:
    """File names of the images, and of their masks."""
    masks = [row[source.mask_column] for row in source.dataset]
    names = [Path(row[source.image_column]["path"]).name for row in source.dataset]
    return dict(zip(names, [None if mask is None else Path(mask["path"]).name for mask in masks], strict=True))


def decoded(source: Source, row: int) -> list[list[int]]:
    assert source.masks is not None
    numbers: list[list[int]] = decode_mask(source.dataset[row][source.mask_column], source.masks, "it").tolist()
    return numbers


def test_folders_are_matched_by_stem_and_images_without_a_mask_are_unlabeled(tmp_path: Path, write: Write) -> None:
    for name in ("images/b.jpg", "images/deep/a.png", "images/c.d.png"):
        write(name)
    for name in ("masks/b.png", "masks/deep/a.bmp"):
        write(name, [[0, 1]])
    source = load_mask_source(str(tmp_path / "set"))
    assert stems(source) == {"b.jpg": "b.png", "a.png": "a.bmp", "c.d.png": None}
    assert source.class_names is None and source.name == "set" and source.flip_is_safe
    write("images/0.png")
    assert load_mask_source(str(tmp_path / "set")).fingerprint != source.fingerprint


def test_folders_of_other_names_and_splits(tmp_path: Path, write: Write) -> None:
    for split in ("train", "val"):
        write(f"{split}/photos/{split}.png")
        write(f"{split}/truth/{split}.png", [[0, 1]])
    options = {"image_column": "photos", "mask_column": "truth"}
    for split in ("train", "val"):
        source = load_mask_source(str(tmp_path / "set"), split=split, **options)
        assert stems(source) == {f"{split}.png": f"{split}.png"}
    with pytest.raises(InputError, match="has no split 'test': its splits are train, val"):
        load_mask_source(str(tmp_path / "set"), split="test", **options)
    with pytest.raises(InputError, match="holds 'photos' and no 'masks'"):
        load_mask_source(str(tmp_path / "set"), image_column="photos")
    with pytest.raises(InputError, match="has no configuration 'x'"):
        load_mask_source(str(tmp_path / "set"), dataset_config="x", **options)


def test_lists_say_whose_masks_are_used(tmp_path: Path, write: Write) -> None:
    for name in "abc":
        write(f"images/{name}.png")
        write(f"masks/{name}.png", [[0, 1]])
    every = load_mask_source(str(tmp_path / "set"))
    (tmp_path / "set" / "labeled.txt").write_text("b\n\n")
    source = load_mask_source(str(tmp_path / "set"))
    assert stems(source) == {"a.png": None, "b.png": "b.png", "c.png": None}
    assert source.fingerprint != every.fingerprint
    (tmp_path / "set" / "unlabeled.txt").write_text("b\n")
    with pytest.raises(InputError, match="'b' is in labeled.txt and in unlabeled.txt"):
        load_mask_source(str(tmp_path / "set"))
    (tmp_path / "set" / "labeled.txt").unlink()
    assert stems(load_mask_source(str(tmp_path / "set"))) == {"a.png": "a.png", "b.png": None, "c.png": "c.png"}
    (tmp_path / "set" / "unlabeled.txt").write_text("b.png\n")
    with pytest.raises(InputError, match="names 'b.png', which has no image"):
        load_mask_source(str(tmp_path / "set"))


def test_wrongly_named_masks_are_refused(tmp_path: Path, write: Write) -> None:
    write("images/a.png")
    write("masks/a_mask.png", [[0, 1]])
    with pytest.raises(InputError, match=r"masks.a_mask.png has no image 'a_mask'"):
        load_mask_source(str(tmp_path / "set"))
    (tmp_path / "set" / "masks" / "a_mask.png").unlink()
    with pytest.raises(InputError, match="None of the 1 images of 'set' has a mask"):
        load_mask_source(str(tmp_path / "set"))
    write("images/a.bmp")
    with pytest.raises(InputError, match="holds both a.bmp and a.png"):
        load_mask_source(str(tmp_path / "set"))


def test_classes_are_named_by_a_file_beside_the_data(tmp_path: Path, write: Write, encode: Any) -> None:
    write("images/a.png")
    write("masks/a.png", [[0, 1, 255]])
    classes = tmp_path / "set" / "classes.txt"
    classes.write_text("ground\nred fox\n")
    source = load_mask_source(str(tmp_path / "set"))
    assert source.class_names == ("ground", "red fox") and decoded(source, 0) == [[0, 1, 255]]
    classes.write_text("ground 0 0 0\nred fox 200 10 10\n")
    write("masks/a.png", [[[200, 10, 10], [0, 0, 0]]])
    source = load_mask_source(str(tmp_path / "set"))
    assert source.masks is not None and source.masks.palette == ((0, 0, 0), (200, 10, 10))
    assert source.class_names == ("ground", "red fox") and decoded(source, 0) == [[1, 0]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("one\n", "names 1 classes"),
        ("a\na\n", "1 of them different"),
        ("a 1 2 3\nb\n", "gives colors to 1 of 2"),
        ("a 1 2 3\nb 1 2 3\n", "gives colors to 1 of 2"),
        ("a 1 2 3\nb 1 2 300\n", "each 0 to 255"),
    ],
)
def test_unclear_class_files_are_refused(tmp_path: Path, write: Write, lines: str, message: str) -> None:
    write("images/a.png")
    write("masks/a.png", [[0, 1]])
    (tmp_path / "set" / "classes.txt").write_text(lines)
    with pytest.raises(InputError, match=message):
        load_mask_source(str(tmp_path / "set"))


def test_black_and_white_masks_need_a_threshold(tmp_path: Path, write: Write) -> None:
    write("images/a.png")
    write("masks/a.png", [[0, 126, 127, 255]])
    source = load_mask_source(str(tmp_path / "set"), mask_threshold=127)
    assert source.class_names == ("background", "foreground") and decoded(source, 0) == [[0, 0, 1, 1]]
    (tmp_path / "set" / "classes.txt").write_text("skin\nlesion\n")
    assert load_mask_source(str(tmp_path / "set"), mask_threshold=127).class_names == ("skin", "lesion")
    with pytest.raises(InputError, match="`mask_threshold` is 0"):
        load_mask_source(str(tmp_path / "set"), mask_threshold=0)
    (tmp_path / "set" / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="names 3 classes and `mask_threshold` makes two"):
        load_mask_source(str(tmp_path / "set"), mask_threshold=127)


def test_pascal_voc_with_and_without_the_masks_of_sbd(tmp_path: Path, write: Write, encode: Any) -> None:
    root = tmp_path / "set" / "VOCdevkit" / "VOC2012"
    mask = Image.fromarray(np.array([[0, 15, 20, 255]], np.uint8))
    mask.putpalette(np.array(color_map(256), np.uint8).tobytes())
    for stem in ("2007_000032", "2007_000033", "2007_000039", "2008_000001", "2008_000002"):
        write(f"VOCdevkit/VOC2012/JPEGImages/{stem}.jpg")
        write(f"VOCdevkit/VOC2012/SegmentationClass/{stem}.png", [[0]])
        (root / "SegmentationClass" / f"{stem}.png").write_bytes(encode(mask))
    (lists := root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000039\n2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n")
    for given in (tmp_path / "set", tmp_path / "set" / "VOCdevkit", root):
        source = load_mask_source(str(given), split="train")
        assert stems(source) == {f"{s}.jpg": f"{s}.png" for s in ("2007_000032", "2007_000039")}
    assert source.class_names is not None and (source.class_names[15], len(source.class_names)) == ("person", 21)
    assert decoded(source, 0) == [[0, 15, 20, 255]]
    with pytest.raises(InputError, match="has no split 'trainaug': its splits are train, val"):
        load_mask_source(str(root), split="trainaug")
    (root / "SegmentationClass" / "2008_000001.png").unlink()
    for stem in ("2007_000032", "2007_000033", "2008_000001"):
        write(f"VOCdevkit/VOC2012/SegmentationClassAug/{stem}.png", [[0, 1]])
    source = load_mask_source(str(root), split="trainaug")
    assert list(stems(source)) == ["2007_000032.jpg", "2007_000039.jpg", "2008_000001.jpg"]
    assert decoded(source, 0) == [[0, 15, 20, 255]] and decoded(source, 2) == [[0, 1]]
    (lists / "trainaug.txt").write_text("/JPEGImages/2008_000001.jpg /SegmentationClassAug/2008_000001.png\n")
    assert list(stems(load_mask_source(str(root), split="trainaug"))) == ["2008_000001.jpg"]
    (root / "JPEGImages" / "2007_000033.jpg").unlink()
    with pytest.raises(InputError, match="names 2007_000033, and JPEGImages holds no 2007_000033.jpg"):
        load_mask_source(str(root), split="val")


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path, write: Write) -> None:
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        write(f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png")
        write(f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png", [[7, 33, 23, 0, 9, 30, 255]])
        write(f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_color.png", [[0]])
    source = load_mask_source(str(tmp_path / "set"))
    assert list(stems(source).values()) == [f"{c}_000000_000019_gtFine_labelIds.png" for c in ("aachen", "ulm")]
    assert decoded(source, 0) == [[0, 18, 10, 255, 255, 255, 255]]
    assert source.class_names is not None and [source.class_names[n] for n in (0, 10, 18)] == [
        "road",
        "sky",
        "bicycle",
    ]
    assert len(load_mask_source(str(tmp_path / "set"), split="val").dataset) == 1
    with pytest.raises(InputError, match="its splits are train, val"):
        load_mask_source(str(tmp_path / "set"), split="test")


def test_isic_2017_leaves_superpixels_out(tmp_path: Path, write: Write) -> None:
    for part in ("Training", "Validation", "Test_v2"):
        for stem in ("ISIC_0000000", "ISIC_0000001"):
            write(f"ISIC-2017_{part}_Data/{stem}.jpg")
            write(f"ISIC-2017_{part}_Data/{stem}_superpixels.png")
            write(f"ISIC-2017_{part}_Part1_GroundTruth/{stem}_segmentation.png", [[0, 126, 127, 255]])
    for split in ("train", "validation", "test"):
        source = load_mask_source(str(tmp_path / "set"), split=split)
        assert stems(source)["ISIC_0000001.jpg"] == "ISIC_0000001_segmentation.png" and len(source.dataset) == 2
        assert decoded(source, 0) == [[0, 0, 1, 1]] and source.class_names == ("background", "lesion")


@pytest.fixture
def mask_table(image: Any, encode: Any) -> Callable[..., datasets.Dataset]:
    """A data set of three images, with masks of 0 and 10 and an empty one in each further column."""

    def make(made: str = "image", *masks: str) -> datasets.Dataset:
        columns = {made: [{"bytes": encode(image(number)), "path": None} for number in range(3)]}
        for mask in masks or ("mask",):
            cells = [{"bytes": encode(np.full((20, 24), n, np.uint8)), "path": None} for n in (0, 10)]
            columns[mask] = [*cells, None]
        features = datasets.Features({name: datasets.Image() for name in columns})
        return datasets.Dataset.from_dict(columns, features=features)

    return make


def test_tables_named_camvid_have_its_classes(tmp_path: Path, mask_table: Any) -> None:
    for name in ("camvid", "other"):
        (tmp_path / name).mkdir()
        mask_table().to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    source = load_mask_source(str(tmp_path / "camvid"))
    assert (source.image_column, source.mask_column, source.masks) == ("image", "mask", CAMVID)
    assert source.class_names is not None and (source.class_names[0], source.class_names[10]) == ("sky", "bicyclist")
    assert decoded(source, 1)[0][0] == 10 and source.dataset[2]["mask"] is None
    assert load_mask_source(str(tmp_path / "other")).class_names is None
    (tmp_path / "other" / "classes.txt").write_text("a\nb\n")
    assert load_mask_source(str(tmp_path / "other")).class_names == ("a", "b")


def test_mask_columns_are_found_by_type_or_name(tmp_path: Path, mask_table: Any, table: Any) -> None:
    mask_table("image", "truth").save_to_disk(tmp_path / "truth")
    assert load_mask_source(str(tmp_path / "truth")).mask_column == "truth"
    mask_table("image", "mask", "depth").save_to_disk(tmp_path / "three")
    assert load_mask_source(str(tmp_path / "three")).mask_column == "mask"
    assert load_mask_source(str(tmp_path / "three"), mask_column="depth").mask_column == "depth"
    with pytest.raises(InputError, match="'nothing' does not exist"):
        load_mask_source(str(tmp_path / "three"), mask_column="nothing")
    with pytest.raises(InputError, match="'image' is the image column"):
        load_mask_source(str(tmp_path / "three"), mask_column="image", image_column="image")
    table(2).save_to_disk(tmp_path / "none")
    with pytest.raises(InputError, match="no column of masks beside 'image'.*label"):
        load_mask_source(str(tmp_path / "none"))


def test_what_has_no_masks_is_refused(tmp_path: Path, image_folder: Any) -> None:
    with pytest.raises(InputError, match="'cifar10' has no masks: .* or digit_scenes"):
        load_mask_source("cifar10")
    with pytest.raises(InputError, match="a folder that holds the folders `images` and `masks`"):
        load_mask_source(str(image_folder(2)))
    with pytest.raises(InputError, match="not an existing folder"):
        load_mask_source(str(tmp_path / "nowhere"))


def test_hub_data_sets_are_loaded_by_id(monkeypatch: pytest.MonkeyPatch, mask_table: Any) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: mask_table())
    source = load_mask_source("owner/CamVid")
    assert source.name == "owner/CamVid" and source.masks == CAMVID and source.folder is None


def test_digit_scenes_are_the_same_every_time_and_show_what_their_masks_say() -> None:
    source, again = load_mask_source("digit_scenes", split="test"), load_mask_source("digit_scenes", split="test")
    assert source.fingerprint == again.fingerprint and source.dataset[:] == again.dataset[:]
    assert source.class_names == ("ground", *"0123456789") and not source.flip_is_safe and len(source.dataset) == 100
    masks = np.array([decoded(source, row) for row in range(100)])
    assert masks.shape == (100, 64, 64) and set(np.unique(masks)) == set(range(11))
    assert (masks > 0).any(axis=(1, 2)).all() and 0.05 < (masks > 0).mean() < 0.4
    pixels = np.array([decode_image(row["image"]) for row in source.dataset]).mean(axis=-1)
    contrast = [abs(p[m > 0] - p[m == 0].mean()).mean() for p, m in zip(pixels, masks, strict=True)]
    assert min(contrast) > 25
    assert len(load_mask_source("digit_scenes").dataset) == 400
    with pytest.raises(InputError, match="'digit_scenes' has no split 'val'"):
        load_mask_source("digit_scenes", split="val")


def test_scenes_can_be_loaded_for_their_images_alone() -> None:
    source = load_source("digit_scenes", split="test")
    assert source.masks is None and source.label_column is None and len(source.dataset) == 100


def test_palettes_are_the_usual_ones() -> None:
    assert color_map(256)[1:5] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert color_map(256)[20] == (0, 64, 128) and color_map(256)[255] == (224, 224, 192)
    assert len(set(color_map(256))) == 256
    for masks in (VOC, CITYSCAPES, CAMVID):
        assert masks.class_names is not None and len(set(masks.palette)) == len(masks.class_names)
    assert CITYSCAPES.palette[0] == (128, 64, 128) and CAMVID.palette[0] == (128, 128, 128)
