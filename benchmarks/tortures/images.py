"""Images of every kind and damage: right pixels, or a reason."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from forked_runs import Forks
from PIL import Image

from tortures.counts import Count
from tortures.plugin_images import HEADERS, exif_of, sound_of_plugins, unsound_of_plugins
from tpssl_hf.data.plugins import PLUGINS
from tpssl_hf.data.reading import FORMATS, UnreadableImage, decode_reduced

LARGE = 50_000_000  # pixels and colors of an image that has a process of its own
MOST_SECONDS = 120  # of CPU for one image
MOST_MIB = 1024  # that one image may add to the memory of its process
SEEN = """
import resource, sys
import numpy as np
from tpssl_hf.data.reading import UnreadableImage, decode_reduced
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[4]),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    np.save(sys.argv[2], decode_reduced(sys.argv[1], int(sys.argv[3]) or None).pixels)
    print("pixels")
except UnreadableImage as reason:
    print(f"reason: {reason}")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
Expected = np.ndarray | None  # upright (H, W, 3) uint8, or None where a reason is due
Tolerance = int


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """Return an image (H, W, 3) without edges, which lossy formats keep."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height - 2)], 2
    ).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    """Return the file of an image."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format=kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, color: int = 2, interlaced: int = 0) -> bytes:
    """Return a PNG file of raw ``rows``, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Return an image (H, W, 3) as a PNG of Adam7's seven passes, which Pillow does not write."""
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = pixels[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    return png(pixels.shape[1], pixels.shape[0], rows, interlaced=1)


def tiff(width: int, height: int, samples: int, bits: int, data: bytes, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF file."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric), (277, 3, 1, samples)]
    tags += [(278, 4, 1, height), (279, 4, 1, len(data))]
    count = len(tags) + 2
    after = 8 + 2 + 12 * count + 4
    bits_at, data_at = (after, after + 8) if samples > 1 else (bits, after + 8)
    tags += [(258, 3, samples, bits_at), (273, 4, 1, data_at)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    more = struct.pack("<4H", *([bits] * samples + [0] * (4 - samples))) if samples > 1 else bytes(8)
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + struct.pack("<I", 0) + more + data


def packed_12(values: np.ndarray) -> bytes:
    """Return 12-bit values (H, W) of even width, two in three bytes."""
    first, second = values[:, ::2].astype(np.uint16), values[:, 1::2].astype(np.uint16)
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(parts, 2).astype(np.uint8).tobytes()


def sound(place: Path) -> dict[str, tuple[bytes, Expected, Tolerance]]:
    """Return files that hold an image: content, its pixels, and how far off they may be; ``place`` is for files."""
    rgb, gray = smooth(), smooth()[..., 0]
    turned = [Image.fromarray(rgb).rotate(90)]
    as_rgb = np.repeat(gray[..., None], 3, 2)
    image = Image.fromarray(rgb)
    found: dict[str, tuple[bytes, Expected, Tolerance]] = {
        "PNG": (encoded(rgb, "PNG"), rgb, 0),
        "interlaced PNG": (interlaced_png(rgb), rgb, 0),
        "JPEG": (encoded(rgb, "JPEG", quality=95), rgb, 8),
        "progressive JPEG": (encoded(rgb, "JPEG", quality=95, progressive=True), rgb, 8),
        "CMYK JPEG without profile": (encoded(image.convert("CMYK"), "JPEG", quality=95), rgb, 12),
        "CMYK TIFF": (encoded(image.convert("CMYK"), "TIFF"), rgb, 2),
        "WebP": (encoded(rgb, "WEBP", lossless=True), rgb, 0),
        "animated WebP": (
            encoded(rgb, "WEBP", save_all=True, append_images=turned, lossless=True),
            rgb,
            0,
        ),
        "animated PNG": (encoded(rgb, "PNG", save_all=True, append_images=turned), rgb, 0),
        "animated GIF": (encoded(as_rgb, "GIF", save_all=True, append_images=turned), as_rgb, 8),
        "AVIF": (encoded(rgb, "AVIF", quality=95), rgb, 12),
        "JPEG 2000": (encoded(rgb, "JPEG2000"), rgb, 0),
        "BMP": (encoded(rgb, "BMP"), rgb, 0),
        "PPM": (encoded(rgb, "PPM"), rgb, 0),
        "1-bit PNG": (encoded(Image.fromarray(gray > 127), "PNG"), np.where(as_rgb > 127, 255, 0), 0),
        "1-bit TIFF": (
            encoded(Image.fromarray(gray > 127), "TIFF", compression="group4"),
            np.where(as_rgb > 127, 255, 0),
            0,
        ),
        "16-bit PNG": (encoded(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"), as_rgb, 1),
        "16-bit TIFF": (encoded(Image.fromarray(gray.astype(np.uint16) * 257), "TIFF"), as_rgb, 1),
        "12-bit TIFF": (tiff(64, 48, 1, 12, packed_12(gray.astype(np.uint32) * 4095 // 255)), as_rgb, 1),
        "float TIFF": (encoded(Image.fromarray(gray.astype(np.float32) / 255), "TIFF"), as_rgb, 1),
        "16-bit RGB PNG": (png(64, 48, rows_16(rgb), depth=16), rgb, 1),
        "16-bit RGB TIFF": (tiff(64, 48, 3, 16, (rgb.astype("<u2") * 257).tobytes(), 2), rgb, 1),
        "palette": (encoded(Image.fromarray(as_rgb).quantize(256), "PNG"), as_rgb, 4),
        "transparent": (encoded(half_clear(rgb), "PNG"), over_white(rgb), 0),
        "gray and alpha": (encoded(half_clear(as_rgb).convert("LA"), "PNG"), over_white(as_rgb), 0),
        "one pixel": (encoded(rgb[:1, :1], "PNG"), rgb[:1, :1], 0),
        "100,000 x 1": (encoded(np.zeros((1, 100_000, 3), np.uint8) + 9, "PNG"), np.zeros((1, 100_000, 3)) + 9, 0),
        "1 x 100,000": (encoded(np.zeros((100_000, 1, 3), np.uint8) + 9, "PNG"), np.zeros((100_000, 1, 3)) + 9, 0),
        "9,000 x 9,000": (png(9000, 9000, (b"\0" + b"\7" * 27_000) * 9000), np.full((9000, 9000, 3), 7, np.uint8), 0),
    }
    turned_by = orientations(rgb)
    for orientation, stored in turned_by.items():
        for kind in ("PNG", "WEBP"):
            options = {"lossless": True} if kind == "WEBP" else {}
            file = encoded(stored, kind, exif=exif_of(orientation), **options)
            found[f"EXIF {orientation}, {kind}"] = (file, rgb, 0)
    return found | sound_of_plugins(rgb, turned_by, place)


def orientations(rgb: np.ndarray) -> dict[int, np.ndarray]:
    """Return how an image is stored for each EXIF orientation."""
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    return {orientation: np.ascontiguousarray(turn(rgb)) for orientation, turn in undo.items()}


def rows_16(rgb: np.ndarray) -> bytes:
    """Return the rows of a PNG of 16 bits a color."""
    wide = rgb.astype(">u2") * 257
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)


def half_clear(rgb: np.ndarray) -> Image.Image:
    """Return an image whose right half is transparent."""
    alpha = np.full(rgb.shape[:2], 255, np.uint8)
    alpha[:, rgb.shape[1] // 2 :] = 0
    return Image.fromarray(np.dstack([rgb, alpha]))


def over_white(rgb: np.ndarray) -> np.ndarray:
    """Return what is seen of it on white."""
    seen = rgb.copy()
    seen[:, rgb.shape[1] // 2 :] = 255
    return seen


def unsound() -> dict[str, bytes]:
    """Return files that must be quarantined."""
    rgb = smooth()
    kinds = {
        "PNG": {},
        "JPEG": {},
        "WEBP": {},
        "GIF": {},
        "TIFF": {"compression": "tiff_lzw"},
        "AVIF": {},
        "JPEG2000": {},
    }
    found = {
        "empty": b"",
        "text": b"no image at all",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for kind, options in kinds.items():
        file = encoded(rgb, kind, **options)
        found |= {f"{kind}, {share:.0%} of it": file[: int(len(file) * share)] for share in (0.1, 0.6, 0.9)}
    crc = bytearray(encoded(rgb, "PNG"))
    crc[40] ^= 1
    found |= {"wrong checksum": bytes(crc)}
    found |= {f"PNG bomb of {side:,}": png(side, side, bytes(100)) for side in (12_000, 30_000, 2**31 - 1)}
    found |= {"PNG bomb that is full": png(20_000, 20_000, bytes(20_001 * 20_000), color=0)}
    found |= {"TIFF bomb": tiff(60_000, 60_000, 1, 8, b"x")}
    gif = bytearray(encoded(rgb, "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    found |= {"GIF bomb": bytes(gif)}
    found |= {"SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    found |= {"NaN TIFF": encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")}
    return found | unsound_of_plugins(rgb)


def places(folder: Path) -> dict[str, Path]:
    """Return paths without a readable file."""
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.png")
    return {
        "a folder": folder / "folder.png",
        "a dangling link": folder / "dangling.png",
        "a pipe": folder / "pipe.png",
    }


def look(path: Path, shorter_side: int) -> tuple[str, np.ndarray | None]:
    """Decode in a process of its own; returns what went wrong or the reason, and the pixels."""
    out = path.with_name(f"{path.name}.npy")
    command = [sys.executable, "-W", "ignore", "-c", SEEN, str(path), str(out), str(shorter_side), str(MOST_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10 * MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"broken: took more than {10 * MOST_SECONDS} s", None
    if done.returncode:
        return f"broken: ended with {done.returncode}: {done.stderr.strip()[-200:]}", None
    said, mebibytes = done.stdout.strip().rsplit("\n", 1)
    if int(mebibytes) > MOST_MIB:
        return f"broken: took {mebibytes} MiB", None
    return said, np.load(out) if out.exists() else None


def zoo(forks: Forks, place: Path, limit: int | None) -> list[Count]:
    """Decode every kind of image: the small sound ones here, the others each in a process of its own."""
    right, quarantined = Count("sound images", "their pixels"), Count("broken images", "quarantined with a reason")
    for number, (name, (content, expected, tolerance)) in enumerate(list(sound(place).items())[:limit]):
        assert expected is not None
        path = place / f"{number}.sound"
        path.write_bytes(content)
        if expected.size > LARGE:
            said, pixels = look(path, 0)
        else:
            said, pixels = look_here(path)
        right.add(name, said if pixels is None else unlike(pixels, expected, tolerance))
        path.unlink()
    paths = places(place)
    for number, (name, content) in enumerate(list(unsound().items())[:limit]):
        paths[name] = place / f"{number}.png"
        paths[name].write_bytes(content)
    named = {f"{kind}, a header": PLUGINS[kind].package for kind in HEADERS if kind not in FORMATS}
    for name, path in paths.items():
        said, _ = look(path, 0)
        good = said.startswith("reason: ") and "\n" not in said and named.get(name, "") in said
        quarantined.add(name, None if good else said)
    return [right, quarantined]


def look_here(path: Path) -> tuple[str, np.ndarray | None]:
    """Decode in this process; returns the reason, or the pixels."""
    try:
        return "pixels", decode_reduced(path, None).pixels
    except UnreadableImage as reason:
        return f"refused: {reason}", None


def unlike(pixels: np.ndarray, expected: np.ndarray, tolerance: int) -> str | None:
    """Say how pixels differ from those expected by more than they may."""
    if pixels.shape != expected.shape:
        return f"{pixels.shape} pixels"
    off = int(np.abs(pixels.astype(np.int16) - expected.astype(np.int16)).max())
    return None if off <= tolerance else f"off by {off}"
