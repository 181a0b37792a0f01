"""The loop for callers that give functions to call, until all of them take its steps themselves."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from tpssl_hf.methods.base import Batch

if TYPE_CHECKING:
    from tpssl_hf.training.loop import LoopSettings, Step


def train(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    batches: Iterator[Batch],
    settings: "LoopSettings",
    *,
    start_step: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    """Take :func:`tpssl_hf.training.loop.training_steps`; returns the completed steps."""
    from tpssl_hf.training.loop import training_steps  # which hands these functions on

    steps = training_steps(accelerator, method, optimizer, learning_rate, batches, settings, start_step=start_step)
    return _called_back(accelerator, steps, start_step, log, save, stop)


def train_behind_bar(
    accelerator: Accelerator,
    method: nn.Module,
    optimizer: Optimizer,
    learning_rate: Callable[[int], float],
    batches: Iterator[Batch],
    settings: "LoopSettings",
    *,
    title: str,
    shown: bool,
    start_step: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    """Prepare ``method`` and do what :func:`train` does, with a bar that counts images."""
    from tpssl_hf.training.loop import training_steps, with_progress_bar

    prepared = accelerator.prepare(method)
    steps = training_steps(accelerator, prepared, optimizer, learning_rate, batches, settings, start_step=start_step)
    steps = with_progress_bar(steps, settings, title=title, shown=shown, start_step=start_step)
    return _called_back(accelerator, steps, start_step, log, save, stop)


def _called_back(
    accelerator: Accelerator,
    steps: "Iterator[Step]",
    done: int,
    log: Callable[[int, dict[str, float]], None],
    save: Callable[[int], None],
    stop: Callable[[], bool],
) -> int:
    from tpssl_hf.training.loop import agreed

    for step in steps:
        done = step.done
        if step.losses is not None:
            log(done, step.losses)
        stopping = step.may_stop and agreed(accelerator, stop())
        if stopping or step.save_due:
            save(done)
        if stopping:
            break
    return done
