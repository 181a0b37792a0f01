"""When the buffers of a module change, for restoring them after a skipped step."""

from typing import Literal

from torch import nn

BuffersChange = Literal["never", "after_step", "forward"]


def buffers_change(module: nn.Module) -> BuffersChange:
    """Return when the module's own buffers change, those of its children left out.

    A module says so by a class attribute of this name: ``never`` for constants, ``after_step`` for what only moves
    once the optimizer has stepped, as queues do. Everything else may change in each ``forward``.
    """
    when: BuffersChange = getattr(module, "buffers_change", "forward")
    return when
