"""Adapt a backbone to your own pictures, without labels: Φ_pre → target pretraining → Φ_T (paper §III-B, Eq. 3).

    accelerate launch recipes/target_pretrain.py                    # the embedded digits: minutes on a laptop
    accelerate launch recipes/target_pretrain.py --dataset path/to/pictures --init timm --backbone resnet18.tv_in1k
    accelerate launch recipes/target_pretrain.py --config recipes/configs/target_pretrain/cifar10_byol_paper.yaml

Every setting is one flat key: defaults < --config file < command line; --help lists them. Without --config and
--dataset the settings of configs/target_pretrain/digits_METHOD.yaml are used. The folder --output_dir then holds
config.yaml, scan.json, augmentations.png, metrics.jsonl, curves.png, checkpoints/, model/ (loads in timm and
transformers) and results.json. Started again with the same settings, an unfinished run continues where it was.
"""

from tpssl_hf.runtime import leave, prepare_process

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from tqdm import tqdm

from tpssl_hf.analysis.pictures import draw_curves, draw_views
from tpssl_hf.analysis.probes import probe, probe_split
from tpssl_hf.analysis.watch import HealthWatch
from tpssl_hf.augment.policies import ViewSettings
from tpssl_hf.config import (
    CARRY_OUT_KEYS,
    DataConfig,
    HealthConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    config_files,
    method_named,
    parse_with_method,
    take,
)
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.data.store import PictureStore
from tpssl_hf.data.streams import PictureStream
from tpssl_hf.engine import LoopSettings, Stream, batches_on_device, train
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation import extract_features
from tpssl_hf.launch import (
    Keeper,
    describe,
    make_accelerator,
    open_pictures,
    place,
    run_facts,
    share_of_batch,
    start_tracker,
)
from tpssl_hf.methods.base import Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import Origin, load_backbone
from tpssl_hf.models.layout import Preprocessing, save_timm_folder
from tpssl_hf.optim import build_optimizer, warmup_cosine
from tpssl_hf.rundir import RESULTS, RunDir, StopSignals, read_metrics

PAPER = "arXiv:2205.03001"
GROUPS: list[type] = [PretrainConfig, HealthConfig, DataConfig, ModelConfig, OptimConfig, RunConfig]
CONFIGS = Path(__file__).parent / "configs/target_pretrain"


@dataclass
class Job:
    """Everything one run is made of, settled before its first step."""

    settings: dict[str, Any]
    accelerator: Accelerator
    source: Source
    store: PictureStore | None  # None when streaming
    stream: Stream
    origin: Origin
    views: ViewSettings
    transforms: Views
    method: nn.Module
    optimizer: torch.optim.Optimizer
    epoch_steps: int | None  # None when streaming
    max_steps: int
    rate: Callable[[int], float]
    projection_features: int


def main() -> int:
    """Settle the settings, take the run's folder, adapt, leave the results behind; returns the exit code."""
    settings, method_config = read_settings(sys.argv[1:])
    options = take(RunConfig, settings)
    accelerator = make_accelerator(options)
    say: Callable[..., None] = print if accelerator.is_main_process else lambda *_: None
    folder = Path(options.output_dir)
    with ExitStack() as stack:
        run = None
        if accelerator.is_main_process:
            run = stack.enter_context(RunDir(folder, settings, ignore=CARRY_OUT_KEYS))
        if run.finished if run else (folder / RESULTS).exists():
            say(f"{folder} holds the finished run of these settings; its weights are in {folder / 'model'}.")
            return 0
        if not options.resume and (folder / "checkpoints").exists():
            raise InputError(f"{folder} holds an unfinished run and resume is false; choose another output_dir.")
        signals = stack.enter_context(StopSignals())
        say(describe(accelerator, THREADS))
        job = prepare(settings, method_config, accelerator, run)
        done, state = pretrain(job, run, signals, say)
        if done < job.max_steps and not state["stop_reason"]:
            say(f"stopped after step {done} of {job.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        if run:
            say(leave_results(job, run, done, state))
    accelerator.end_training()
    return 0


def read_settings(arguments: list[str]) -> tuple[dict[str, Any], Any]:
    """Resolve every key; the embedded digits are the default where neither a data set nor a file is given."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not config_files(arguments) and "--dataset" not in given:
        digits = CONFIGS / f"digits_{method_named(arguments)}.yaml"
        arguments = ["--config", str(digits), *arguments] if digits.exists() else arguments
    methods = {name: (spec.config, spec.defaults) for name, spec in PRETRAIN.items()}
    settings, method_config = parse_with_method(arguments, GROUPS, methods, description=__doc__ or "")
    if settings["l2_weight"] is None:  # METHODS: a pull toward random weights means nothing
        settings["l2_weight"] = 0.0 if settings["init"] == "random" else 1e-2
    return settings, method_config


def prepare(settings: dict[str, Any], method_config: Any, accelerator: Accelerator, run: RunDir | None) -> Job:
    """Open the pictures, load Φ_pre, put the method around it, plan the length."""
    choice, data, model = take(PretrainConfig, settings), take(DataConfig, settings), take(ModelConfig, settings)
    optim, options = take(OptimConfig, settings), take(RunConfig, settings)
    source = load_source(
        data.dataset,
        split=data.split,
        dataset_config=data.dataset_config,
        image_column=data.image_column,
        label_column=data.label_column,
        streaming=data.streaming,
    )
    share = share_of_batch(optim.batch_size, accelerator.num_processes, optim.gradient_accumulation_steps)
    store, stream = open_pictures(source, data, share, options.seed, accelerator, run)
    batches_per_epoch = stream.steps_per_epoch if isinstance(stream, PictureStream) else None
    epoch_steps = batches_per_epoch and max(1, batches_per_epoch // optim.gradient_accumulation_steps)
    set_seed(options.seed)
    backbone, origin = load_backbone(model.backbone, init=model.init, image_size=data.image_size)
    normalisation: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    flip = source.flip_is_safe if data.horizontal_flip is None else data.horizontal_flip
    views = ViewSettings(data.image_size, normalisation["mean"], normalisation["std"], options.seed, flip)
    spec = PRETRAIN[choice.method]
    spec.check(backbone, method_config, data.image_size, optim.batch_size)
    max_steps = optim.max_steps or optim.epochs * (epoch_steps or 0)
    if max_steps < 1:
        raise InputError("a streamed data set has no known length: give --max_steps, a whole number above 0.")
    rate = partial(
        warmup_cosine,
        base=optim.learning_rate * optim.batch_size / 256,
        max_steps=max_steps,
        warmup_steps=min(round(optim.warmup_epochs * (epoch_steps or 0)), max_steps // 10),
    )
    beside = (lambda progress: rate(round(progress * max_steps))) if choice.l2_mode == "decoupled" else None
    inner = spec.build(backbone, method_config)
    method = place(Anchor(inner, choice.l2_weight or 0.0, decoupled_rate=beside), model, accelerator)
    optimizer = build_optimizer(
        optim.optimizer,
        method,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_vectors=optim.decay_vectors,
    )
    return Job(
        settings,
        accelerator,
        source,
        store,
        stream,
        origin,
        views,
        spec.views(views, method_config),
        method,
        optimizer,
        epoch_steps,
        max_steps,
        rate,
        method_config.projection_features,
    )


def pretrain(
    job: Job, run: RunDir | None, signals: StopSignals, say: Callable[..., None]
) -> tuple[int, dict[str, Any]]:
    """Train from the start or from the newest checkpoint; returns the completed steps and what came up on the way."""
    optim, options = take(OptimConfig, job.settings), take(RunConfig, job.settings)
    accelerator, parts = job.accelerator, optim.gradient_accumulation_steps
    folder, began = Path(options.output_dir), time.perf_counter()
    facts = {"dataset": job.source.fingerprint, "origin": job.origin.as_dict()}
    keeper = Keeper(
        accelerator, run, folder / "checkpoints", job.method, job.optimizer, facts, options.keep_checkpoints
    )
    watch = make_watch(job) if run else None
    checkpoint = keeper.restore()
    start_step = checkpoint.step if checkpoint else 0
    if checkpoint:
        state = {name: checkpoint.state[name] for name in ("seconds", "before", "stop_reason")}
        if watch:
            watch.load(checkpoint.tensors["health"], checkpoint.state["health"])
        say(f"resuming after step {start_step} of {job.max_steps}")
    else:
        state = {"seconds": 0.0, "before": probed(job) if run else {}, "stop_reason": None}
        if watch:
            watch.begin(job.method.deployed)  # type: ignore[arg-type]
        if run:
            draw_first_views(job, folder / "augmentations.png")
            say(f"{folder / 'augmentations.png'} shows the views: look at it before you wait")
    seconds_before, track = state["seconds"], start_tracker(accelerator, job.settings)

    def log(step: int, values: dict[str, float]) -> None:
        if watch and watch.due(step):
            values = {**values, **watch.check(step, job.method.deployed, values.get("projection_std"))}  # type: ignore[arg-type]
            state["stop_reason"] = watch.stop_reason
        if run:
            run.append({"step": step, "epoch": step / job.epoch_steps if job.epoch_steps else None, **values})
        track(values, step)

    def save(step: int) -> None:
        state["seconds"] = seconds_before + time.perf_counter() - began
        tensors, health = watch.state() if watch else ({}, {})
        keeper.save(step, {**state, "health": health}, {"health": tensors})

    bar = tqdm(
        batches_on_device(job.stream, job.transforms, start_step * parts, accelerator.device),
        desc=f"{job.settings['method']} on {job.source.name}",
        total=job.max_steps * parts,
        initial=start_step * parts,
        unit="img",
        unit_scale=optim.batch_size // parts,
        disable=run is None,
    )
    batches = iter(bar)  # a name keeps it alive: at its end it would set the bar back
    done = train(
        accelerator,
        accelerator.prepare(job.method),
        job.optimizer,
        job.rate,
        batches,
        LoopSettings(job.max_steps, optim.batch_size, parts, options.log_every, options.save_every, options.seed),
        start_step=start_step if state["stop_reason"] is None else job.max_steps,
        log=log,
        save=save,
        stop=lambda: bool(signals.requested or state["stop_reason"]),
    )
    done = start_step if checkpoint and checkpoint.state["stop_reason"] else done
    bar.n = done * parts  # the last batch was taken from it, but not asked for the next
    bar.close()
    state["stop_reason"] = broadcast_object_list([state["stop_reason"]])[0]
    return done, state


def make_watch(job: Job) -> HealthWatch | None:
    """Make the watch over the features' health; none where it was switched off or pictures are only streamed by."""
    health = take(HealthConfig, job.settings)
    if job.store is None or job.epoch_steps is None or health.health_every <= 0:
        return None
    labels = job.store.labels if health.probe_labels else None
    warmup = round(take(OptimConfig, job.settings).warmup_epochs * job.epoch_steps)
    return HealthWatch(
        job.store,
        job.views,
        next(iter(job.transforms.values())),
        job.accelerator.device,
        every=max(1, round(health.health_every * job.epoch_steps)),
        settle_after=max(warmup, job.max_steps // 4),
        projection_features=job.projection_features,
        stop_on_collapse=health.on_collapse == "stop",
        stop_when_stable=health.stop_when == "stable",
        probe=probe_split(labels, most=2000) if labels is not None else None,
    )


def draw_first_views(job: Job, path: Path) -> None:
    """Write the picture of the first eight pictures and their views."""
    batches = job.stream.batches(0)
    pictures = next(batches)[:8].to(job.accelerator.device)
    batches.close()  # type: ignore[attr-defined]
    views = next(iter(job.transforms.values()))(pictures)
    draw_views(path, pictures, views, mean=job.views.mean, std=job.views.std)


def probed(job: Job) -> dict[str, float]:
    """Probe the backbone where the training pictures have labels; labels never reach the training."""
    split = probe_split(job.store.labels) if job.store and job.store.labels is not None else None
    if job.store is None or split is None:
        return {}
    backbone: Any = job.method.deployed
    store, device = job.store, job.accelerator.device
    return probe(lambda indices: extract_features(backbone, store, indices, job.views, device), split)


def leave_results(job: Job, run: RunDir, done: int, state: dict[str, Any]) -> str:
    """Write curves.png, model/ and results.json; returns the summary for people."""
    optim = take(OptimConfig, job.settings)
    metrics = {f"{name}_before": value for name, value in state["before"].items()}
    metrics |= {f"{name}_after": value for name, value in probed(job).items()}
    draw_curves(run.path / "curves.png", read_metrics(run.path / "metrics.jsonl"))
    dataset = {
        "name": job.source.name,
        "fingerprint": job.source.fingerprint,
        "images": len(job.store) if job.store else None,
    }
    results = run_facts(
        recipe="target_pretrain",
        method=job.settings["method"],
        task="target pretraining",
        dataset=dataset,
        backbone=job.settings["backbone"],
        init=job.origin.as_dict(),
        seed=job.settings["seed"],
        steps=done,
        stopped=state["stop_reason"],
        epochs=done / job.epoch_steps if job.epoch_steps else None,
        seconds=state["seconds"],
        images_per_second=done * optim.batch_size / state["seconds"],
        metrics=metrics,
        config=job.settings,
    )
    provenance = {key: results[key] for key in ("recipe", "method", "dataset", "init", "seed", "steps", "versions")}
    backbone: Any = job.method.deployed
    save_timm_folder(
        backbone,
        run.path / "model",
        preprocessing=Preprocessing(job.views.image_size, job.views.mean, job.views.std),
        provenance={**provenance, "paper": PAPER},
        licence=job.origin.licence,
    )
    run.write_json(RESULTS, results)
    return summary(run.path, results)


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines = results["metrics"], []
    for title, name in (("kNN accuracy", "knn_accuracy"), ("linear probe", "linear_probe_accuracy")):
        if f"{name}_after" in metrics:
            before, after = 100 * metrics[f"{name}_before"], 100 * metrics[f"{name}_after"]
            lines.append(
                f"  {title:13} {before:.1f} % before, {after:.1f} % after (training pictures, labels held out)"
            )
    return "\n".join(
        [
            f"\nAdapted {results['backbone']} ({results['init']['kind']} weights) to {results['dataset']['name']}: "
            f"{results['steps']} steps in {results['seconds']:.0f} s, {results['images_per_second']:.0f} pictures/s",
            *([f"  {results['stopped']}"] if results["stopped"] else []),
            *lines,
            f"  weights       {folder / 'model'}",
            f"  look at       {folder / 'curves.png'}",
            f"  next          use them anywhere: timm.create_model('local-dir:{folder / 'model'}', pretrained=True)",
            "                or adapt to your own pictures: accelerate launch recipes/target_pretrain.py "
            "--dataset FOLDER --backbone resnet18.tv_in1k --init timm --output_dir outputs/mine",
        ]
    )


if __name__ == "__main__":
    leave(main)
