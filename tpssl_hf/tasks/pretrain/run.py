"""One run of target pretraining, Φ_pre → Φ_T (paper §III-B, Eq. 3): how it is carried out."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from tpssl_hf.config.parser import flat
from tpssl_hf.evaluation.probes import probe_split
from tpssl_hf.models.batchnorm import batchnorm_layers, fair_random
from tpssl_hf.monitoring.feature_monitor import HealthWatch
from tpssl_hf.plots.training import draw_views
from tpssl_hf.tasks.pretrain.prepare import (
    PretrainRun,
    choosing_answers,
    finished_backbone,
    first_batches,
    teacher_facts,
)
from tpssl_hf.tasks.pretrain.selection import BN_ONLY, CHOOSING, KNOWN_AGAIN, START, Selection
from tpssl_hf.tasks.pretrain.untouched import Start
from tpssl_hf.training.accelerator import start_tracker
from tpssl_hf.training.checkpoint_manager import CheckpointManager
from tpssl_hf.training.loop import (
    LoopSettings,
    Step,
    agreed,
    batches_on_device,
    training_steps,
    with_progress_bar,
)
from tpssl_hf.training.run_dir import RunDir, StopSignals

SNAPSHOTS = 5  # looks at what labels say of the backbone in a run, the last step included


@dataclass
class Progress:
    """What a run carries over from start to start, beside its weights.

    Attributes:
        seconds: time it has taken so far.
        before: what the probes say of Φ_pre, see :func:`probed`.
        statistics_only: the same of Φ_pre with re-estimated BatchNorm statistics and nothing else.
        stop_reason: why it ended before its last step, if it did.
        selection: the best candidate so far, for what is saved at the end.
    """

    seconds: float = 0.0
    before: dict[str, list[int]] = field(default_factory=dict)
    statistics_only: dict[str, list[int]] = field(default_factory=dict)
    stop_reason: str | None = None
    selection: Selection = field(default_factory=Selection)

    def values(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON values; ``selection.state`` are tensors."""
        return {name: value for name, value in vars(self).items() if name != "selection"} | {
            "selection": self.selection.values()
        }

    @classmethod
    def restored(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build it from what :meth:`values` returned, and the selection's tensors."""
        names = ("seconds", "before", "statistics_only", "stop_reason")
        progress = cls(**{name: values[name] for name in names})
        progress.selection.load(tensors, values["selection"])
        return progress


def train(run: PretrainRun, run_dir: RunDir | None, signals: StopSignals) -> tuple[int, Progress]:
    """Train from the start or from the newest checkpoint; returns the completed steps and what came up on the way."""
    accelerator, options, began = run.accelerator, run.args.run, time.perf_counter()
    checkpoints = CheckpointManager(
        accelerator,
        run_dir,
        Path(options.output_dir) / "checkpoints",
        run.method,
        run.optimizer,
        {"dataset": run.source.fingerprint, "origin": run.origin.as_dict(), **teacher_facts(run)},
        options.keep_checkpoints,
    )
    watch = make_watch(run) if run_dir else None
    done, progress = begin(run, run_dir, checkpoints, watch)
    seconds_before, track = progress.seconds, start_tracker(accelerator, flat(run.args))
    if progress.stop_reason is not None:  # it had stopped for good, and was killed before its results
        return done, progress
    for step in steps_of(run, done, shown=run_dir is not None):
        done = step.done
        if step.losses is not None:
            values = step.losses
            if watch and watch.due(done):
                moved = run.method.moved()
                values |= watch.check(done, run.method.deployed, values.get("projection_std"), moved)
                progress.stop_reason = watch.stop_reason
            if run_dir:
                values |= consider_snapshot(run, progress.selection, done)
                run_dir.append({"step": done, "epoch": done / run.epoch_steps if run.epoch_steps else None, **values})
            track(values, done)
        stopping = step.may_stop and agreed(accelerator, bool(signals.requested or progress.stop_reason))
        if stopping or step.save_due:
            progress.seconds = seconds_before + time.perf_counter() - began
            tensors, health = watch.state() if watch else ({}, {})
            groups = {"health": tensors, "selection": progress.selection.state}
            checkpoints.save(done, {**progress.values(), "health": health}, groups)
        if stopping:
            break
    progress.stop_reason = broadcast_object_list([progress.stop_reason])[0]
    return done, progress


def begin(
    run: PretrainRun, run_dir: RunDir | None, checkpoints: CheckpointManager, watch: HealthWatch | None
) -> tuple[int, Progress]:
    """Restore the newest checkpoint, or probe Φ_pre and draw the views; returns the completed steps and the state."""
    checkpoint, say = checkpoints.restore(), run.accelerator.print
    if checkpoint:
        if watch:
            watch.load(checkpoint.tensors["health"], checkpoint.state["health"])
        say(f"resuming after step {checkpoint.step} of {run.max_steps}")
        return checkpoint.step, Progress.restored(checkpoint.state, checkpoint.tensors.get("selection", {}))
    progress = probed_before(run) if run_dir else Progress()
    if watch:
        known = run.start.kept.features if run.start and run.batchnorm.mode == "frozen" else None
        watch.begin(run.method.deployed, known)
    if run.start:
        run.start.forget()
    run.method.begin(first_batches(run))
    if run_dir:
        draw_first_views(run, run_dir.path / "augmentations.png")
        say(f"{run_dir.path / 'augmentations.png'} shows the views: look at it before you wait")
    return 0, progress


def consider_snapshot(run: PretrainRun, selection: Selection, step: int) -> dict[str, float]:
    """Find out what the backbone is worth now, a few times a run; returns what the log keeps of it.

    Labels say so, or crops where there are none. The last step has its turn at the end.
    """
    looked = selection.curve[-1][0] if selection.curve else 0
    if not run.selects or step - looked < run.max_steps // SNAPSHOTS or step == run.max_steps:
        return {}
    return consider(run, selection, f"step_{step}", finished_backbone(run), step)


def consider(run: PretrainRun, selection: Selection, name: str, network: nn.Module, step: int) -> dict[str, float]:
    """Let labels or crops judge a candidate; returns what the log keeps of it."""
    if (right := choosing_answers(run, network)) is not None:
        return {CHOOSING: selection.consider(name, network, right, step)}
    assert run.shown is not None
    return {KNOWN_AGAIN: selection.consider_crops(name, network, run.shown.crops(network), step)}


def steps_of(run: PretrainRun, start_step: int, *, shown: bool) -> Iterable[Step]:
    """Return the steps from ``start_step`` on, with a progress bar if ``shown``."""
    optim, options, accelerator = run.args.optim, run.args.run, run.accelerator
    parts = optim.gradient_accumulation_steps
    loop = LoopSettings(run.max_steps, optim.batch_size, parts, options.log_every, options.save_every, options.seed)
    steps = training_steps(
        accelerator,
        accelerator.prepare(run.method),
        run.optimizer,
        run.learning_rate,
        batches_on_device({"images": run.stream}, run.transforms, start_step * parts, accelerator.device),
        loop,
        start_step=start_step,
    )
    title = f"{run.args.task.method} on {run.source.name}"
    return with_progress_bar(steps, loop, title=title, shown=shown, start_step=start_step)


def make_watch(run: PretrainRun) -> HealthWatch | None:
    """Make the watch over the features' health; none where it was switched off or images are only streamed by."""
    health = run.args.health
    if run.store is None or run.epoch_steps is None or health.health_every <= 0:
        return None
    labels = run.store.labels if health.probe_labels else None
    return HealthWatch(
        run.store,
        run.views,
        next(iter(run.transforms.values())),
        run.accelerator.device,
        every=max(1, round(health.health_every * run.epoch_steps)),
        settle_after=run.max_steps // 4,  # past the warm-up, which is a tenth of the run at most
        projection_features=run.method.projection_features,
        stop_on_collapse=health.on_collapse == "stop",
        stop_when_stable=health.stop_when == "stable",
        probe=probe_split(labels, most=2000) if labels is not None else None,
        reestimate=run.batchnorm.mode != "frozen",
    )


def draw_first_views(run: PretrainRun, path: Path) -> None:
    """Write the image of the first eight images and their views."""
    batches = run.stream.batches(0)
    images = next(batches)[:8].to(run.accelerator.device)
    batches.close()
    views = next(iter(run.transforms.values()))(images)
    draw_views(path, images, views, mean=run.views.mean, std=run.views.std)


def known_start(run: PretrainRun) -> Start | None:
    """Return what Φ_pre is asked through; None when streaming.

    Random weights are probed as a fair random network, see :func:`tpssl_hf.models.batchnorm.fair_random`.
    """
    if run.origin.kind == "random" and run.start is not None:
        return Start(fair_random(run.method.deployed), run.start.images)
    return run.start


def probed_before(run: PretrainRun) -> Progress:
    """Probe Φ_pre, and Φ_pre with re-estimated BatchNorm statistics and nothing else."""
    progress, start = Progress(), known_start(run)
    if start is None:
        return progress
    normed = bool(batchnorm_layers(start.backbone))
    if run.judging is not None:
        progress.before = start.kept.probed(run.judging)
        progress.statistics_only = start.bn_only.probed(run.judging) if normed else progress.before
    if run.choosing is not None:
        known = run.batchnorm.answers  # what choosing between them has asked already
        progress.selection.begin(known.get(START) or start.kept.answers(run.choosing))
        if normed:
            other = known.get(BN_ONLY) or start.bn_only.answers(run.choosing)
            progress.selection.consider(BN_ONLY, start.bn_only.network, other)
    elif run.selects:
        progress.selection.crops = start.kept.crops()
    return progress
