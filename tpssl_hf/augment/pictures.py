"""The one form in which pictures travel from storage to augmentation."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """A batch of undistorted pictures of possibly different size, and what identifies each of them.

    Attributes:
        pixels: (B, H, W, 3) uint8 RGB; smaller pictures are padded with zeros on the right and at the bottom.
        sizes: (B, 2) int64, height and width of each picture inside ``pixels``.
        index: (B,) int64, number of the picture in its store; random draws depend on it.
        epoch: (B,) int64, how often the stream had been through the store before; random draws depend on it.
    """

    pixels: Tensor
    sizes: Tensor
    index: Tensor
    epoch: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Pictures":
        """Return the batch on ``device``."""
        return Pictures(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> "Pictures":
        """Return the batch in page-locked memory, from which copies to a GPU can overlap with its work."""
        return Pictures(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def __getitem__(self, rows: slice) -> "Pictures":
        return Pictures(*(getattr(self, f.name)[rows] for f in fields(self)))
