"""HEIC, JPEG XL and AVIF: read by plug-ins that are installed, and else quarantined with what to install."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from tpssl_hf.data import reading
from tpssl_hf.data.plugins import jxl_size, kind_of, load_plugins
from tpssl_hf.data.reading import UnreadableImage, decode_image

BOXES = (
    "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20"  # what a JPEG XL file with boxes starts with
)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_kinds_are_told_by_brands() -> None:
    assert kind_of(HEIC + bytes(9)) == "HEIF"
    assert kind_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heix") == kind_of(b"\0\0\0\x10ftypmsf1\0\0\0\0") == "HEIF"
    assert kind_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == kind_of(b"\0\0\0\x10ftypavis\0\0\0\0") == "AVIF"
    assert kind_of(b"\xff\x0a\0") == kind_of(bytes.fromhex(BOXES)) == "JXL"
    for other in (b"", b"ftyp", b"\0\0\0\x10ftypmp42heic", b"\0\0\0\x10ftypisom\0\0\0\0heic", b"\xff\xd8\xff"):
        assert kind_of(other) is None


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("ff0acb060013080100e40067", (64, 48)),
        ("ff0a00003f0d1b0013080100", (100_000, 1)),
        ("ff0aba211d00130801006c40", (1920, 1080)),
        ("ff0a3a9c00c000130801006c", (1, 5000)),
        ("ff0a4802480c0013080100e4", (37, 74)),
        (BOXES + "000000106a786c7000000000ff0acb0600000016457869664949", (64, 48)),
        (BOXES + "0000000f6a786c7000000000ff0acb0000000d6a786c708000000106", (64, 48)),  # cut within the size
        (BOXES + "000000016a786c630000000000000014ff0acb06", (64, 48)),
        (BOXES + "000000006a786c63ff0acb06", (64, 48)),
    ],
)
def test_size_of_jpeg_xl_is_in_its_header(file: str, size: tuple[int, int]) -> None:
    assert jxl_size(bytes.fromhex(file)) == size


@pytest.mark.parametrize("file", [BOXES, BOXES + "000000026a786c63ff0acb06", BOXES + "000000006a786c63ff0b"])
def test_a_header_without_a_size_is_damaged(file: str) -> None:
    with pytest.raises(ValueError, match="damaged header"):
        jxl_size(bytes.fromhex(file))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (HEIC, "HEIC, which Pillow reads by a plug-in: pip install pillow-heif"),
        (b"\xff\x0a", "JPEG XL, which Pillow reads by a plug-in: pip install pillow-jxl-plugin"),
        (b"\0\0\0\x10ftypavif\0\0\0\0", "AVIF, which Pillow reads by a plug-in: pip install pillow-avif-plugin"),
    ],
)
def test_without_a_plug_in_the_reason_names_it(file: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FORMATS", ("JPEG", "PNG"))
    with pytest.raises(UnreadableImage) as caught:
        decode_image(file)
    assert str(caught.value) == reason


def test_plug_ins_that_are_installed_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    heif: Any = SimpleNamespace(register_heif_opener=lambda: done.append("registered"))
    for name, module in {"pillow_heif": heif, "pillow_jxl": None, "pillow_avif": SimpleNamespace()}.items():
        monkeypatch.setitem(sys.modules, name, module)  # None stands for one that is not there
    monkeypatch.setattr(features, "check", lambda name: True)
    assert load_plugins() == ("HEIF",) and done == ["registered"]
    monkeypatch.setattr(features, "check", lambda name: False)
    assert load_plugins() == ("HEIF", "AVIF")


class TurnedJxl(ImageFile.ImageFile):
    """A file of JPEG XL as its plug-in gives it: decoded when it is opened, upright; EXIF is what it was."""

    format = "JXL"
    jpeg = False

    def _open(self) -> None:
        if len(self.fp.read()) > 4:
            raise RuntimeError("Generic Error.\n Please build it.")
        self._size, self._mode = (64, 48), "L"
        exif = Image.Exif()
        exif[0x0112] = 6
        self.info["exif"] = exif.tobytes()

    def load(self) -> Any:
        if self._im is None:
            self.im = Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)).im
        return self.im.pixel_access()


def test_jpeg_xl_is_turned_once_and_bounded_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Image.OPEN, "JXL", (TurnedJxl, None))
    monkeypatch.setattr(reading, "FORMATS", (*reading.FORMATS, "JXL"))
    file = bytes.fromhex("ff0acb06")
    assert decode_image(file).shape == (48, 64, 3)
    monkeypatch.setattr(TurnedJxl, "jpeg", True)
    assert decode_image(file).shape == (64, 48, 3)
    with pytest.raises(UnreadableImage, match=r"^a damaged JPEG XL file, or a kind of JPEG XL that is not read$"):
        decode_image(file + b"damage")
    monkeypatch.setattr(TurnedJxl, "_open", lambda self: pytest.fail("was decoded"))
    with pytest.raises(UnreadableImage, match="64 x 48 pixels, of which 3,071 are allowed"):
        decode_image(file, pixel_limit=3071)
