"""Small JPEGs of many images, made once, in parts that survive a kill."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from tpssl_hf.data.decode import decode_or_reason
from tpssl_hf.data.image_cache_writer import EncodedImages
from tpssl_hf.data.scan import UnreadableImage
from tpssl_hf.data.sources import Source
from tpssl_hf.files.atomic import replacing_folder

SIDE = 128  # pixels, of the longer side
QUALITY = 80
PART = 500  # images a folder: what a killed run makes again at most; templates/view.js knows it
AT_ONCE = 50  # encoded images in memory


def thumbnail_folder(source: Source, rows: Sequence[int]) -> str:
    """Return the name of the folder for thumbnails of these rows of these images; other ones get another."""
    content = f"{source.fingerprint} {source.times} {SIDE} {PART} {list(rows)}"
    return f"thumbnails-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def make_thumbnails(
    source: Source, rows: Sequence[int], folder: Path, *, num_workers: int, title: str, progress: bool
) -> None:
    """Write the thumbnail of the image ``rows[i]`` to ``folder/PPPPP/III.jpg``, where i is PART · P + I.

    A part that is there is kept. Images that cannot be read get none.

    Args:
        source: of the images.
        rows: of its data set.
        folder: made if it is missing.
        num_workers: threads that decode.
        title: of the bar.
        progress: whether to show it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = [start for start in range(0, len(rows), PART) if not (folder / part_name(start)).is_dir()]
    missing = sum(len(rows[start : start + PART]) for start in starts)
    encoded = EncodedImages(source)
    done = len(rows) - missing
    with (
        ThreadPoolExecutor(num_workers, "tpssl-thumbnails") as pool,
        tqdm(total=len(rows), initial=done, desc=title, unit=" images", disable=not progress or not missing) as bar,
    ):
        for start in starts:
            with replacing_folder(folder / part_name(start)) as temporary:
                temporary.mkdir()
                paths = (temporary / f"{number:03d}.jpg" for number in range(PART))
                values = _read(encoded, rows[start : start + PART])
                for chunk in values:
                    for _ in pool.map(_write, chunk, paths):
                        bar.update()


def part_name(start: int) -> str:
    """Return the folder of the part that begins with thumbnail ``start``."""
    return f"{start // PART:05d}"


def thumbnail_path(folder: Path, number: int) -> Path:
    """Return where thumbnail ``number`` is, or would be if its image could be read."""
    return folder / part_name(number) / f"{number % PART:03d}.jpg"


def _read(encoded: EncodedImages, rows: Sequence[int]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), AT_ONCE):
        yield encoded.read(list(rows[start : start + AT_ONCE]))


def _write(value: Any, path: Path) -> None:
    found = decode_or_reason(value, SIDE, None)
    if isinstance(found, UnreadableImage):
        return
    image = Image.fromarray(found.pixels)
    image.thumbnail((SIDE, SIDE))
    image.save(path, quality=QUALITY)
