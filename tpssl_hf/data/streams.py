"""Endless streams of batches that can be entered at any step, for one process or several.

What a batch holds follows from the seed and the number of the step alone. Nothing has to be saved to resume: a stream
is opened again at the step that comes next.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import count, islice
from typing import Any, TypeVar

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node

from tpssl_hf.data.conversion import SIXTEEN_BITS
from tpssl_hf.data.decode import decode_or_reason, describe_location
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import CACHE_SCALE, ImageCache, as_images, stored_side
from tpssl_hf.data.reading import Reduced, UnreadableImage
from tpssl_hf.data.scan import refuse_if_many_are_bad
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

T = TypeVar("T")
PREFETCHED = 2
SEEN_BEFORE_REFUSING = 200


class ImageStream:
    """Endless batches of an image cache: each epoch in a new order, and the same order for the same seed.

    The global batch of a step is a function of the seed and the step. Process ``r`` of ``P`` takes rows
    ``[r * batch_size, (r + 1) * batch_size)`` of it, so that two processes see together what one with twice the batch
    size sees. What does not fill the last global batch of an epoch is left out of that epoch.

    Attributes:
        steps_per_epoch: how many global batches an epoch has.
    """

    def __init__(
        self,
        store: ImageCache,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        indices: np.ndarray | None = None,
    ) -> None:
        self._store = store
        self._seed = seed
        self._indices = np.arange(len(store)) if indices is None else indices
        self._global_batch_size = batch_size * num_processes
        self._own_rows = slice(process_index * batch_size, (process_index + 1) * batch_size)
        self.steps_per_epoch = len(self._indices) // self._global_batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{len(self._indices)} images of {store.source_name!r} are fewer than one batch of "
                f"{self._global_batch_size} ({batch_size} x {num_processes} processes): lower the batch size or add "
                "images."
            )
        self._latest_order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """Return the order (N,) in which an epoch goes through the images."""
        latest = self._latest_order
        if latest is None or latest[0] != epoch:
            latest = epoch, shuffled(self._indices, self._seed, epoch)
            self._latest_order = latest
        return latest[1]

    def batch(self, step: int) -> ImageBatch:
        """Return this process's part of the global batch of ``step``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self._global_batch_size
        return self._store.gather(self.order(epoch)[start : start + self._global_batch_size][self._own_rows], epoch)

    def batches(self, start_step: int) -> Generator[ImageBatch]:
        """Yield the batches from ``start_step`` on, prepared ahead in one thread that ends when this is closed."""
        steps = count(start_step)
        return _prefetched(lambda: self.batch(next(steps)))


class EndlessStream:
    """Endless batches of some images of a cache, of any size: one epoch after the other, none left out.

    A batch may hold the end of one epoch and the beginning of the next, or several epochs where it is larger than the
    number of images: forty labeled images fill batches of 64, each image with new draws every time. Steps,
    seeds and processes are as in :class:`ImageStream`.
    """

    def __init__(
        self,
        store: ImageCache,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        indices: np.ndarray | None = None,
    ) -> None:
        self._store = store
        self._seed = seed
        self._indices = np.arange(len(store)) if indices is None else indices
        if len(self._indices) == 0:
            raise InputError(f"There is no image of {store.source_name!r} to take batches from.")
        self._global_batch_size = batch_size * num_processes
        self._own_rows = np.arange(process_index * batch_size, (process_index + 1) * batch_size)
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> ImageBatch:
        """Return this process's part of the global batch of ``step``."""
        rows, epochs = self.drawn(step * self._global_batch_size + self._own_rows)
        return self._store.gather(rows, epochs)

    def drawn(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which images (B,) stand at positions (B,) of the stream, and in which of their epochs."""
        epochs, places = np.divmod(positions, len(self._indices))
        needed = np.unique(epochs).tolist()
        known = self._orders
        self._orders = {epoch: known[epoch] if epoch in known else self._order(epoch) for epoch in needed}
        rows = [self._orders[epoch][place] for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]
        return np.array(rows, dtype=np.int64), epochs

    def _order(self, epoch: int) -> np.ndarray:
        return shuffled(self._indices, self._seed, epoch)

    def batches(self, start_step: int) -> Generator[ImageBatch]:
        """Yield the batches from ``start_step`` on, prepared ahead in one thread that ends when this is closed."""
        steps = count(start_step)
        return _prefetched(lambda: self.batch(next(steps)))


class WithoutMasks:
    """A stream whose images lose their masks, so that no learner can see those of unlabeled ones."""

    def __init__(self, stream: EndlessStream) -> None:
        self._stream = stream

    def batches(self, start_step: int) -> Generator[ImageBatch]:
        """Yield the batches from ``start_step`` on, without masks."""
        with closing(self._stream.batches(start_step)) as batches:
            for images in batches:
                yield replace(images, masks=None)


def shuffled(indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return ``indices`` in the order of an epoch."""
    key = np.array([seed, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(indices)


class StreamingImages:
    """Batches of a streamed data set without end, in a random order that is the same for the same seed.

    A streamed data set cannot be scanned before training: its size, its labels and its damaged images stay unknown.
    Damaged images are left out and counted, and once 200 were seen, more than 5 % of them stop the run. ``index``
    counts this process's images from the start of the stream, over all epochs, and differs between processes.

    Entering at a later step goes through all batches before it, and decodes them, because which images are left out
    decides where the following ones stand. That is the price of resuming exactly. With parquet files, ``datasets``
    pauses for some seconds at the end of each epoch and when the stream is closed.

    Attributes:
        seen: how many images were read so far, usable or not.
        bad: ``where`` and ``reason`` of those that were left out.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        num_workers: int,
        process_index: int = 0,
        num_processes: int = 1,
        buffer_size: int = 1000,
        cache_scale: float = CACHE_SCALE,
    ) -> None:
        if not isinstance(source.dataset, datasets.IterableDataset):
            raise InputError(f"{source.name!r} is not streamed: turn streaming on.")
        shuffled = source.dataset.select_columns([source.image_column]).shuffle(seed=seed, buffer_size=buffer_size)
        self._dataset = split_dataset_by_node(shuffled, rank=process_index, world_size=num_processes)
        self._source = source
        self._shorter_side = stored_side(image_size, cache_scale)
        self._batch_size = batch_size
        self._process_index = process_index
        self._num_processes = num_processes
        self._num_workers = num_workers
        self.seen = 0
        self.bad: list[dict[str, str]] = []

    def batches(self, start_step: int) -> Generator[ImageBatch]:
        """Yield the batches from ``start_step`` on, prepared ahead in one thread that ends when this is closed."""
        self.seen = 0
        self.bad = []
        numbered = islice(self._batches(), start_step, None)
        return _prefetched(lambda: next(numbered))

    def _batches(self) -> Iterator[ImageBatch]:
        images = self._images()
        for step in count():
            chosen = list(islice(images, self._batch_size))
            sizes = np.array([pixels.shape[:2] for pixels, _ in chosen])
            batch = np.zeros((self._batch_size, *sizes.max(axis=0), 3), dtype=np.uint8)
            for target, (pixels, _) in zip(batch, chosen, strict=True):
                target[: pixels.shape[0], : pixels.shape[1]] = pixels
            own = step * self._batch_size + np.arange(self._batch_size)
            epoch = np.array([number for _, number in chosen])
            yield as_images(batch, sizes, own * self._num_processes + self._process_index, epoch)

    def _images(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the pixels (h, w, 3) of every usable image, and its epoch."""
        encoded = self._encoded()
        with ThreadPoolExecutor(max(1, self._num_workers), "tpssl-decode") as pool:
            while True:
                values, epochs = zip(*islice(encoded, self._batch_size), strict=True)
                decoded = pool.map(self._decode, values)
                for value, epoch, image in zip(values, epochs, decoded, strict=True):
                    if isinstance(image, UnreadableImage):
                        self.bad.append(
                            {"where": describe_location(self._source, self.seen, value), "reason": str(image)}
                        )
                    else:
                        yield image.pixels, epoch
                    self.seen += 1
                if self.seen >= SEEN_BEFORE_REFUSING:
                    refuse_if_many_are_bad(self.bad, self.seen, self._source.name)

    def _decode(self, value: Any) -> Reduced | UnreadableImage:
        """Decode an image, 16-bit gray by the range of its type, for a scan of the actual range is not to be had."""
        image = decode_or_reason(value, self._shorter_side, SIXTEEN_BITS)
        if isinstance(image, Reduced) and image.extent is not None and not image.mode.startswith("I;16"):
            return UnreadableImage(
                f"has gray values of more than 8 bits (Pillow's mode {image.mode}), whose range only a scan tells: "
                "turn streaming off"
            )
        return image

    def _encoded(self) -> Iterator[tuple[Any, int]]:
        """Yield every encoded image of this process, and its epoch."""
        for epoch in count():
            self._dataset.set_epoch(epoch)
            example = None
            for example in self._dataset:
                yield example[self._source.image_column], epoch
            if example is None:
                raise InputError(
                    f"Process {self._process_index} of {self._num_processes} gets no images of "
                    f"{self._source.name!r}: use fewer processes."
                )


def _prefetched(produce: Callable[[], T]) -> Generator[T]:
    """Yield what ``produce`` returns, over and over, called a little ahead in one thread.

    An exception in the thread is raised here. When this generator is closed or forgotten, the thread ends.
    """
    with ThreadPoolExecutor(1, "tpssl-prefetch") as worker:
        pending = deque(worker.submit(produce) for _ in range(PREFETCHED))
        try:
            while True:
                result = pending.popleft().result()
                pending.append(worker.submit(produce))
                yield result
        finally:
            worker.shutdown(cancel_futures=True)
