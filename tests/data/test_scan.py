import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tpssl_hf.data.reading import UnreadableImage, decode_image, decode_reduced
from tpssl_hf.data.scan import ScanReport, check_labels, count_labels
from tpssl_hf.errors import InputError

GRAY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def png_with_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_plain_images_keep_their_pixels(image: Any, encode: Any, tmp_path: Path) -> None:
    pixels = image(0)
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})]:
        file = encode(pixels, kind, **options)
        (tmp_path / "wrong-suffix.jpg").write_bytes(file)
        for value in (file, {"bytes": file, "path": None}, tmp_path / "wrong-suffix.jpg", Image.fromarray(pixels)):
            assert np.array_equal(decode_image(value), pixels), kind


def test_gray_and_one_bit(encode: Any) -> None:
    assert np.array_equal(decode_image(encode(GRAY)), as_rgb(GRAY))
    bits = GRAY > 100
    assert np.array_equal(decode_image(encode(Image.fromarray(bits))), as_rgb(bits * np.uint8(255)))


def test_values_that_are_not_finite_are_refused(encode: Any) -> None:
    with pytest.raises(UnreadableImage, match="not finite"):
        decode_image(encode(np.full((4, 4), np.nan, np.float32), "TIFF"))


def test_cmyk_jpeg(encode: Any) -> None:
    red = Image.new("RGB", (16, 16), (220, 20, 30)).convert("CMYK")
    assert np.abs(decode_image(encode(red, "JPEG", quality=95)).astype(int) - [220, 20, 30]).max() < 8


def test_transparency_is_laid_over_white(encode: Any) -> None:
    with_alpha = np.zeros((4, 4, 2), np.uint8)
    with_alpha[:2, :, 1] = 255
    white_below = as_rgb(255 - with_alpha[..., 1])
    assert np.array_equal(decode_image(encode(Image.fromarray(with_alpha, "LA"))), white_below)
    assert np.array_equal(decode_image(encode(Image.fromarray(with_alpha).convert("RGBA"))), white_below)
    palette = Image.fromarray((with_alpha[..., 1] // 255).astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    assert np.array_equal(decode_image(encode(palette, transparency=0)), white_below)
    assert np.array_equal(decode_image(encode(palette, transparency=b"\0\xff")), white_below)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_first_frame_stands_for_an_animation(encode: Any, kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (9, 8), color) for color in ("red", "blue", "lime")]
    image = decode_reduced(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options), None)
    assert image.pixels.shape == (8, 9, 3) and (image.pixels == [255, 0, 0]).all() and image.has_more_frames
    assert not decode_reduced(encode(frames[0], kind, **options), None).has_more_frames


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode: Any, kind: str, orientation: int) -> None:
    upright = np.zeros((32, 48), np.uint8)
    upright[:16, :16], upright[16:, 32:] = 240, 120
    undo: dict[int, Any] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undo[orientation](upright))
    image = decode_reduced(encode(stored, kind, exif=exif), None)
    assert (image.height, image.width, image.orientation) == (32, 48, orientation)
    assert np.abs(image.pixels.astype(int) - as_rgb(upright)).max() < 6
    assert decode_reduced(encode(stored, kind, exif=exif), 8).pixels.shape == (8, 12, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3000, 2000), (37, 74), (38, 30)])
def test_reduced_size_is_bounded_and_never_enlarged(encode: Any, size: tuple[int, int]) -> None:
    image = decode_reduced(encode(np.zeros((*size, 3), np.uint8), "JPEG"), 37)
    assert (image.height, image.width) == size
    pixels = image.pixels
    assert min(pixels.shape[:2]) <= min(37, *size) and max(pixels.shape[:2]) <= min(74, max(size))
    if min(size) <= 37 and max(size) <= 74:
        assert pixels.shape[:2] == size


def test_shrinking_averages_instead_of_skipping(encode: Any) -> None:
    checkerboard = np.indices((256, 256)).sum(axis=0) % 2 * np.uint8(255)
    pixels = decode_reduced(encode(checkerboard.astype(np.uint8)), 32).pixels
    assert np.abs(pixels.astype(int) - 127).max() <= 4


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("GIF", {})]
)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_truncated_files_are_refused(image: Any, encode: Any, kind: str, options: Any, share: float) -> None:
    file = encode(image(0, 64, 64), kind, **options)
    with pytest.raises(UnreadableImage):
        decode_image(file[: int(len(file) * share)])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_damaged_png_gives_right_pixels_or_a_reason(image: Any, encode: Any) -> None:
    pixels = image(0, 64, 64)
    file = encode(pixels)
    refused = 0
    for position in range(8, len(file), len(file) // 60):
        damaged = bytearray(file)
        damaged[position] ^= 0x10
        try:
            assert np.array_equal(decode_image(bytes(damaged)), pixels), position
        except UnreadableImage:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"this is no image", "format that is read here"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format that is read here"),
        (png_with_header(30000, 30000), "900000000 pixels"),  # in Pillow's words
        (png_with_header(10000, 10001), "10000 x 10001 pixels"),
        (png_with_header(90, 90), "."),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for value in (content, str(tmp_path / "x.jpg"), {"bytes": None, "path": str(tmp_path / "x.jpg")}):
            with pytest.raises(UnreadableImage, match=reason):
                decode_image(value)


def test_pixel_limit_is_checked_before_decoding(encode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(UnreadableImage, match="20 x 12 pixels, of which 239 are allowed"):
        decode_image(encode(GRAY), pixel_limit=239)


def test_places_without_a_readable_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in [("folder", "not a regular"), ("pipe", "not a regular"), ("dangling", "No such file")]:
        with pytest.raises(UnreadableImage, match=reason) as caught:
            decode_image(str(tmp_path / f"{name}.png"))
        assert str(tmp_path) not in str(caught.value)
    for empty in (None, {"bytes": None, "path": None}):
        with pytest.raises(UnreadableImage, match="empty cell"):
            decode_image(empty)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_refused(tmp_path: Path, encode: Any) -> None:
    (tmp_path / "x.png").write_bytes(encode(GRAY))
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(UnreadableImage, match="Permission denied"):
        decode_image(str(tmp_path / "x.png"))


def test_labels_are_checked_against_the_classes() -> None:
    wheres = [f"row {number}" for number in range(4)]
    assert check_labels([0, 2, None, -1], wheres, ("a", "b", "c")).tolist() == [0, 2, -1, -1]
    assert check_labels([0, 99, 1, 2], wheres, None).tolist() == [0, 99, 1, 2]


@pytest.mark.parametrize("value", [3, -2, -100, 1.0, float("nan"), "1", "", True, 255])
def test_illegal_label_names_its_row_and_the_legal_range(value: Any) -> None:
    with pytest.raises(InputError, match=r"label of row 1 is .*; a label must be a whole number from 0 to 2"):
        check_labels([0, value], ["row 0", "row 1"], ("a", "b", "c"))


def test_labels_are_counted_by_name() -> None:
    assert count_labels(np.array([0, 2, 2, -1]), ("a", "b", "c")) == {"a": 1, "b": 0, "c": 2, "unlabeled": 1}
    assert count_labels(np.array([7, 3, 3]), None) == {"3": 2, "7": 1}
    assert count_labels(None, None) == {}


def test_report_for_people_and_machines(tmp_path: Path) -> None:
    bad = [{"where": f"{number}.png", "reason": "empty file"} for number in range(6)]
    report = ScanReport("flowers", 994, bad, (10, 20, 30), (40, 50, 60), {"rose": 994}, 2, 1.5)
    summary = report.summary()
    for text in ("994 images", "10 / 20 / 30", "rose 994", "2 are exact copies", "6 cannot be read", "0.png: empty"):
        assert text in summary
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["bad"] == bad
