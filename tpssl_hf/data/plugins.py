"""Formats that Pillow reads by a plug-in: HEIC and JPEG XL, and AVIF where Pillow itself was built without it.

A plug-in is used where it is installed, and named where it is not.
"""

from dataclasses import dataclass
from importlib import import_module

from PIL import features

FTYP_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
}
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEAD = 256  # bytes of a file that are enough for `kind_of`
HEADER = 16  # bytes that are enough for `jxl_size`
RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by number


@dataclass(frozen=True)
class Plugin:
    """A plug-in of Pillow.

    Attributes:
        title: what people call the format.
        package: what to install.
        module: what to import.
    """

    title: str
    package: str
    module: str


PLUGINS = {
    "HEIF": Plugin("HEIC", "pillow-heif", "pillow_heif"),
    "JXL": Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl"),
    "AVIF": Plugin("AVIF", "pillow-avif-plugin", "pillow_avif"),
}


def load_plugins() -> tuple[str, ...]:
    """Let Pillow use the plug-ins that are installed and needed; returns the names it has for their formats."""
    loaded = []
    for kind, plugin in PLUGINS.items():
        if kind == "AVIF" and features.check("avif"):
            continue
        try:
            module = import_module(plugin.module)
        except ImportError:
            continue
        if kind == "HEIF":
            module.register_heif_opener()
        loaded.append(kind)
    return tuple(loaded)


def kind_of(head: bytes) -> str | None:
    """Return Pillow's name for the format of a file if it is one of ``PLUGINS``.

    Args:
        head: the first ``HEAD`` bytes.
    """
    if head.startswith(JXL_STARTS):
        return "JXL"
    if head[4:8] != b"ftyp":
        return None
    box = head[8 : int.from_bytes(head[:4], "big")]
    brands = [box[:4], *(box[at : at + 4] for at in range(8, len(box), 4))]  # the second four bytes are a version
    return next((kind for kind, known in FTYP_BRANDS.items() if set(brands) & set(known)), None)


def jxl_size(content: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG XL file by its header, which its plug-in decodes together with all pixels.

    Raises:
        ValueError: if there is no such header.
    """
    bits = _Bits(_jxl_codestream(content)[2:HEADER])
    small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])

    height = side()
    ratio = bits.take(3)
    return (height * RATIOS[ratio][0] // RATIOS[ratio][1] if ratio else side()), height


def _jxl_codestream(content: bytes) -> bytes:
    """Return the first bytes of what a JPEG XL file has in its boxes, if it has any."""
    if content.startswith(JXL_STARTS[0]):
        return content
    found, at = b"", 0
    while len(found) < HEADER and at + 8 <= len(content):
        length, kind, start = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], at + 8
        if length == 1:
            length, start = int.from_bytes(content[at + 8 : at + 16], "big"), at + 16
        end = at + length if length else len(content)
        if end < start:
            break
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")  # the number of the part
            found += content[start : min(end, start + HEADER)]
        at = end
    if not found.startswith(JXL_STARTS[0]):
        raise ValueError("damaged header")
    return found


class _Bits:
    """Numbers of few bits, the lowest bit first; zeros beyond the end."""

    def __init__(self, content: bytes) -> None:
        self._left = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value, self._left = self._left & ((1 << count) - 1), self._left >> count
        return value
