"""Random numbers that depend on the sample and on nothing else.

A stream of random numbers makes what a sample looks like depend on whatever was drawn before it: on the batch it is
in, the number of processes, the step at which a run was resumed. Hashing counters has no such past. Only integer
operations decide the bits, so that every device gives the same ones.
"""

import torch
from torch import Tensor

# The weyl increment and the finaliser of splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014, with the constants of David Stafford's variant 13; written as signed 64-bit integers.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND_FACTOR = 0x94D049BB133111EB - (1 << 64)
_MANTISSA_BITS = 24


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift int64 ``values`` to the right as if they had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(values: Tensor) -> Tensor:
    """Map int64 ``values`` one to one to values whose bits all depend on all bits of the input."""
    values = (values ^ _shift_right(values, 30)) * _FIRST_FACTOR
    values = (values ^ _shift_right(values, 27)) * _SECOND_FACTOR
    return values ^ _shift_right(values, 31)


def uniform(seed: int, images_index: Tensor, images_epoch: Tensor, view: int, count: int) -> Tensor:
    """Draw ``count`` numbers per image, a pure function of seed, epoch, index, view and position.

    Args:
        seed: any integer; only its lowest 64 bits count.
        images_index: (B,) int64, number of each image in its store.
        images_epoch: (B,) int64, how often the stream had been through the store before.
        view: which view of the image the numbers are for.
        count: how many numbers; the first ones are the same whatever the count.

    Returns:
        (B, count) float32, uniform in [0, 1), multiples of 2**-24.
    """
    signed_seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)
    state = _scramble(torch.full_like(images_index, signed_seed) + _INCREMENT)
    for counter in (images_epoch, images_index, view):
        state = _scramble((state ^ counter) + _INCREMENT)
    positions = torch.arange(1, count + 1, device=state.device)
    bits = _shift_right(_scramble(state[:, None] + positions * _INCREMENT), 64 - _MANTISSA_BITS)
    return bits.to(torch.float32) * 2.0**-_MANTISSA_BITS
