import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uploads
from PIL import Image, ImageFile
from upload_files import BOMB, COLOR, GRAY, ORIENTATION, REFUSED, chunk, encode, exif, frames, jpeg_with, with_chunks
from uploads import UploadError, read_image


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read an image from the bytes of its file."""

    def from_bytes(content: bytes) -> np.ndarray:
        (tmp_path / "wrong-suffix.jpg").write_bytes(content)
        image = read_image(tmp_path / "wrong-suffix.jpg")
        assert image.mode == "RGB"
        return np.asarray(image)

    return from_bytes


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_images_keep_their_pixels(kind: str, options: dict[str, Any], read: Any) -> None:
    assert np.array_equal(read(encode(COLOR, kind, **options)), COLOR)


def test_a_photograph_is_turned_upright(read: Any) -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    upright = np.rot90(COLOR, -1)
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True})]:
        assert np.array_equal(read(encode(COLOR, kind, exif=turned, **options)), upright)
    flat = np.repeat(np.repeat(GRAY[:, ::8], 8, 1), 8, 0)
    gray = read(encode(flat, "JPEG", exif=turned, quality=95))[..., 0]
    assert np.abs(gray.astype(int) - np.rot90(flat, -1)).max() < 12


def test_16_bit_gray_is_scaled_not_saturated(read: Any) -> None:
    assert np.array_equal(read(encode(GRAY.astype(np.uint16) * 257)), np.repeat(GRAY[..., None], 3, 2))


def test_cmyk_of_print_shops_is_read(read: Any) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(read(encode(ink, "JPEG", quality=95)) - np.array([255.0, 0, 0])).max() < 10


def test_transparency_is_laid_over_white(read: Any) -> None:
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    expected = [[[255, 255, 255], [200, 100, 50]], [[200, 100, 50], [255, 255, 255]]]
    for kind in ("PNG", "GIF"):
        assert read(encode(palette, kind, transparency=0)).tolist() == expected
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 127))
    assert read(encode(half)).tolist() == [[[128, 128, 128]] * 2] * 2


def test_gray_one_bit_and_a_single_frame_are_read(read: Any) -> None:
    assert np.array_equal(read(encode(GRAY)), np.repeat(GRAY[..., None], 3, 2))
    assert np.array_equal(read(encode(GRAY > 100)), np.repeat((GRAY > 100)[..., None], 3, 2) * np.uint8(255))
    assert np.array_equal(read(encode(GRAY, "GIF")), np.repeat(GRAY[..., None], 3, 2))


def test_a_telephone_s_second_exposure_is_left_alone(read: Any) -> None:
    both = frames("MPO")
    assert Image.open(io.BytesIO(both)).n_frames == 2
    assert np.array_equal(read(both), read(encode(COLOR, "JPEG")))


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_file_is_refused_with_its_sentence(name: str, read: Any, tmp_path: Path) -> None:
    content, sentence = REFUSED[name]
    with pytest.raises(UploadError) as caught:
        read(content)
    assert str(caught.value) == sentence
    assert sentence.endswith(".") and "\n" not in sentence and str(tmp_path) not in sentence


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_image_cut_anywhere_is_refused_or_read(kind: str, read: Any) -> None:
    content = encode(COLOR, kind)
    for length in range(1, len(content) - 1, max(1, len(content) // 40)):
        try:
            assert read(content[:length]).shape == COLOR.shape
        except UploadError as error:
            assert str(error) in (uploads.DAMAGED, uploads.NO_IMAGE)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", str(tmp_path / "nothing")):
        with pytest.raises(UploadError, match="^There is no such upload any more"):
            read_image(place)


def test_a_bomb_is_refused_without_being_decoded(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    monkeypatch.setattr(Image.core, "new", lambda *args: pytest.fail("has pixels"))
    with pytest.raises(UploadError, match="20 million pixels"):
        read(BOMB)


def test_the_size_of_a_file_is_looked_at_before_its_content(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("was opened"))
    for name in ("too large", "nothing"):
        with pytest.raises(UploadError):
            read(REFUSED[name][0])


def test_exif_that_claims_all_of_itself_takes_little_memory(read: Any) -> None:
    """Pillow copies the value of each tag: 300 of half a megabyte are 150 MB."""
    greedy = exif(500_000, 490_000)
    segments = [b"Exif\0\0" + greedy[at : at + 62_500] for at in range(0, len(greedy), 62_500)]
    contents = [
        jpeg_with(*segments),
        with_chunks(chunk(b"eXIf", greedy)),
        with_chunks(chunk(b"eXIf", greedy), last=True),
        encode(COLOR, "WEBP", exif=greedy),
    ]
    for content in contents:
        tracemalloc.start()
        try:
            with pytest.raises(UploadError):
                read(content)
            assert tracemalloc.get_traced_memory()[1] < 20e6
        finally:
            tracemalloc.stop()
