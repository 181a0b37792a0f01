"""What a run of target pretraining is made of, set up before its first step (paper §III-B, Eq. 3)."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.shared import OptimConfig
from tpssl_hf.data.image_batch import ImageBatch
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.sources import Source
from tpssl_hf.data.streams import ImageStream
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import REESTIMATION_IMAGES, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import batches_of
from tpssl_hf.evaluation.probes import ProbeSplit, probe, probe_split
from tpssl_hf.methods.base import Batch, Method, Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import WeightsSource, load_backbone
from tpssl_hf.models.batchnorm import freeze_statistics
from tpssl_hf.models.own_size import USUAL
from tpssl_hf.models.recomputing import recompute_activations
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.tasks.pretrain.batchnorm_choice import FILE, BatchNormChoice, choose_batchnorm
from tpssl_hf.tasks.pretrain.config import PretrainArgs
from tpssl_hf.tasks.pretrain.data import open_images
from tpssl_hf.tasks.pretrain.memory import too_large_step
from tpssl_hf.tasks.pretrain.selection import Right, choosing_and_judging
from tpssl_hf.tasks.pretrain.shown_images import ShownImages
from tpssl_hf.tasks.pretrain.untouched import Start
from tpssl_hf.training.accelerator import per_device_batch_size, prepare_method
from tpssl_hf.training.loop import Stream
from tpssl_hf.training.open_data import open_source
from tpssl_hf.training.optim import build_optimizer, lars_reach, warmup_cosine
from tpssl_hf.training.run_dir import RunDir

# A reach (see lars_reach) below which a backbone stays what it was. The shortest presets seen to change features have
# 4 to 5 %, the paper's runs 40 % and more.
LEAST_REACH = 0.03
FIRST_IMAGES, FIRST_PART = 1024, 20  # what a method may begin by: so many images, and that part of what a run sees


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """Everything one run is made of, set up before its first step."""

    args: PretrainArgs
    accelerator: Accelerator
    source: Source
    store: ImageCache | None  # None when streaming
    stream: Stream
    origin: WeightsSource
    views: ViewSettings
    transforms: Views
    method: Method
    optimizer: torch.optim.Optimizer
    epoch_steps: int | None  # None when streaming
    max_steps: int
    learning_rate: Callable[[int], float]
    choosing: ProbeSplit | None  # labels that choose between candidates, None where there are none or none is wanted
    judging: ProbeSplit | None  # other labels, which judge what is saved
    batchnorm: BatchNormChoice
    start: Start | None  # what is known of Φ_pre until the first step; None when streaming

    @property
    def selects(self) -> bool:
        """Whether snapshots are looked at, by labels or by crops, to choose what is saved."""
        return self.shown is not None and self.args.task.select == "best" and self.args.model.init != "random"

    @property
    def shown(self) -> ShownImages | None:
        """The stored images, to look at; None when streaming."""
        return shown_images(self.args, self.store, self.views, self.accelerator)


def prepare(args: PretrainArgs, accelerator: Accelerator, run_dir: RunDir | None) -> PretrainRun:
    """Open the images, load Φ_pre, put the method around it, plan the length."""
    data, model, optim, seed = args.data, args.model, args.optim, args.run.seed
    source = open_source(data)
    batch_size = per_device_batch_size(optim.batch_size, accelerator.num_processes, optim.gradient_accumulation_steps)
    spec = PRETRAIN[args.task.method]
    store, stream = open_images(source, data, batch_size, seed, accelerator, run_dir, spec.crop_scale)
    batches_per_epoch = stream.steps_per_epoch if isinstance(stream, ImageStream) else None
    epoch_steps = batches_per_epoch and max(1, batches_per_epoch // optim.gradient_accumulation_steps)
    set_seed(seed)
    backbone, origin = load_backbone(model.backbone, init=model.init, image_size=data.image_size)
    flip = source.flip_is_safe if data.horizontal_flip is None else data.horizontal_flip
    views = ViewSettings.of(preprocessing_of(backbone), seed, horizontal_flip=flip)
    spec.check(backbone, args.method, data.image_size, optim.batch_size)
    # a budget has seen to it, or will
    if not args.time.budget and (sentence := too_large_step(args, backbone, optim.batch_size, accelerator)):
        raise InputError(sentence)
    max_steps = optim.max_steps or optim.epochs * (epoch_steps or 0)
    if max_steps < 1:
        raise InputError("a streamed data set has no known length: give --max_steps, a whole number above 0.")
    learning_rate = schedule(optim, max_steps, epoch_steps)
    choosing, judging = label_splits(args, store)
    shown = shown_images(args, store, views, accelerator)
    start = Start(backbone, shown) if shown else None
    batchnorm = chosen_once(
        run_dir,
        accelerator,
        lambda: choose_batchnorm(model.backbone_batchnorm, backbone, origin.kind, start, choosing),
    )
    if batchnorm.mode == "frozen":
        freeze_statistics(backbone)
    if model.gradient_checkpointing:
        recompute_activations(backbone)
    method = prepare_method(
        anchored(spec.build(backbone, args.method), args, learning_rate, max_steps),
        model,
        accelerator,
        args.run.memory_format,
    )
    return PretrainRun(
        args=args,
        accelerator=accelerator,
        source=source,
        store=store,
        stream=stream,
        origin=origin,
        views=views,
        transforms=spec.views(views, args.method),
        method=method,
        optimizer=optimizer_over(method, optim),
        epoch_steps=epoch_steps,
        max_steps=max_steps,
        learning_rate=learning_rate,
        choosing=choosing,
        judging=judging,
        batchnorm=batchnorm,
        start=start,
    )


def shown_images(
    args: PretrainArgs, store: ImageCache | None, views: ViewSettings, accelerator: Accelerator
) -> ShownImages | None:
    """Return the stored images, to look at; None when streaming."""
    cropped = max(2, args.task.probe_images // 4)
    return None if store is None else ShownImages(store, views, accelerator.device, cropped)


def label_splits(args: PretrainArgs, store: ImageCache | None) -> tuple[ProbeSplit | None, ProbeSplit | None]:
    """Return the labels that choose what is saved, and those that judge it.

    All of them judge with ``select`` last, and from random weights, which nobody wants to keep.
    """
    if store is None or store.labels is None:
        return None, None
    if args.task.select == "last" or args.model.init == "random":
        return None, probe_split(store.labels)
    return choosing_and_judging(store.labels, args.task.probe_images)


def chosen_once(
    run_dir: RunDir | None, accelerator: Accelerator, choose: Callable[[], BatchNormChoice]
) -> BatchNormChoice:
    """Return what the main process chooses, or has chosen when the run began, to all processes."""
    found: BatchNormChoice | None = None
    if accelerator.is_main_process:
        file = run_dir.path / FILE if run_dir else None
        if file is not None and file.exists():
            found = BatchNormChoice.restored(json.loads(file.read_text(encoding="utf-8")))
        else:
            found = choose()
            if run_dir:
                run_dir.write_json(FILE, found.values())
    chosen: BatchNormChoice = broadcast_object_list([found])[0]
    return chosen


def anchored(method: Method, args: PretrainArgs, learning_rate: Callable[[int], float], max_steps: int) -> Anchor:
    """Put the penalty toward Φ_pre (Eq. 3) around a method."""
    decoupled = args.task.l2_mode == "decoupled"
    rate = (lambda progress: learning_rate(round(progress * max_steps))) if decoupled else None
    return Anchor(method, args.task.l2_weight or 0.0, decoupled_rate=rate)


def schedule(optim: OptimConfig, max_steps: int, epoch_steps: int | None) -> Callable[[int], float]:
    """Return the learning rate of each step; where an epoch's length is unknown, warm-up is a tenth of the run."""
    epochs = optim.warmup_epochs
    warmup = round(epochs * epoch_steps) if epoch_steps else max_steps if epochs > 0 else 0
    return partial(
        warmup_cosine,
        base=base_rate(optim) * optim.batch_size / 256,
        max_steps=max_steps,
        warmup_steps=min(warmup, max_steps // 10),
    )


def optimizer_over(method: Method, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer, whose name is put in when arguments are resolved."""
    assert optim.optimizer is not None
    return build_optimizer(
        optim.optimizer,
        method,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_norm_and_bias=optim.decay_norm_and_bias,
    )


def base_rate(optim: OptimConfig) -> float:
    """Return the learning rate for 256 images, which is put in when arguments are resolved."""
    assert optim.base_learning_rate is not None
    return optim.base_learning_rate


def cautions(run: PretrainRun) -> list[str]:
    """Say what a run cannot do: weights that can hardly move, and what is off where images are streamed."""
    found, optim = [], run.args.optim
    reach = lars_reach(run.learning_rate, run.max_steps)
    if optim.optimizer == "lars" and 0 < reach < LEAST_REACH:
        found.append(
            f"caution: at these rates LARS moves a weight tensor by {reach:.2%} of its length in all "
            f"{run.max_steps:,} steps (a run that adapts needs {LEAST_REACH:.0%} or more); give more steps, or "
            f"--base_learning_rate {base_rate(optim) * LEAST_REACH / reach:.2g}"
        )
    if run.store is None:
        length = "a tenth of the steps" if optim.warmup_epochs > 0 else "off"
        found.append(
            f"streaming: epochs have no known length, so warm-up is {length}. Health checks (health_every, "
            "on_collapse, stop_when, probe_labels), probes with their verdict, and the scan are off"
        )
    return found


def first_batches(run: PretrainRun) -> Iterator[Batch]:
    """Yield the views that a method begins by, of the same images in every process; made when asked for.

    They are 1,024 images at most, and a twentieth of those that the run sees, but at least a batch.
    """
    batch_size = run.args.optim.batch_size
    count = max(batch_size, min(FIRST_IMAGES, run.max_steps * batch_size // FIRST_PART))
    if run.store is not None:
        some = np.random.default_rng(0).permutation(len(run.store))[:count]
        batches: Iterable[ImageBatch] = (run.store.gather(part, epoch=0) for part in batches_of(some, batch_size))
    else:  # with several processes those of the first one count: its weights are given to the others
        batches = islice(run.stream.batches(0), count // batch_size)
    for images in batches:
        yield {name: transform(images.to(run.accelerator.device)) for name, transform in run.transforms.items()}


def teacher_facts(run: PretrainRun) -> dict[str, Any]:
    """Return where the weights of a frozen teacher come from, under ``teacher``; empty without one."""
    source = run.method.teacher_source
    return {} if source is None else {"teacher": source.as_dict()}


def teacher_note(run: PretrainRun) -> str:
    """Say which teacher is followed, under which license, and how large the images are that it sees; else nothing."""
    source = run.method.teacher_source
    if source is None:
        return ""
    size = run.args.method.teacher_image_size or source.image_size or USUAL
    return f"teacher: {source.name} (license: {source.license or 'not stated'}), which sees {size} px"


def finished_backbone(run: PretrainRun) -> nn.Module:
    """Copy the backbone as it is now, as it would be saved.

    Where BatchNorm is trained, its statistics are re-estimated on the images as they are, not as their views:
    frozen features are several points better for it (benchmarks/RESULTS.md). Frozen ones stay as they came.
    """
    if run.batchnorm.mode == "frozen":
        return copy.deepcopy(run.method.deployed).eval()
    return reestimated(run, run.method.deployed)


def reestimated(run: PretrainRun, backbone: nn.Module) -> nn.Module:
    """Copy a backbone and give it the BatchNorm statistics of the images."""
    if run.shown is not None:
        return run.shown.reestimated(backbone)
    images = islice(run.stream.batches(0), max(1, REESTIMATION_IMAGES // run.args.optim.batch_size))
    return with_reestimated_batchnorm(backbone, images, run.views, run.accelerator.device)


def probed(run: PretrainRun, backbone: nn.Module) -> dict[str, list[int]]:
    """Return what :func:`probe` does where the training images have labels; empty where they have none."""
    if run.shown is None or run.judging is None:
        return {}
    return probe(partial(run.shown.features, backbone), run.judging)


def choosing_answers(run: PretrainRun, backbone: nn.Module) -> Right | None:
    """Return what the labels that choose between candidates say of one, None where there are none."""
    return run.shown.answers(backbone, run.choosing) if run.shown is not None and run.choosing is not None else None
