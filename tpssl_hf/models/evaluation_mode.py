"""Looking at a network while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tpssl_hf.process import more_threads


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put ``network`` into evaluation mode while inside, then each of its layers back into the mode it was in.

    ``network.train()`` afterwards would be wrong: layers with frozen statistics stay in evaluation mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def every_core() -> Iterator[None]:
    """Compute with one thread per core while inside, where training leaves cores idle.

    It does so because bfloat16's weight gradient can collapse with several threads, see
    :func:`tpssl_hf.process.prepare_process`; a network that is only looked at has no such gradient.
    """
    threads, more = torch.get_num_threads(), more_threads()
    if more is None or more <= threads:
        yield
        return
    torch.set_num_threads(more)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
