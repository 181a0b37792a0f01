"""Activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.batchnorm import keep_statistics


def recompute_activations(network: Any) -> None:
    """Switch timm's gradient checkpointing on; the backward pass must then run in :func:`backward_pass`.

    Raises:
        InputError: for an architecture that has none.
    """
    try:
        network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:  # timm's ways to say so
        raise InputError(
            "this backbone has no gradient checkpointing in timm; leave gradient_checkpointing off, and lower "
            "batch_size if memory is short."
        ) from error


@contextmanager
def backward_pass(method: nn.Module) -> Iterator[None]:
    """Let what is computed again inside leave the BatchNorm statistics that its first time has moved."""
    if any(getattr(module, "grad_checkpointing", False) for module in method.modules()):
        with keep_statistics(method):
            yield
    else:
        yield
