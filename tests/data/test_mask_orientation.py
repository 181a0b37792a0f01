"""Masks beside images that are turned upright by EXIF."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.mask_sources import load_mask_source
from tpssl_hf.data.reading import decode_image
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError


def opened(source: Source, tmp_path: Path, **changes: Any) -> tuple[ImageCache, ScanReport]:
    options = {"image_size": 32, "cache_budget": 2**30, "num_workers": 2, "progress": False}
    return load_image_cache(source, cache_dir=tmp_path / "stores", **{**options, **changes})


TURNED = np.kron(
    np.array([[0, 1, 2, 3], [1, 0, 3, 2], [3, 3, 0, 1]], np.uint8), np.ones((8, 8), np.uint8)
)  # as stored


def turned_set(folder: Path, encode: Any, orientation: int, *, drawn_on: str, mask: np.ndarray = TURNED) -> Path:
    """One image turned by EXIF whose red values are its classes times 60, and a mask without orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(Image.fromarray(np.stack([mask * 60] * 3, axis=2)), exif=exif)
    upright = decode_image(file)[..., 0] // 60
    for kind, content in (("images", file), ("masks", encode(upright if drawn_on == "image" else mask))):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "a.png").write_bytes(content)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    return folder


def is_aligned(store: ImageCache) -> bool:
    batch = store.gather(np.array([0]), 0)
    assert batch.masks is not None
    return bool((batch.pixels[..., 0] // 60 == batch.masks).all())


@pytest.mark.parametrize("drawn_on", ["image", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_turned_images_are_aligned_or_asked_about(
    tmp_path: Path, encode: Any, orientation: int, drawn_on: str
) -> None:
    folder = str(turned_set(tmp_path / "set", encode, orientation, drawn_on=drawn_on))
    if orientation in (2, 3, 4):  # the sizes do not tell
        with pytest.raises(InputError, match="1 images of 'set' are turned .*--mask_orientation image"):
            opened(load_mask_source(folder), tmp_path)
        for asked in ("image", "stored"):
            store, report = opened(load_mask_source(folder, mask_orientation=asked), tmp_path)
            assert is_aligned(store) == (asked == drawn_on) and list(report.masks_of_turned.values()) == [1]
        return
    cached, report = opened(load_mask_source(folder), tmp_path)
    on_demand, _ = opened(load_mask_source(folder), tmp_path, cache_budget=0)
    assert is_aligned(cached) and is_aligned(on_demand)
    by_size = {"image": "image, by size", "stored": "stored pixels, by size"}[drawn_on]
    assert report.masks_of_turned == ({} if orientation == 1 else {by_size: 1})
    assert (by_size in report.summary()) == (orientation > 1)


def test_sizes_of_square_images_tell_nothing_and_masks_with_orientation_are_right(tmp_path: Path, encode: Any) -> None:
    square = turned_set(tmp_path / "square", encode, 6, drawn_on="stored", mask=TURNED[:, :24])
    with pytest.raises(InputError, match="1 images of 'square' are turned"):
        opened(load_mask_source(str(square)), tmp_path)
    assert is_aligned(opened(load_mask_source(str(square), mask_orientation="stored"), tmp_path)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    (square / "masks" / "a.png").write_bytes(encode(Image.fromarray(TURNED[:, :24]), exif=exif))
    store, report = opened(load_mask_source(str(square)), tmp_path)
    assert is_aligned(store) and report.masks_of_turned == {} and report.turned == 1


def test_turned_mask_of_another_size_is_refused(tmp_path: Path, encode: Any) -> None:
    folder = turned_set(tmp_path / "set", encode, 6, drawn_on="image")
    (folder / "masks" / "a.png").write_bytes(encode(TURNED[:8]))
    with pytest.raises(InputError, match="is 32 x 8 pixels and its image images/a.png 24 x 32"):
        opened(load_mask_source(str(folder)), tmp_path)
