"""How large images are shrunk before anything else: in the cache, and by the image processor of a segmenter."""

from PIL import Image


def reduced_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Return the size with shorter side at most ``shorter_side`` and longer at most twice that, never enlarged."""
    scale = min(1.0, shorter_side / min(height, width), 2 * shorter_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image in the height and width ``size``, at most its own."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
