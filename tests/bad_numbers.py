"""NaN and infinities put into small trainings at many places, and what must have become of the training afterwards."""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim import Optimizer

from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.batchnorm import batchnorm_layers
from tpssl_hf.models.segmenter import build_segmenter
from tpssl_hf.training.checkpoint import load_latest, pack_optimizer
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.loop import LoopSettings, training_steps
from tpssl_hf.training.nonfinite_guard import GO_BACK, NonFiniteGuard
from tpssl_hf.training.optim import build_optimizer
from tpssl_hf.training.run_dir import RunDir

STEPS, IMAGES, CLASSES, SIDE = 7, 4, 3, 16
METHODS, OPTIMIZERS = ("byol", "moco", "fixmatch", "cutmix"), ("sgd", "adamw", "lars")
RATES = {"sgd": 0.01, "adamw": 0.001, "lars": 1.0}
SMALL: dict[str, dict[str, Any]] = {
    "byol": {"hidden_features": 16, "projection_features": 8},
    "moco": {"queue_size": 32, "projection_features": 8},
    "fixmatch": {},
    "cutmix": {},
}
# What is bad in one step only, so that the step must be skipped.
PASSING = ("batch", "augmentation", "first half", "last half", "loss", "gradient", "statistics")
# What stays bad, so that the training must end and its checkpoints must be good.
LASTING = ("kept statistics", "teacher", "queue", "optimizer state", "weights", "learning rate")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Where in which training a number is not finite.

    Attributes:
        place: one of PASSING or LASTING.
        method: one of METHODS.
        optimizer: one of OPTIMIZERS.
        value: NaN or an infinity.
        step: in which step, from 0.
        parts: batches of a step.
        save_every: steps between two checkpoints.
        free: whether the host may read the device in each step, as on a CPU, or only where a log line is due.
        rank: of the process in which it happens.
    """

    place: str
    method: str = "byol"
    optimizer: str = "sgd"
    value: float = float("nan")
    step: int = 1
    parts: int = 1
    save_every: int = 1
    free: bool = True
    rank: int = 0


def all_cases() -> list[Case]:
    """Return every place in every training at steps 0, 1, 2 and 4: each in all four methods, in turn."""
    values = (float("nan"), float("inf"))
    kept = {place: ((1, 1, True), (2, 1, True), (1, 100, False)) for place in LASTING}
    kept |= {place: ((1, 1, True), (2, 1, True), (2, 1, False)) for place in PASSING}
    cases, methods = [], itertools.cycle(METHODS)
    for place, how in kept.items():
        for optimizer, value, step, (parts, save, free) in itertools.product(OPTIMIZERS, values, (0, 1, 2, 4), how):
            if parts == 2 or not place.endswith("half"):
                method = "moco" if place == "queue" else next(methods)
                cases.append(Case(place, method, optimizer, value, step, parts, save, free))
    return cases


class Training:
    """A training on random images, of a few milliseconds a step."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        shared = DistributedDataParallelKwargs(broadcast_buffers=False)  # as the package has it
        self.accelerator = Accelerator(cpu=True, kwargs_handlers=[shared])
        self.here = self.accelerator.process_index == case.rank
        self.method = build(case.method)
        self.optimizer: Optimizer = build_optimizer(case.optimizer, self.method, weight_decay=0.01, momentum=0.9)
        self.states: list[State] = []

    def run(self, run: RunDir | None, *, spoil: bool) -> None:
        """Go on from the newest checkpoint to the end."""
        case = self.case
        checkpoints = CheckpointManager(
            self.accelerator, run, self.folder / "checkpoints", self.method, self.optimizer, {}, keep=2
        )
        found = checkpoints.restore()
        start = found.step if found else 0
        if spoil:
            self.spoil_calls()
            self.spoil_state(start)
        self.states = [self.state()]
        settings = LoopSettings(
            STEPS, IMAGES * case.parts, case.parts, log_every=STEPS, save_every=case.save_every, seed=1
        )
        for step in training_steps(
            self.accelerator,
            self.accelerator.prepare(self.method),
            self.optimizer,
            self.rate if spoil else lambda step: RATES[case.optimizer],
            self.batches(start, spoil=spoil),
            settings,
            start_step=start,
        ):
            if step.save_due:
                checkpoints.save(step.done, {})
            self.states.append(self.state())
            if spoil:
                self.spoil_state(step.done)

    def state(self) -> State:
        """Return copies of all there is; of an optimizer that has not stepped, nothing."""
        named = {
            **self.method.state_dict(),
            **{f"optimizer {k}": t for k, t in pack_optimizer(self.optimizer)[0].items()},
        }
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    def rate(self, step: int) -> float:
        """Return the learning rate."""
        return (
            self.case.value
            if (self.case.place, self.case.step) == ("learning rate", step)
            else RATES[self.case.optimizer]
        )

    def batches(self, start: int, *, spoil: bool) -> Iterator[Any]:
        """Yield batches from step ``start`` on."""
        case = self.case
        for number in itertools.count(start * case.parts):
            batch, step, part = (
                batch_of(case.method, 2 * number + self.accelerator.process_index),
                number // case.parts,
                number % case.parts,
            )
            spoil = spoil and self.here
            self.armed = spoil and step == case.step and part == 0
            if spoil and step == case.step and part == (case.parts - 1 if case.place == "last half" else 0):
                self.spoil_batch(batch)
            yield batch

    def spoil_batch(self, batch: Any) -> None:
        """Make an image of a batch bad, a pixel of one of its views, or statistics while the batch is looked at."""
        views = [view for stream in batch.values() for view in stream.values() if view.ndim == 4]
        if self.case.place in ("batch", "first half", "last half"):
            for view in views:
                view[0] = self.case.value
        elif self.case.place == "augmentation":
            views[-1][0, 0, 3, 3] = self.case.value
        elif self.case.place == "statistics":
            self.running_mean()[0] = self.case.value

    def running_mean(self) -> Tensor:
        """Return the statistics of the first BatchNorm."""
        return next(layer.running_mean for layer in batchnorm_layers(self.method) if layer.running_mean is not None)

    def spoil_calls(self) -> None:
        """Let losses and gradients become bad while ``armed``, and the optimizer's state after its step."""
        self.armed, case = False, self.case
        forward, step, stepped = self.method.forward, self.optimizer.step, itertools.count()

        def bad_loss(*arguments: Any) -> Any:
            losses = forward(*arguments)
            return {**losses, "loss": losses["loss"] + case.value} if self.armed else losses

        def bad_gradient(parameter: Tensor) -> None:
            if self.armed and parameter.grad is not None:
                parameter.grad.view(-1)[0] = case.value

        def bad_state(*arguments: Any) -> None:
            step(*arguments)
            if next(stepped) == case.step:
                states = self.optimizer.state[self.optimizer.param_groups[0]["params"][0]]
                next(value for value in states.values() if value.ndim > 0).view(-1)[0] = case.value

        if case.place == "loss":
            self.method.forward = bad_loss  # type: ignore[method-assign]
        elif case.place == "gradient":
            self.trained().register_post_accumulate_grad_hook(bad_gradient)
        elif case.place == "optimizer state" and self.here:
            self.optimizer.step = bad_state  # type: ignore[method-assign,assignment]

    def trained(self) -> Tensor:
        """Return the first weight."""
        return next(p for p in self.method.parameters() if p.requires_grad)

    def spoil_state(self, done: int) -> None:
        """Make what is kept bad, between two steps."""
        if done != self.case.step or not self.here:
            return
        with torch.no_grad():
            if self.case.place == "kept statistics":
                self.running_mean()[0] = self.case.value
            elif self.case.place == "weights":
                self.trained().view(-1)[0] = self.case.value
            elif self.case.place == "teacher":
                next(p for p in self.method.parameters() if not p.requires_grad).view(-1)[0] = self.case.value
            elif self.case.place == "queue":
                self.method.get_buffer("inner.queue.keys")[0, 0] = self.case.value


@cache
def new_method(name: str) -> Method:
    torch.manual_seed(1)
    if name in SEGMENT:
        classes = tuple(f"class {number}" for number in range(CLASSES))
        segmenter = build_segmenter(
            "test_resnet", init="random", class_names=classes, decoder_width=16, low_level_width=8
        )[0]
        segmented: Method = SEGMENT[name].build(segmenter, SEGMENT[name].config(), 100)
        return segmented
    network: nn.Module = timm.create_model(
        "test_resnet", pretrained=False, num_classes=CLASSES if name in CLASSIFY else 0
    )
    if name in CLASSIFY:
        learner: Method = CLASSIFY[name].build(network, CLASSIFY[name].config(), 100)
        return learner
    return Anchor(PRETRAIN[name].build(network, replace(PRETRAIN[name].config(), **SMALL[name])), 0.01)


def build(name: str) -> Method:
    """Return a method as it starts."""
    return copy.deepcopy(new_method(name))


def batch_of(name: str, number: int) -> dict[str, dict[str, Tensor]]:
    """Return a batch of random images."""
    generator = torch.Generator().manual_seed(number)
    views = [torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator) for _ in range(4)]
    if name in CLASSIFY:
        labels, index = torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES)
        return {
            "labeled": {"weak": views[0], "labels": labels},
            "unlabeled": {"weak": views[1], "strong": views[2], "index": index},
        }
    if name in SEGMENT:
        masks = torch.randint(0, CLASSES, (IMAGES, SIDE, SIDE), generator=generator)
        return {
            "labeled": {"images": views[0], "masks": masks},
            "unlabeled": {"images": views[1], "valid": torch.ones(IMAGES, SIDE, SIDE, dtype=torch.bool)},
        }
    return {"images": {"view1": views[0], "view2": views[1]}}


@cache
def whole(method: str, optimizer: str, parts: int, place: Path) -> State:
    """Return the last state of a training to which nothing happened."""
    training = Training(
        Case("none", method, optimizer, parts=parts, save_every=100), place / f"{method}-{optimizer}-{parts}"
    )
    with RunDir(training.folder, {}) as run:
        training.run(run, spoil=False)
    return training.states[-1]


def trouble_of(case: Case, folder: Path, place: Path, patch: Callable[[Any, str, Any], None]) -> str | None:
    """Train with bad numbers; returns what is wrong afterwards.

    Args:
        case: which.
        folder: where this training keeps its checkpoints.
        place: where those trainings are kept to which nothing happens.
        patch: sets an attribute for the time being.
    """
    patch(NonFiniteGuard, "reading_is_free", case.free)
    training = Training(case, folder)
    with RunDir(folder, {}) as run:
        ended = ended_by(training, run)
    if case.place in PASSING:
        return ended or skipped(training.states, case.step)
    expected = "the learning rate of step" if case.place == "learning rate" else GO_BACK
    if expected not in ended or "\n" in ended:
        return f"ended by {ended!r}"
    found = load_latest(folder / "checkpoints")
    good = case.step if case.save_every == 1 else 0
    if (found.step if found else 0) != good:
        return f"checkpoint of step {found and found.step}, {good} steps were good; {ended}"
    if found and (bad := different(found.tensors["method"], training.states[good])):
        return f"checkpoint: {bad}"
    again = Training(case, folder)
    with RunDir(folder, {}) as run:
        again.run(run, spoil=False)
    return different(again.states[-1], whole(case.method, case.optimizer, case.parts, place))


def ended_by(training: Training, run: RunDir | None) -> str:
    """Train with bad numbers; returns the sentence it ended by, if it did before its last step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of steps that are skipped
        try:
            training.run(run, spoil=True)
        except InputError as error:
            return str(error)
    return ""


def skipped(states: list[State], step: int) -> str | None:
    """Say whether step number ``step`` left a trace, or the training did not go on after it."""
    before, after, last = states[step], states[step + 1], states[-1]
    if bad := different(after, before):
        return bad
    if bad := next((name for name, tensor in last.items() if not torch.isfinite(tensor).all()), None):
        return f"{bad} is not finite at the end"
    return None if different(last, after) else "training did not go on"


def different(one: State, other: State) -> str | None:
    """Name a tensor that is not the same; what an optimizer makes in its first step counts as zeros before."""
    for name, tensor in one.items():
        if not torch.equal(tensor, other[name] if name in other else torch.zeros_like(tensor)):
            return f"{name} is another"
    return None
