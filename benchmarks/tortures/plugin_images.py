"""Images that Pillow reads by a plug-in: sound and broken ones of each plug-in that is installed."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tpssl_hf.data.reading import PLUGINS_IN_USE

# A header and nothing else, which says the format.
HEADERS = {
    "HEIF": struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100),
    "AVIF": struct.pack(">I", 24) + b"ftypavif\0\0\0\0mif1avif" + bytes(100),
    "JXL": b"\xff\x0a" + bytes(100),
}


def sound_of_plugins(rgb: np.ndarray, turned: dict[int, np.ndarray], place: Path) -> dict[str, tuple[bytes, Any, int]]:
    """Return files of the plug-ins in use: content, pixels (H, W, 3), and by how much they may be off.

    Args:
        rgb: an image without edges.
        turned: how it is stored for each EXIF orientation.
        place: folder for JPEG files that become JPEG XL.
    """
    from tortures.images import encoded

    found: dict[str, tuple[bytes, Any, int]] = {}
    wide = rgb[..., 0].astype(np.uint16) * 257
    as_rgb = np.repeat(rgb[..., :1], 3, 2)
    line = np.full((1, 100_000, 3), 9, np.uint8)
    if "HEIF" in PLUGINS_IN_USE:
        found["HEIC"] = encoded(rgb, "HEIF", quality=95), rgb, 12
        found["12-bit HEIC"] = encoded(Image.fromarray(wide), "HEIF", quality=-1), as_rgb, 1
        found["HEIC of 6,000 x 6,000"] = encoded(Image.new("RGB", (6000, 6000), (7, 7, 7)), "HEIF"), grays(6000), 2
        for orientation, stored in turned.items():
            found[f"EXIF {orientation}, HEIC"] = (
                encoded(stored, "HEIF", quality=95, exif=exif_of(orientation)),
                rgb,
                12,
            )
    if "JXL" in PLUGINS_IN_USE:
        found["JPEG XL"] = encoded(rgb, "JXL", lossless=True), rgb, 0
        found["16-bit JPEG XL"] = encoded(Image.fromarray(wide), "JXL", lossless=True), as_rgb, 1
        found["JPEG XL, 100,000 x 1"] = encoded(line, "JXL", lossless=True), line, 0
        found["JPEG XL of 9,000 x 9,000"] = (
            encoded(np.full((9000, 9000, 3), 7, np.uint8), "JXL", lossless=True, effort=1),
            grays(9000),
            0,
        )
        found["JPEG XL, EXIF that means nothing"] = (
            encoded(rgb, "JXL", lossless=True, exif=exif_of(6), use_container=True),
            rgb,
            0,
        )
        for orientation, stored in turned.items():
            path = place / f"{orientation}.jpg"
            Image.fromarray(stored).save(path, quality=95, exif=exif_of(orientation), subsampling=0)
            with Image.open(path) as image:
                file = encoded(image, "JXL", lossless_jpeg=True)
            found[f"EXIF {orientation}, JPEG XL that was JPEG"] = file, rgb, 12
            found[f"EXIF {orientation}, JPEG XL that cannot become JPEG again"] = without_box(file, b"jbrd"), rgb, 12
    for orientation, stored in turned.items():
        found[f"EXIF {orientation}, AVIF"] = encoded(stored, "AVIF", quality=95, exif=exif_of(orientation)), rgb, 12
    return found


def unsound_of_plugins(rgb: np.ndarray) -> dict[str, bytes]:
    """Return files that must be quarantined, with a plug-in and without."""
    from tortures.images import encoded

    found = {f"{kind}, a header": file for kind, file in HEADERS.items()}
    for kind in PLUGINS_IN_USE:
        file = encoded(rgb, kind, quality=90)
        found |= {f"{kind}, {share:.0%} of it": file[: int(len(file) * share)] for share in (0.1, 0.6, 0.9)}
    found["JXL bomb"] = b"\xff\x0a" + (3 << 1 | (2**30 - 1) << 3 | 1 << 33).to_bytes(16, "little")
    if "HEIF" in PLUGINS_IN_USE:
        file = encoded(rgb, "HEIF")
        size = file.index(b"ispe") + 8
        found["HEIC bomb"] = file[:size] + struct.pack(">II", 30_000, 30_000) + file[size + 8 :]
    return found


def grays(side: int) -> np.ndarray:
    """Return a dark gray image."""
    return np.full((side, side, 3), 7, np.uint8)


def exif_of(orientation: int) -> bytes:
    """Return EXIF that says an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def without_box(file: bytes, name: bytes) -> bytes:
    """Return a file of boxes, each with its length of 32 bits, without the boxes of one name."""
    kept, at = b"", 0
    while at < len(file):
        length = int.from_bytes(file[at : at + 4], "big") or len(file) - at
        kept += b"" if file[at + 4 : at + 8] == name else file[at : at + length]
        at += length
    return kept
