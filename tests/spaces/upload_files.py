"""Files that visitors of the demo may send: the makings of good ones, and one of every kind that is refused."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import uploads
from PIL import Image

GRAY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
COLOR = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
ORIENTATION = 274


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes, last: bool = False) -> bytes:
    """A small PNG with more chunks, before its pixels or behind them."""
    plain = encode(GRAY)
    at = len(plain) - 12 if last else 33
    return plain[:at] + b"".join(chunks) + plain[at:]


def frames(kind: str) -> bytes:
    return encode(COLOR, kind, save_all=True, append_images=[Image.fromarray(255 - COLOR)])


def exif(size: int, claimed: int) -> bytes:
    """EXIF of so many bytes, with 300 tags that claim to be of so many each."""
    entries = [(ORIENTATION, 3, 1, 6), *((50000 + number, 7, claimed, 8) for number in range(300))]
    written = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + written + bytes(4)).ljust(size, b"\0")


def jpeg_with(*segments: bytes) -> bytes:
    """A small JPEG with segments such as hold its EXIF."""
    plain = encode(COLOR, "JPEG")
    written = b"".join(b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments)
    return plain[:2] + written + plain[2:]


def many_scans() -> bytes:
    """A progressive JPEG with its last scan, of a few bytes, again and again."""
    *before, last = encode(GRAY, "JPEG", progressive=True).split(b"\xff\xda")
    return b"\xff\xda".join([*before, *[last[:-2]] * 101]) + last[-2:]


def many_comments() -> bytes:
    plain = encode(GRAY, "GIF")
    at = plain.index(b"\x2c", 13 + 3 * 2 ** ((plain[10] & 7) + 1))
    return plain[:at] + b"!\xfe\x01a\0" * 1001 + plain[at:]


BOMB = encode(Image.new("1", (12_000, 12_000)))
ZEROS = zlib.compress(bytes(2**23))
REFUSED = {
    "nothing": (b"", uploads.EMPTY),
    "too large": (encode(COLOR) + bytes(uploads.MAX_BYTES), uploads.MANY_BYTES),
    "text": (b"this is no image", uploads.NO_IMAGE),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", uploads.NO_IMAGE),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', uploads.SVG),
    "pdf": (b"%PDF-1.7\n", uploads.PDF),
    "tiff": (encode(COLOR, "TIFF"), uploads.TIFF),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", uploads.OF_PLUGIN.format(title="HEIC")),
    "jpeg xl": (b"\xff\x0a", uploads.OF_PLUGIN.format(title="JPEG XL")),
    "bomb": (BOMB, uploads.MANY_PIXELS),
    "greater bomb": (encode(Image.new("1", (20_000, 20_000))), uploads.MANY_PIXELS),
    "thin": (encode(Image.new("1", (1, 100_000))), uploads.ELONGATED),
    "animated gif": (frames("GIF"), uploads.ANIMATED),
    "animated png": (frames("PNG"), uploads.ANIMATED),
    "animated webp": (frames("WEBP"), uploads.ANIMATED),
    "truncated png": (encode(COLOR)[:-100], uploads.DAMAGED),
    "truncated jpeg": (encode(COLOR, "JPEG")[:-100], uploads.DAMAGED),
    "truncated webp": (encode(COLOR, "WEBP")[:-100], uploads.DAMAGED),
    "text bomb": (with_chunks(chunk(b"zTXt", b"a\0\0" + ZEROS)), uploads.DAMAGED),
    "text bomb behind": (with_chunks(chunk(b"zTXt", b"a\0\0" + ZEROS), last=True), uploads.DAMAGED),
    "profile bomb": (with_chunks(chunk(b"iCCP", b"a\0\0" + ZEROS)), uploads.DAMAGED),
    "profiles": (with_chunks(chunk(b"iCCP", b"a\0\0") * 2), uploads.DAMAGED),
    "exif bomb": (with_chunks(chunk(b"eXIf", exif(2**17, 2**17 - 8)), last=True), uploads.DAMAGED),
    "scans": (many_scans(), uploads.DAMAGED),
    "comments": (many_comments(), uploads.DAMAGED),
}
