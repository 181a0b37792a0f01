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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm import tqdm

from tpssl_hf.analysis.pictures import draw_curves, draw_views
from tpssl_hf.analysis.probes import probe, probe_split
from tpssl_hf.augment.policies import ViewSettings
from tpssl_hf.config import (
    CARRY_OUT_KEYS,
    DataConfig,
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
from tpssl_hf.data.store import PictureStore, open_store
from tpssl_hf.data.streams import PictureStream, StreamingPictures
from tpssl_hf.engine import LoopSettings, train
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation import extract_features
from tpssl_hf.launch import Keeper, describe, make_accelerator, run_facts, share_of_batch, start_tracker
from tpssl_hf.methods.base import Batch, Views
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import Origin, load_backbone
from tpssl_hf.models.batchnorm import synchronise_batchnorm
from tpssl_hf.models.layout import Preprocessing, save_timm_folder
from tpssl_hf.optim import build_optimizer, warmup_cosine
from tpssl_hf.rundir import RESULTS, RunDir, StopSignals, read_metrics

PAPER = "arXiv:2205.03001"
GROUPS: list[type] = [PretrainConfig, DataConfig, ModelConfig, OptimConfig, RunConfig]
CONFIGS = Path(__file__).parent / "configs/target_pretrain"


@dataclass
class Job:
    """Everything one run is made of, settled before its first step."""

    settings: dict[str, Any]
    accelerator: Accelerator
    source: Source
    store: PictureStore | None  # None when streaming
    stream: PictureStream | StreamingPictures
    origin: Origin
    views: ViewSettings
    transforms: Views
    method: nn.Module
    optimizer: torch.optim.Optimizer
    epoch_steps: int | None  # None when streaming
    max_steps: int


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
        if done < job.max_steps:
            say(f"stopped after step {done} of {job.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        if run:
            say(leave_results(job, run, state))
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
    method = place(Anchor(spec.build(backbone, method_config), choice.l2_weight or 0.0), model, accelerator)
    optimizer = build_optimizer(
        optim.optimizer,
        method,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_vectors=optim.decay_vectors,
    )
    max_steps = optim.max_steps or optim.epochs * (epoch_steps or 0)
    if max_steps < 1:
        raise InputError("a streamed data set has no known length: give --max_steps, a whole number above 0.")
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
    )


def open_pictures(
    source: Source, data: DataConfig, share: int, seed: int, accelerator: Accelerator, run: RunDir | None
) -> tuple[PictureStore | None, PictureStream | StreamingPictures]:
    """Scan and store the pictures once, or stream them; say what was found."""
    place_in_world = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    if data.streaming:
        return None, StreamingPictures(
            source,
            image_size=data.image_size,
            batch_size=share,
            seed=seed,
            num_workers=data.num_workers,
            **place_in_world,
        )
    with accelerator.local_main_process_first():
        store, report = open_store(
            source,
            image_size=data.image_size,
            cache_budget=int(data.cache_budget * 2**30),
            cache_dir=Path(data.cache_dir) if data.cache_dir else None,
            limit_images=data.limit_images,
            num_workers=data.num_workers,
            progress=accelerator.is_main_process,
            allow_unlabelled=True,
        )
    if run:
        report.write(run.path / "scan.json")
        print(report.summary())
    return store, PictureStream(store, batch_size=share, seed=seed, **place_in_world)


def place(method: nn.Module, model: ModelConfig, accelerator: Accelerator) -> nn.Module:
    """Bring the method to the device in the form it is trained in."""
    if model.gradient_checkpointing:
        method.deployed.set_grad_checkpointing(True)  # type: ignore[operator, union-attr]
    if model.sync_batchnorm and accelerator.num_processes > 1:
        method = synchronise_batchnorm(method, accelerator.device)
    method = method.to(accelerator.device).to(memory_format=torch.channels_last)
    if model.compile:
        method.compile()
    return method


def pretrain(
    job: Job, run: RunDir | None, signals: StopSignals, say: Callable[..., None]
) -> tuple[int, dict[str, Any]]:
    """Train from the start or from the newest checkpoint; returns the completed steps and what came up on the way."""
    optim, options = take(OptimConfig, job.settings), take(RunConfig, job.settings)
    accelerator, accumulation = job.accelerator, optim.gradient_accumulation_steps
    folder, began = Path(options.output_dir), time.perf_counter()
    facts = {"dataset": job.source.fingerprint, "origin": job.origin.as_dict()}
    keeper = Keeper(
        accelerator, run, folder / "checkpoints", job.method, job.optimizer, facts, options.keep_checkpoints
    )
    start_step, state = keeper.restore()
    if start_step:
        say(f"resuming after step {start_step} of {job.max_steps}")
    else:
        state = {"seconds": 0.0, "before": measure(job) if run else {}}
        if run:
            draw_first_views(job, folder / "augmentations.png")
            say(f"{folder / 'augmentations.png'} shows the views: look at it before you wait")
    seconds_before, track = state["seconds"], start_tracker(accelerator, job.settings)

    def log(step: int, values: dict[str, float]) -> None:
        if run:
            run.append({"step": step, "epoch": step / job.epoch_steps if job.epoch_steps else None, **values})
        track(values, step)

    def save(step: int) -> None:
        state["seconds"] = seconds_before + time.perf_counter() - began
        keeper.save(step, {"seconds": state["seconds"], "before": state["before"]})

    bar = tqdm(
        batches_on_device(job, start_step * accumulation),
        desc=f"{job.settings['method']} on {job.source.name}",
        total=job.max_steps * accumulation,
        initial=start_step * accumulation,
        unit="img",
        unit_scale=optim.batch_size // accumulation,
        disable=run is None,
    )
    rate = partial(
        warmup_cosine,
        base=optim.learning_rate * optim.batch_size / 256,
        max_steps=job.max_steps,
        warmup_steps=min(round(optim.warmup_epochs * (job.epoch_steps or 0)), job.max_steps // 10),
    )
    loop = LoopSettings(
        job.max_steps, optim.batch_size, accumulation, options.log_every, options.save_every, options.seed
    )
    batches = iter(bar)  # a name keeps it alive: at its end it would set the bar back
    done = train(
        accelerator,
        accelerator.prepare(job.method),
        job.optimizer,
        rate,
        batches,
        loop,
        start_step=start_step,
        log=log,
        save=save,
        stop=lambda: bool(signals.requested),
    )
    bar.n = done * accumulation  # the last batch was taken from it, but not asked for the next
    bar.close()
    return done, state


def batches_on_device(job: Job, start: int) -> Iterator[Batch]:
    """Yield augmented batches for ever; copying to a GPU overlaps with its work."""
    device = job.accelerator.device
    for pictures in job.stream.batches(start):
        pictures = pictures.pin_memory() if device.type == "cuda" else pictures
        pictures = pictures.to(device, non_blocking=True)
        yield {name: transform(pictures) for name, transform in job.transforms.items()}


def draw_first_views(job: Job, path: Path) -> None:
    """Write the picture of the first eight pictures and their views."""
    batches = job.stream.batches(0)
    pictures = next(batches)[:8].to(job.accelerator.device)
    batches.close()  # type: ignore[attr-defined]
    views = next(iter(job.transforms.values()))(pictures)
    draw_views(path, pictures, views, mean=job.views.mean, std=job.views.std)


def measure(job: Job) -> dict[str, float]:
    """Probe the backbone where the training pictures have labels; labels never reach the training."""
    split = probe_split(job.store.labels) if job.store and job.store.labels is not None else None
    if job.store is None or split is None:
        return {}
    backbone: Any = job.method.deployed
    features = partial(extract_features, backbone, job.store, settings=job.views, device=job.accelerator.device)
    return probe(lambda indices: features(indices=indices), split)


def leave_results(job: Job, run: RunDir, state: dict[str, Any]) -> str:
    """Write curves.png, model/ and results.json; returns the summary for people."""
    optim = take(OptimConfig, job.settings)
    metrics = {f"{name}_before": value for name, value in state["before"].items()}
    metrics |= {f"{name}_after": value for name, value in measure(job).items()}
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
        steps=job.max_steps,
        epochs=job.max_steps / job.epoch_steps if job.epoch_steps else None,
        seconds=state["seconds"],
        images_per_second=job.max_steps * optim.batch_size / state["seconds"],
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
