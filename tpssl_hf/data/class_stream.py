"""An endless stream of labeled images in which rare classes come as often as common ones."""

import numpy as np

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.streams import EndlessStream, shuffled


class ClassStream(EndlessStream):
    """An endless stream in which every class has the same number of images, however many there are of it.

    Of K images that follow one another each has another class, in a new order every time. The images of a class come
    as in an :class:`EndlessStream` of their own, so that those of rare classes come back sooner, with new draws.

    Args:
        store: the images.
        indices: (N,) int64, which of them.
        labels: (N,) int64, their classes.
        batch_size: of a process.
        seed: of all orders.
        process_index: of this process.
        num_processes: of how many.
    """

    def __init__(
        self,
        store: ImageCache,
        *,
        indices: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        world = {"process_index": process_index, "num_processes": num_processes}
        super().__init__(store, batch_size=batch_size, seed=seed, indices=indices, **world)
        self._classes = [
            EndlessStream(store, batch_size=1, seed=seed, indices=indices[labels == number])
            for number in np.unique(labels)
        ]

    def drawn(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which images (B,) stand at positions (B,) of the stream, and in which epochs of their classes."""
        rounds, places = np.divmod(positions, len(self._classes))
        numbers = np.arange(len(self._classes))
        orders = {number: shuffled(numbers, self._seed, number) for number in np.unique(rounds).tolist()}
        turns = [orders[number][place] for number, place in zip(rounds.tolist(), places.tolist(), strict=True)]
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        for turn in np.unique(turns).tolist():
            own = np.flatnonzero(np.array(turns) == turn)
            rows[own], epochs[own] = self._classes[turn].drawn(rounds[own])
        return rows, epochs
