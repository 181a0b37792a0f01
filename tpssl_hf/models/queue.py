"""First in, first out memory of keys, and gathering over processes."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as untyped_all_gather

from tpssl_hf.errors import InputError

all_gather: Callable[[Tensor], tuple[Tensor, ...]] = untyped_all_gather  # one that gradients flow through


class KeyQueue(nn.Module):
    """The last ``size`` keys of all processes, unit rows, in persistent buffers (He et al., 2020, §3.2).

    Every process holds the same queue: keys are gathered before they are stored. It starts as random unit vectors
    drawn with a fixed seed, so that the queue is the same everywhere and in every run.

    Args:
        size: keys kept.
        features: width of a key.
    """

    buffers_change = "after_step"

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        start = torch.randn(size, features, generator=torch.Generator().manual_seed(0))
        self.keys: Tensor
        self.position: Tensor
        self.register_buffer("keys", F.normalize(start, dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` (B, D) of every process; one that is not finite leaves its place."""
        keys = gather_rows(F.normalize(keys.float(), dim=1), with_gradient=False)
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        finite = torch.isfinite(keys).all(dim=1, keepdim=True)
        self.keys[places] = torch.where(finite, keys, self.keys[places])
        self.position.copy_((self.position + len(keys)) % len(self.keys))


def check_queue(size: int, batch_size: int) -> None:
    """Refuse a queue that the images of one step do not divide.

    Raises:
        InputError: naming sizes that fit.
    """
    if size < batch_size or size % batch_size:
        fitting = max(1, round(size / batch_size)) * batch_size
        raise InputError(
            f"queue_size {size} is not a multiple of batch_size {batch_size}, so keys of one step would be split; "
            f"try --queue_size {fitting}."
        )


def gather_rows(rows: Tensor, *, with_gradient: bool) -> Tensor:
    """Concatenate (B, D) rows of all processes in the order of their ranks; just ``rows`` where there is only one."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    if with_gradient:
        return torch.cat(all_gather(rows.contiguous()))
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def own_rows(count: int) -> slice:
    """Return which rows of :func:`gather_rows` are this process's, given how many it put in."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return slice(rank * count, (rank + 1) * count)
