import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.mask_sources import load_mask_source
from tpssl_hf.data.masks import Masks, binary_masks, color_map, decode_mask, numbered_masks
from tpssl_hf.data.reading import UnreadableImage
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

SIZES = [(20, 24), (31, 17), (64, 48)]
MakeSet = Callable[..., Path]


def opened(source: Source, tmp_path: Path, **changes: Any) -> tuple[ImageCache, ScanReport]:
    options = {"image_size": 32, "cache_scale": 1.15, "cache_budget": 2**30, "num_workers": 2, "progress": False}
    return load_image_cache(source, cache_dir=tmp_path / "stores", **{**options, **changes})


def mask_of(number: int) -> np.ndarray:
    """Blocks of 8 x 8 pixels of classes 0 to 3 and 255."""
    height, width = SIZES[number % 3]
    blocks = np.random.default_rng(number).choice([0, 1, 2, 3, 255], (8, 6)).astype(np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


@pytest.fixture
def mask_set(tmp_path: Path, image: Any, encode: Any) -> MakeSet:
    """Make ``count`` images of three sizes with masks of classes a, b, c and d; every fifth has no mask."""

    def make(count: int, name: str = "set") -> Path:
        for kind in ("images", "masks"):
            (tmp_path / name / kind).mkdir(parents=True)
        for number in range(count):
            pixels, file = image(number, *SIZES[number % 3]), f"{number:04d}.png"
            (tmp_path / name / "images" / file).write_bytes(encode(pixels))
            if number % 5 != 4:
                (tmp_path / name / "masks" / file).write_bytes(encode(mask_of(number)))
        (tmp_path / name / "classes.txt").write_text("a\nb\nc\nd\n")
        return tmp_path / name

    return make


def assert_same(one: ImageBatch, other: ImageBatch) -> None:
    for name in ("pixels", "sizes", "index", "epoch", "masks"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_gather_returns_masks_beside_pixels_and_255_elsewhere(mask_set: MakeSet, tmp_path: Path, image: Any) -> None:
    store, report = opened(load_mask_source(str(mask_set(6))), tmp_path, shorter_side=48)
    batch = store.gather(np.array([4, 0, 2]), 7)
    assert batch.masks is not None and batch.masks.dtype == torch.uint8 and batch.masks.shape == (3, 64, 48)
    assert (batch.masks[0] == 255).all() and np.array_equal(batch.pixels[0, :31, :17].numpy(), image(4, 31, 17))
    assert np.array_equal(batch.masks[1, :20, :24].numpy(), mask_of(0)) and (batch.masks[1, 20:] == 255).all()
    assert np.array_equal(batch.masks[2].numpy(), mask_of(2)) and (batch.masks[1, :, 24:] == 255).all()
    assert store.has_mask.tolist() == [True] * 4 + [False, True] and store.class_names == ("a", "b", "c", "d")
    assert store.palette == color_map(4) and store.labels is None
    unlabeled = store.gather(np.array([4]), 0).masks
    assert unlabeled is not None and unlabeled.shape == (1, 31, 17) and (unlabeled == 255).all()
    pixels = np.concatenate([mask_of(number).ravel() for number in (0, 1, 2, 3, 5)])
    assert report.masks == 5 and list(report.pixel_shares) == ["a", "b", "c", "d", "ignored"]
    assert report.pixel_shares["ignored"] == pytest.approx((pixels == 255).mean(), abs=1e-6)
    assert report.pixel_shares["b"] == pytest.approx((pixels == 1).mean(), abs=1e-6)
    assert "5 have a mask; of its pixels a " in report.summary()


def test_masks_are_shrunk_like_their_images_without_new_classes(mask_set: MakeSet, tmp_path: Path) -> None:
    source = load_mask_source(str(mask_set(3)))
    store, _ = opened(source, tmp_path, shorter_side=24)  # the third is 64 x 48
    batch = store.gather(np.array([2]), 0)
    assert batch.masks is not None and batch.sizes.tolist() == [[32, 24]] and batch.masks.shape == (1, 32, 24)
    assert np.array_equal(batch.masks[0].numpy(), mask_of(2)[::2, ::2])
    assert opened(source, tmp_path)[0].gather(np.array([2]), 0).sizes.tolist() == [[49, 37]]  # 1.15 x 32
    with pytest.raises(InputError, match="`shorter_side` is 0"):
        opened(source, tmp_path, shorter_side=0)


@pytest.mark.parametrize("from_table", [False, True])
def test_cached_and_on_demand_masks_are_the_same(mask_set: MakeSet, tmp_path: Path, from_table: bool) -> None:
    source = load_mask_source(str(mask_set(40)))
    if from_table:
        embedded = source.dataset.map(lambda row: {key: load(value) for key, value in row.items()})
        (tmp_path / "table").mkdir()
        embedded.to_parquet(tmp_path / "table" / "train.parquet")
        source = load_mask_source(str(tmp_path / "table"))
    cached, report = opened(source, tmp_path, shorter_side=30)
    on_demand, _ = opened(source, tmp_path, shorter_side=30, cache_budget=0, num_workers=3)
    rebuilt, again = opened(source, tmp_path / "other", shorter_side=30, cache_budget=1000)
    assert (cached.is_cached, on_demand.is_cached, rebuilt.is_cached) == (True, False, False)
    assert not list((tmp_path / "other").rglob("pixels.bin")) and cached.fingerprint == rebuilt.fingerprint
    assert cached.class_names == (("0", "1", "2", "3") if from_table else ("a", "b", "c", "d"))
    assert report.pixel_shares == again.pixel_shares
    indices = np.random.default_rng(0).permutation(40)[:20]
    for other in (on_demand, rebuilt):
        assert_same(cached.gather(indices, 3), other.gather(indices, 3))


def load(value: Any) -> Any:
    return None if value is None else {"bytes": Path(value["path"]).read_bytes(), "path": None}


def test_key_changes_with_all_that_changes_masks(mask_set: MakeSet, tmp_path: Path) -> None:
    folder = mask_set(6)
    source = load_mask_source(str(folder))
    (folder / "labeled.txt").write_text("0000\n0001\n")
    fewer = load_mask_source(str(folder))
    (folder / "labeled.txt").unlink()
    (folder / "masks" / "0000.png").write_bytes((folder / "masks" / "0003.png").read_bytes())
    other_mask = load_mask_source(str(folder))
    (folder / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    more_classes = load_mask_source(str(folder))
    (folder / "classes.txt").write_text("a\nb\n")
    black_and_white = load_mask_source(str(folder), mask_threshold=3)
    images_alone = replace(source, mask_column=None, masks=None)
    sources = [source, fewer, other_mask, more_classes, black_and_white, images_alone]
    stores = [opened(each, tmp_path)[0] for each in sources]
    assert len({store.fingerprint for store in stores}) == len(sources)
    assert stores[1].has_mask.sum() == 2 and stores[4].class_names == ("a", "b")
    assert stores[5].gather(np.arange(2), 0).masks is None and not stores[5].has_mask.any()
    assert stores[5].palette is None


def test_stores_without_masks_hold_nothing_new(tmp_path: Path, image_folder: Any) -> None:
    store, report = opened(load_source(str(image_folder(3))), tmp_path)
    (folder,) = [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    files = ["full_sizes.npy", "meta.json", "pixels.bin", "rows.npy", "sizes.npy"]
    assert sorted(path.name for path in folder.iterdir()) == files
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("masks", "pixel_shares"):  # as a store is that was written before there were masks
        del meta["report"][name]
    (folder / "meta.json").write_text(json.dumps(meta))
    again, second = opened(load_source(str(tmp_path / "images")), tmp_path)
    assert second == report and report.masks is None and "mask" not in report.summary()
    assert again.gather(np.arange(3), 0).masks is None and again.has_mask.tolist() == [False] * 3


def test_broken_masks_are_left_out_with_their_images(mask_set: MakeSet, tmp_path: Path) -> None:
    folder = mask_set(60)
    for number in (7, 8):
        file = (folder / "masks" / f"{number:04d}.png").read_bytes()
        (folder / "masks" / f"{number:04d}.png").write_bytes(file[:40] if number == 7 else b"")
    store, report = opened(load_mask_source(str(folder)), tmp_path)
    assert len(store) == 58 and [entry["where"] for entry in report.bad] == ["images/0007.png", "images/0008.png"]
    assert report.bad[1]["reason"] == "its mask masks/0008.png: empty file"
    batch = store.gather(np.array([8]), 0)
    assert store.rows[8] == 10 and batch.masks is not None and np.array_equal(batch.masks[0].numpy(), mask_of(10))
    for number in (10, 11):
        (folder / "masks" / f"{number:04d}.png").write_bytes(b"")
    with pytest.raises(InputError, match="4 of 60 images of 'set' cannot be read"):
        opened(load_mask_source(str(folder)), tmp_path)


def test_values_outside_the_classes_stop_the_run_and_are_named(mask_set: MakeSet, tmp_path: Path, encode: Any) -> None:
    folder = mask_set(3)
    wrong = mask_of(1).copy()
    wrong[0, :2] = 4, 77
    (folder / "masks" / "0001.png").write_bytes(encode(wrong))
    with pytest.raises(InputError, match=r"Mask masks.0001.png holds the values 4, 77; .* 0 to 3 and 255"):
        opened(load_mask_source(str(folder)), tmp_path)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


def test_masks_of_another_size_than_their_image_stop_the_run(mask_set: MakeSet, tmp_path: Path, encode: Any) -> None:
    folder = mask_set(3)
    (folder / "masks" / "0001.png").write_bytes(encode(np.zeros((30, 17), np.uint8)))
    message = r"Mask masks.0001.png is 17 x 30 pixels and its image images.0001.png 17 x 31"
    with pytest.raises(InputError, match=message):
        opened(load_mask_source(str(folder)), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 255], "hold no values but 0 and 255.*`mask_threshold` 127"),
        ([255, 255], "Every pixel of the masks of 'set' is to be ignored"),
        (None, "No image of 'set' has a mask"),
    ],
)
def test_masks_without_classes_stop_the_run(
    tmp_path: Path, image: Any, encode: Any, values: list[int] | None, message: str
) -> None:
    cell = None if values is None else {"bytes": encode(np.array([values], np.uint8)), "path": None}
    columns = {"image": [{"bytes": encode(image(0, 1, 2)), "path": None}], "mask": [cell]}
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        opened(load_mask_source(str(tmp_path / "set")), tmp_path)


def test_masks_that_change_after_the_scan_are_noticed(mask_set: MakeSet, tmp_path: Path, encode: Any) -> None:
    folder = mask_set(3)
    store, _ = opened(load_mask_source(str(folder)), tmp_path, cache_budget=0)
    (folder / "masks" / "0001.png").unlink()
    with pytest.raises(InputError, match="0001.png of 'set' has changed"):
        store.gather(np.arange(3), 0)


GRAY = np.array([[0, 1, 2, 255]], np.uint8)
COLORS = np.array([[[9, 9, 9], [200, 0, 0], [0, 0, 7], [1, 1, 1]]], np.uint8)
COLORED = numbered_masks("abc", [(9, 9, 9), (200, 0, 0), (0, 0, 7)], void=[(1, 1, 1)])


def as_mode(values: np.ndarray, mode: str) -> Image.Image:
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        (Image.fromarray(GRAY), numbered_masks("abc")),
        (as_mode(GRAY, "RGB"), numbered_masks("abc")),
        (as_mode(GRAY, "RGBA"), numbered_masks("abc")),
        (Image.fromarray(COLORS), COLORED),
        (as_mode(COLORS, "RGBA"), COLORED),
    ],
)
def test_class_numbers_are_read_from_gray_and_from_known_colors(image: Image.Image, masks: Masks, encode: Any) -> None:
    assert np.array_equal(decode_mask(encode(image), masks, "it"), GRAY)


def test_palette_images_are_read_by_index_and_one_bit_as_it_makes_sense(encode: Any) -> None:
    palette = Image.fromarray(GRAY)
    palette.putpalette([200, 30, 30] * 256)
    assert palette.mode == "P" and np.array_equal(decode_mask(encode(palette), numbered_masks("abc"), "it"), GRAY)
    bits = Image.fromarray(np.array([[False, True]]))
    for masks in (numbered_masks("ab"), binary_masks(127)):
        assert decode_mask(encode(bits), masks, "it").tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("values", "kind", "masks", "message"),
    [
        (COLORS, "PNG", numbered_masks("abc"), r"Mask it is in colors \(\(0, 0, 7\), \(1, 1, 1\), \(9, 9, 9\)"),
        (
            COLORS + 1,
            "PNG",
            COLORED,
            r"Mask it holds colors that stand for no class \(\(1, 1, 8\), .*\(201, 1, 1\)",
        ),
        (GRAY.astype(np.uint16), "PNG", numbered_masks("abc"), "another kind .*I;16.* save the masks as 8-bit"),
        (GRAY.astype(np.float32), "TIFF", numbered_masks("abc"), "another kind .*mode F"),
        (GRAY, "JPEG", numbered_masks("abc"), "Mask it is a JPEG file"),
        (GRAY, "JPEG", numbered_masks(None), "Mask it is a JPEG file"),
        (GRAY, "PNG", numbered_masks("ab"), "Mask it holds the value 2; .* 0 to 1 and 255"),
        (np.arange(200, dtype=np.uint8)[None], "PNG", numbered_masks("ab"), "2, 3, 4, 5, 6, 7, 8, 9 and 190 more"),
    ],
)
def test_what_cannot_be_a_mask_is_refused(values: Any, kind: str, masks: Masks, message: str, encode: Any) -> None:
    with pytest.raises(InputError, match=message):
        decode_mask(encode(values, kind), masks, "it")


def test_damaged_mask_files_are_unreadable(encode: Any) -> None:
    with pytest.raises(UnreadableImage):
        decode_mask(encode(np.zeros((64, 64), np.uint8))[:50], numbered_masks("ab"), "it")


@pytest.mark.parametrize("with_masks", [False, True])
def test_batches_keep_their_masks_when_moved_pinned_and_sliced(
    with_masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # needs a GPU
    masks = torch.arange(24, dtype=torch.uint8).reshape(4, 2, 3) if with_masks else None
    numbers = torch.arange(4)
    batch = ImageBatch(torch.zeros(4, 2, 3, 3, dtype=torch.uint8), torch.full((4, 2), 2), numbers, numbers, masks)
    for changed in (batch.to("cpu", non_blocking=True), batch.pin_memory(), batch[1:3]):
        assert (changed.masks is not None) == with_masks and len(changed) in (2, 4)
    part = batch[1:3]
    assert part.index.tolist() == [1, 2] and (part.masks is None or torch.equal(part.masks, masks[1:3]))
    assert batch.to("meta").pixels.is_meta and (not with_masks or batch.to("meta").masks.is_meta)
