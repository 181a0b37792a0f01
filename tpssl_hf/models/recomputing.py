"""Activations that are computed again in the backward pass instead of being kept."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.batchnorm import keep_statistics

MakeContext = Callable[[], AbstractContextManager[object]]


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
def backward_pass(method: nn.Module, convolving: MakeContext) -> Iterator[None]:
    """Let what is computed again inside be computed as in its first time, and leave BatchNorm statistics as they are.

    Args:
        method: what is trained.
        convolving: makes what was entered around the forward pass and has to be around convolutions: torch turns
            function modes off while it differentiates.
    """
    if any(getattr(module, "grad_checkpointing", False) for module in method.modules()):
        needless = isinstance(convolving(), nullcontext)  # compiled, or on a GPU
        with keep_statistics(method), nullcontext() if needless else _around_convolutions(method, convolving):
            yield
    else:
        yield


@contextmanager
def _around_convolutions(method: nn.Module, convolving: MakeContext) -> Iterator[None]:
    entered: list[AbstractContextManager[object]] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append(convolving())
        entered[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    hooks = []
    for module in method.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(enter))
            # always: torch ends a second computation by an exception, once it has all that it needs
            hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
