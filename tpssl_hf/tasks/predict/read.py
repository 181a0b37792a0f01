"""Read, decode and prepare images in threads ahead of the device, in bounded memory."""

import sys
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Condition
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch import Tensor

from tpssl_hf.data.image_cache_folder import choose_rows
from tpssl_hf.data.image_cache_writer import EncodedImages
from tpssl_hf.data.scan import UnreadableImage, decode_image
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError
from tpssl_hf.tasks.predict.config import EmbedConfig

CHUNK = 32  # encoded images read together
NAME_CHUNK = 10_000
BYTES_AHEAD = 512 * 2**20  # of decoded images waiting for the device


@dataclass(frozen=True)
class PreparedImage:
    """An image ready for the network, or the reason why there is none.

    Attributes:
        row: number in its data set.
        file: its name, see :func:`image_names`.
        inputs: (3, h, w) float32, normalized; None for an unreadable image.
        size: height and width of the image itself.
        pixels: (H, W, 3) uint8, where they were asked for.
        reason: why it cannot be read.
    """

    row: int
    file: str
    inputs: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    reason: str | None = None

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        own = 0 if self.inputs is None else self.inputs.nbytes
        return own + (0 if self.pixels is None else self.pixels.nbytes)


class ImageReader:
    """The images of a data set by row.

    Attributes:
        source: the data set.
        rows: (N,) int64, the rows to use, ascending.
        names: name of every image of the data set, by row.
    """

    def __init__(self, config: EmbedConfig) -> None:
        """Find the images.

        Raises:
            InputError: as :func:`tpssl_hf.data.sources.load_source` does, for no images, and for a limit below 1.
        """
        if not config.dataset:
            raise InputError("dataset is missing; give a folder of images, a Hub id, or digits.")
        self.source = load_source(
            config.dataset,
            split=config.split,
            dataset_config=config.dataset_config,
            image_column=config.image_column,
        )
        self.rows = choose_rows(len(self.source.dataset), config.limit_images, self.source.name)
        self.names = image_names(self.source)
        self._workers = config.num_workers

    def read(
        self,
        rows: np.ndarray,
        prepare: Callable[[np.ndarray], Tensor],
        *,
        ahead: int,
        keep_pixels: bool = False,
    ) -> Generator[PreparedImage, None, None]:
        """Yield the images of ``rows`` in their order, decoded by threads a little ahead.

        Args:
            rows: (M,) int64.
            prepare: pixels (H, W, 3) uint8 to the network's input.
            ahead: images prepared ahead at most; fewer where they are large.
            keep_pixels: whether the decoded pixels are needed as well.
        """
        encoded, budget = EncodedImages(self.source), _Budget(BYTES_AHEAD)
        pending: deque[Future[PreparedImage]] = deque()

        def work(position: int, row: int, value: Any) -> PreparedImage:
            budget.wait(position)
            image = _prepared(row, self.names[row].as_py(), value, prepare, keep_pixels)
            budget.add(image.bytes)
            return image

        def oldest() -> PreparedImage:
            image = pending.popleft().result()
            budget.take(image.bytes)
            return image

        with ThreadPoolExecutor(self._workers, "tpssl-decode") as pool:
            try:
                for start in range(0, len(rows), CHUNK):
                    chunk = rows[start : start + CHUNK].tolist()
                    for position, (row, value) in enumerate(zip(chunk, encoded.read(chunk), strict=True), start):
                        pending.append(pool.submit(work, position, row, value))
                        if len(pending) > max(ahead, self._workers):
                            yield oldest()
                while pending:
                    yield oldest()
            finally:
                budget.end()
                pool.shutdown(wait=False, cancel_futures=True)


class _Budget:
    """Bytes of decoded images that wait to be consumed; whoever decodes the next one to be consumed never waits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._consumed = 0
        self._changed = Condition()

    def wait(self, position: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._limit or position <= self._consumed)

    def add(self, size: int) -> None:
        with self._changed:
            self._held += size

    def take(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._consumed += 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._limit = sys.maxsize
            self._changed.notify_all()


def _prepared(
    row: int, name: str, value: Any, prepare: Callable[[np.ndarray], Tensor], keep_pixels: bool
) -> PreparedImage:
    try:
        pixels = decode_image(value)
        inputs = prepare(pixels)
    except UnreadableImage as reason:
        return PreparedImage(row, name, reason=str(reason))
    height, width = pixels.shape[:2]
    return PreparedImage(row, name, inputs, (height, width), pixels if keep_pixels else None)


def image_names(source: Source) -> pa.ChunkedArray:
    """Return the name of every image: its path below the data set's folder, its name in the table, or its row."""
    assert isinstance(source.dataset, datasets.Dataset)
    table = source.dataset.select_columns([source.image_column]).with_format("arrow")
    chunks = []
    for start in range(0, len(table), NAME_CHUNK):
        column = table[start : start + NAME_CHUNK].column(0).combine_chunks()
        paths = enumerate(column.field("path").to_pylist(), start)
        chunks.append(pa.array([_name(path, row, source.folder) for row, path in paths], type=pa.string()))
    return pa.chunked_array(chunks, type=pa.string())


def _name(path: str | None, row: int, folder: Path | None) -> str:
    if not path:
        return str(row)
    if folder is not None and Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    # where somebody else's machine kept it is of no use, and may be private
    return PurePosixPath(path.replace("\\", "/")).name if Path(path).is_absolute() else path
