"""A contact sheet: many small images with a caption each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS, SIDE, GAP, CAPTION = 10, 128, 10, 32  # pixels but for the first
PAPER, INK, FAINT = "white", "black", "#666666"


def draw_contact_sheet(path: Path, images: Sequence[np.ndarray], captions: Sequence[tuple[str, str]]) -> None:
    """Write one PNG file with a thumbnail and two lines of text for each image, row by row.

    Args:
        path: file to write.
        images: (H, W, 3) uint8 each, of any size; at least one.
        captions: for each, a line in bold ink (a number, say) and a faint one, cut at its beginning where too long.
    """
    columns = min(COLUMNS, max(1, round((len(images) * 1.6) ** 0.5)))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + CAPTION + GAP) + GAP), PAPER)
    ink, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(11)
    for number, (pixels, (title, name)) in enumerate(zip(images, captions, strict=True)):
        left = GAP + number % columns * (SIDE + GAP)
        top = GAP + number // columns * (SIDE + CAPTION + GAP)
        thumbnail = _fitted(pixels)
        sheet.paste(thumbnail, (left + (SIDE - thumbnail.width) // 2, top + (SIDE - thumbnail.height) // 2))
        ink.text((left, top + SIDE + 1), title, fill=INK, font=large)
        ink.text((left, top + SIDE + 18), _shortened(name, ink, small), fill=FAINT, font=small)
    sheet.save(path)


def _fitted(pixels: np.ndarray) -> Image.Image:
    """Scale an image so that its longer side is that of a thumbnail."""
    height, width = pixels.shape[:2]
    factor = SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _shortened(name: str, ink: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cut a name at its beginning until it is no wider than a thumbnail: its end tells files apart."""
    shown = name
    while len(shown) > 1 and ink.textlength(shown, font=font) > SIDE:
        shown = "…" + shown[2:]
    return shown
