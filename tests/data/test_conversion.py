"""Images of every mode: one rule for a data set, and what plain pipelines would see."""

import io
import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from tpssl_hf.augment.enlarged_crops import enlarged_share
from tpssl_hf.data.conversion import SIXTEEN_BITS, common_range
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.reading import decode_image, decode_reduced
from tpssl_hf.data.scan import ScanReport
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError

GRAY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
RNG = np.random.default_rng(0)


def opened(folder: Path, tmp_path: Path, **changes: Any) -> tuple[ImageCache, ScanReport]:
    options = {"image_size": 32, "cache_budget": 2**30, "num_workers": 2, "progress": False}
    return load_image_cache(load_source(str(folder)), cache_dir=tmp_path / "stores", **{**options, **changes})


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / next(iter(files)).split("/")[0]


def published(file: bytes) -> np.ndarray:
    """What transformers' pipelines make of a file."""
    return np.asarray(load_image(Image.open(io.BytesIO(file))))


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def rgb_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB (H, W, 3), which Pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png


COLOR = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
ALPHA = np.concatenate([COLOR, GRAY[..., None]], axis=2)
SAME_AS_PUBLISHED = [
    ("1", "PNG", Image.fromarray(GRAY > 100)),
    ("L", "PNG", Image.fromarray(GRAY)),
    ("P", "PNG", Image.fromarray(COLOR).quantize(8)),
    ("opaque RGBA", "PNG", Image.fromarray(np.concatenate([COLOR, np.full_like(GRAY, 255)[..., None]], axis=2))),
    ("opaque LA", "PNG", Image.fromarray(np.stack([GRAY, np.full_like(GRAY, 255)], axis=2), "LA")),
    ("CMYK", "JPEG", Image.fromarray(COLOR).convert("CMYK")),
    ("CMYK", "TIFF", Image.fromarray(COLOR).convert("CMYK")),
    ("YCbCr", "JPEG", Image.fromarray(COLOR).convert("YCbCr")),
    ("LAB", "TIFF", Image.fromarray(COLOR).convert("LAB")),
    ("32-bit whole numbers of 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.int32))),
    ("floats of 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.float32))),
]


@pytest.mark.parametrize(("name", "kind", "image"), SAME_AS_PUBLISHED)
def test_modes_that_plain_pipelines_read_alike(encode: Any, name: str, kind: str, image: Image.Image) -> None:
    file = encode(image, kind)
    decoded = decode_reduced(file, None)
    assert decoded.differs is None and np.abs(decoded.pixels.astype(int) - published(file)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_plain_pipelines_turn_images_as_we_do(encode: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        file = encode(COLOR, kind, exif=exif)
        decoded = decode_reduced(file, None)
        assert np.array_equal(decoded.pixels, published(file)) and decoded.orientation == orientation


def test_16_bit_rgb_and_gamma_chunks_are_read_alike(encode: Any) -> None:
    deep = rgb_of_16_bits(COLOR.astype(np.uint16) * 257)
    for file in (deep, with_chunk(encode(COLOR), b"gAMA", struct.pack(">I", 22000))):
        decoded = decode_reduced(file, None)
        assert np.array_equal(decoded.pixels, COLOR) and decoded.differs is None
        assert np.array_equal(published(file), COLOR)


@pytest.mark.parametrize(
    ("reason", "kind", "image", "options"),
    [
        ("transparency", "PNG", Image.fromarray(ALPHA), {}),
        ("transparency", "PNG", Image.fromarray(np.stack([GRAY, GRAY], axis=2), "LA"), {}),
        ("transparency", "PNG", Image.fromarray(GRAY), {"transparency": 7}),
        ("transparency", "PNG", Image.fromarray(COLOR), {"transparency": tuple(COLOR[0, 0].tolist())}),
        ("transparency", "PNG", Image.fromarray(COLOR).quantize(8), {"transparency": 0}),
        ("transparency", "WEBP", Image.fromarray(ALPHA), {"lossless": True}),
        ("more than 8 bits", "PNG", Image.fromarray(GRAY.astype(np.uint16) * 257), {}),
        ("more than 8 bits", "PPM", Image.fromarray(GRAY.astype(np.uint16) * 257), {}),
        ("more than 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.uint16) * 257), {}),
        ("more than 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.int32) * 1000), {}),
        ("more than 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.int32) - 50), {}),
        ("more than 8 bits", "TIFF", Image.fromarray(GRAY.astype(np.float32) / 255), {}),
    ],
)
def test_modes_that_plain_pipelines_read_otherwise_are_told(
    encode: Any, reason: str, kind: str, image: Image.Image, options: dict[str, Any]
) -> None:
    file = encode(image, kind, **options)
    decoded = decode_reduced(file, None)
    assert decoded.differs == reason and np.abs(decoded.pixels.astype(int) - published(file)).max() > 1


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([], None),
        ([(0, 0.4), (0.3, 1.0)], (0, 1)),
        ([(0, 200)], (0, 255)),
        ([(0, 255), (3, 3)], (0, 255)),
        ([(0, 256)], (0, 256)),
        ([(0, 300), (0, 900)], (0, 1023)),
        ([(100, 3900)], (0, 4095)),
        ([(900, 1100)], (900, 1100)),
        ([(0, 1.4)], (0, 1.4)),
        ([(40, 9000), (60000, 61000)], (0, 65535)),
        ([(-1000, 3000)], (-1000, 3000)),
        ([(0, 239000)], (0, 239000)),
    ],
)
def test_range_is_decided_from_all_images(extents: Any, expected: Any) -> None:
    assert common_range(extents) == expected


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_saturated(encode: Any, kind: str) -> None:
    file = encode(GRAY.astype(np.uint16) * 257, kind)
    assert np.array_equal(decode_image(file, wide_range=SIXTEEN_BITS)[..., 0], GRAY)
    big_endian = Image.frombytes("I;16B", (20, 12), (GRAY.astype(">u2") * 257).tobytes())
    assert np.array_equal(decode_image(encode(big_endian, "TIFF"), wide_range=SIXTEEN_BITS)[..., 0], GRAY)


def test_12_bit_values_keep_their_levels(encode: Any) -> None:
    values = np.clip(RNG.normal(1000, 20, (64, 64)), 0, 4095).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        assert len(np.unique(decode_image(encode(values, kind)))) == len(np.unique(values))


def test_transparent_value_of_wide_gray_is_white(encode: Any) -> None:
    values = np.array([[9, 500, 1000]], np.uint16)
    file = encode(values, "PNG", transparency=9)
    assert Image.open(io.BytesIO(file)).info["transparency"] == 9
    assert decode_image(file)[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_same_value_is_the_same_gray_throughout_a_data_set(tmp_path: Path, encode: Any, dtype: Any) -> None:
    files = {f"set/{n}.tif": encode(np.array([[700, 100 + 300 * n]], dtype), "TIFF") for n in range(5)}
    store, report = opened(folder_of(tmp_path, files), tmp_path)
    pixels = store.gather(np.arange(5), 0).pixels[..., 0].numpy()
    assert len(np.unique(pixels[:, 0, 0])) == 1 and (np.diff(pixels[:, 0, 1].astype(int)) > 0).all()
    assert report.wide == 5 and report.wide_range == store.wide_range == (100, 1300)
    assert report.read_differently == 5 and report.read_differently_because == {"more than 8 bits": 5}
    assert "in all of them 100 becomes black and 1300 white" in report.summary()
    assert "warning: plain pipelines" in report.summary()
    on_demand, again = opened(folder_of(tmp_path, files), tmp_path / "other", cache_budget=0)
    assert np.array_equal(on_demand.gather(np.arange(5), 0).pixels[..., 0], pixels) and again.wide_range == (100, 1300)
    assert "not cached" in again.summary()


def test_other_images_of_a_run_are_read_by_the_range_of_the_training_images(tmp_path: Path, encode: Any) -> None:
    test = folder_of(tmp_path, {f"test/{n}.png": encode(np.array([[50, n]], np.uint16)) for n in (2000, 600)})
    store, report = opened(test, tmp_path, wide_range=(100.0, 1300.0))
    assert store.gather(np.arange(2), 0).pixels[:, 0, :, 0].tolist() == [[0, 255], [0, 106]]
    assert report.wide_range == (100, 1300) and report.wide_extent == (50, 2000) and report.wide_clipped == 2
    assert "2 reach beyond and are clipped" in report.summary()
    assert opened(test, tmp_path)[0].fingerprint != store.fingerprint


def test_values_that_stand_for_missing_data_are_told(tmp_path: Path, encode: Any) -> None:
    values = RNG.uniform(0, 300, (20, 20)).astype(np.float32)
    values[0, 0] = -9999
    _, report = opened(folder_of(tmp_path, {"set/a.tif": encode(values, "TIFF")}), tmp_path)
    assert report.wide_levels < 16 and "reach from -9999 to 29" in report.summary()


def test_report_counts_frames_turns_and_transparency(tmp_path: Path, encode: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    page = Image.fromarray(GRAY)
    files = {
        "set/a.tif": encode(page, "TIFF", save_all=True, append_images=[page, page]),
        "set/b.png": encode(Image.fromarray(ALPHA)),
        "set/c.jpg": encode(COLOR, "JPEG", exif=exif),
        "set/d.png": encode(COLOR),
    }
    _, report = opened(folder_of(tmp_path, files), tmp_path)
    assert (report.more_frames, report.read_differently, report.turned, report.wide) == (1, 1, 1, 0)
    assert report.wide_range is None
    for text in (
        "1 hold several frames or pages, of which the first",
        "1 images (transparency 1)",
        "1 are turned",
    ):
        assert text in report.summary()
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["read_differently"] == 1
    assert asdict(opened(tmp_path / "set", tmp_path)[1]) == asdict(report)


def test_enough_is_kept_for_small_crops(tmp_path: Path, encode: Any, image: Any) -> None:
    folder = folder_of(tmp_path, {"set/a.png": encode(image(0, 200, 300)), "set/b.png": encode(image(1, 30, 40))})
    store, _ = opened(folder, tmp_path)
    assert store.sizes.tolist() == [[80, 120], [30, 40]] and store.full_sizes.tolist() == [[200, 300], [30, 40]]
    assert opened(folder, tmp_path, cache_scale=1.15)[0].sizes.tolist() == [[37, 56], [30, 40]]
    with pytest.raises(InputError, match="`cache_scale` is 0.5"):
        opened(folder, tmp_path, cache_scale=0.5)


@pytest.mark.parametrize(("side", "expected"), [(258, 0.85), (560, 0.09), (3000, 0.0), (224, 1.0)])
def test_share_of_enlarged_crops(side: int, expected: float) -> None:
    assert enlarged_share(np.array([[side, side]]), 224, (0.08, 1.0)) == pytest.approx(expected, abs=0.02)
