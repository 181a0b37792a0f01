"""Batches of images as they go from the cache to augmentation."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """A batch of undistorted images of possibly different size, and what identifies each of them.

    Attributes:
        pixels: (B, H, W, 3) uint8 RGB; smaller images are padded with zeros on the right and at the bottom.
        sizes: (B, 2) int64, height and width of each image inside ``pixels``.
        index: (B,) int64, number of the image in its store; random draws depend on it.
        epoch: (B,) int64, how often the stream had been through the store before; random draws depend on it.
        masks: (B, H, W) uint8 class number of each pixel; 255 where it does not count, in padding, and everywhere in
            an image without a mask. None for data without masks.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    epoch: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ImageBatch":
        """Return the batch on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ImageBatch":
        """Return the batch in page-locked memory, from which copies to a GPU can overlap with its work."""
        return self._each(Tensor.pin_memory)

    def __getitem__(self, rows: slice) -> "ImageBatch":
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ImageBatch":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})
