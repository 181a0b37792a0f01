"""Analyses of runs: what each snapshot of target pretraining is worth, and tables and curves of finished finetunings.

Paper §IV-E.1, 4 and 5: Table VI, Fig. 3 and 4.
"""

import json
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tpssl_hf.analysis.common import AnalysisResult, Weights, class_count, features, markdown, network_of, open_split
from tpssl_hf.analysis.config import AnalyzeArgs
from tpssl_hf.analysis.figures import draw_convergence, draw_steps
from tpssl_hf.analysis.finished_runs import (
    convergence_curves,
    find_runs,
    missing_commands,
    steps_of_runs,
    transfer_table,
)
from tpssl_hf.config.parser import read_config_file
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import draw_labels
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.probes import knn_accuracy, linear_probe_accuracy, probe_split
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.pretrain.anchor import Anchor
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.training.checkpoint import STATE, TENSORS_SUFFIX
from tpssl_hf.training.run_dir import CHECKPOINTS, CONFIG, RunDir


def transfer(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Arrange finished runs by start and by data set (Table VI), and say how to make those that are missing."""
    runs = find_runs(args.task.runs)
    table = [
        {"start": start, "task": task, "run": str(one.folder), "draw": number, "value": value}
        for start, row in transfer_table(runs).items()
        for task, one in row.items()
        for number, value in enumerate(one.accuracies)
    ]
    lines = [f"Test accuracy, %, of {runs[0].config['method']} by start and data set@labels", ""]
    lines += markdown(table, "start", "task")
    if commands := missing_commands(transfer_table(runs)):
        lines += ["", "The cells that are missing are made by:", *(f"  {command}" for command in commands)]
    return AnalysisResult(table, lines, {"method": runs[0].config["method"], "missing": commands, "paper": "Table VI"})


def convergence(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Draw the test accuracy of finished runs along the way (Fig. 4)."""
    runs = find_runs(args.task.runs)
    curves = convergence_curves(runs)
    draw_convergence(run.path / "convergence.png", curves)
    table = [
        {"run": str(curve.run), "title": curve.title, "task": curve.group, "epoch": epoch, "value": value}
        for curve in curves
        for epoch, value in zip(curve.epochs, curve.accuracies, strict=True)
    ]
    lines = [f"{len(curves)} curves of {len(runs)} runs: {run.path / 'convergence.png'}"]
    return AnalysisResult(table, lines, {"paper": "Fig. 4"})


def steps(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Accuracy over steps of target pretraining (Fig. 3): of finished runs, or of probes of one run's snapshots."""
    config = args.task
    if config.runs:
        runs = find_runs(config.runs)
        series = steps_of_runs(runs)
        method = runs[0].config["method"]
        draw_steps(run.path / "steps.png", series, title=f"test accuracy of {method} by its start")
        table = [
            {"task": task, "step": step, "draw": number, "value": value}
            for task, points in series.items()
            for step, values in points.items()
            for number, value in enumerate(values)
        ]
        return AnalysisResult(table, [*markdown(table, "task", "step")], {"method": method, "paper": "Fig. 3"})
    if not config.run:
        raise InputError(
            "steps needs --run FOLDER of a target pretraining whose checkpoints to score, or --runs of finetunings "
            "that started from its snapshots."
        )
    return _score_snapshots(args, Path(config.run), accelerator, run)


def _score_snapshots(args: AnalyzeArgs, folder: Path, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Save each snapshot as a folder of weights, and score frozen features of held-out training images."""
    config = args.task
    counts = _whole_numbers(config.labels)
    if config.repeats < 1:
        raise InputError(f"repeats {config.repeats}: give a number of label seeds from 1.")
    source, store = open_split(args.data, accelerator)
    classes = class_count(source, store, "training")
    assert store.labels is not None  # counted above
    split = probe_split(store.labels, seed=config.seed)
    if split is None:
        raise InputError("there are too few labeled images to probe with; each class needs several of them.")
    draws = {
        count: [draw_labels(split.bank_labels, count, classes, mode="balanced", seed=n) for n in range(config.repeats)]
        for count in counts
    }
    snapshots = save_snapshots(folder, store, args, accelerator, run.path / "snapshots")
    former = read_config_file(folder / CONFIG)
    start = Weights("Φ_pre as it came", former["init"], former["backbone"])
    table: list[dict[str, Any]] = []
    for step, weights in [(0, start), *snapshots.items()]:
        bank, queries = (
            features(weights, store, part, args, accelerator.device, training=store)
            for part in (split.bank, split.queries)
        )
        row = {"step": step, "model": weights.key, "images": len(queries)}
        value = knn_accuracy(bank, split.bank_labels, queries, split.query_labels)
        table.append({**row, "probe": f"kNN, {len(bank)} labels", "value": value})
        for count, drawn in draws.items():
            for seed, rows in enumerate(drawn):
                value = linear_probe_accuracy(bank[rows], split.bank_labels[rows], queries, split.query_labels)
                table.append({**row, "probe": f"linear, {count} labels", "seed": seed, "value": value})
    return _steps_result(table, snapshots, args, run)


def _whole_numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"labels {text!r} is not a list of numbers above 0 such as 40,250; give one.")
    return [int(part) for part in parts]


def _steps_result(
    table: list[dict[str, Any]], snapshots: dict[int, Weights], args: AnalyzeArgs, run: RunDir
) -> AnalysisResult:
    """Draw the figure and describe it."""
    series: dict[str, dict[int, list[float]]] = {}
    untouched: dict[str, list[float]] = {}
    for entry in table:
        if entry["model"] == "Φ_pre as it came":
            untouched.setdefault(entry["probe"], []).append(entry["value"])
        else:
            series.setdefault(entry["probe"], {}).setdefault(entry["step"], []).append(entry["value"])
    draw_steps(
        run.path / "steps.png",
        series,
        title="frozen features of held-out training images (a cheap stand-in for finetuning)",
        untouched={name: mean(values) for name, values in untouched.items()},
    )
    last = snapshots[max(snapshots)]
    lines = [
        f"Probes of frozen features on held-out training images, %, by snapshot: {run.path / 'steps.png'}",
        "A cheap stand-in: the paper finetunes from every snapshot. Each has re-estimated BatchNorm statistics, as",
        "the weights of a run have them; the learning rate was annealed at the last snapshot only.",
        "",
        *markdown(table, "model", "probe"),
        "",
        "To finetune from a snapshot, then draw Fig. 3 with --analysis steps --runs:",
        f"  tpssl-hf classify --method supervised --init {last.init} "
        f"--backbone {last.backbone} --dataset {args.data.dataset} --image_size {args.data.image_size} "
        "--output_dir FOLDER",
    ]
    return AnalysisResult(table, lines, {"paper": "Fig. 3", "protocol": "probes of frozen features, no finetuning"})


def save_snapshots(
    folder: Path, store: ImageCache, args: AnalyzeArgs, accelerator: Accelerator, output_dir: Path
) -> dict[int, Weights]:
    """Write Φ_pre and the backbone of every checkpoint of a target pretraining as folders of weights.

    All of them get BatchNorm statistics of undistorted images, as the weights that the run itself leaves.

    Args:
        folder: of the run.
        store: its images.
        args: of the analysis.
        accelerator: where to compute.
        output_dir: where to write ``step_N``.

    Returns:
        Step -> weights; step 0 is Φ_pre.

    Raises:
        InputError: if the folder holds no checkpoints of a target pretraining, or ones that cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"run {folder} holds no {CONFIG}; give the folder of a target pretraining.")
    config = read_config_file(folder / CONFIG)
    found = {int(p.name[5:]): p for p in folder.glob(f"{CHECKPOINTS}/step_*") if p.name[5:].isdecimal()}
    if config.get("method") not in PRETRAIN or not found:
        raise InputError(
            f"run {folder} holds no checkpoints of a target pretraining; run `tpssl-hf pretrain` with "
            "--save_every and --keep_checkpoints as many as there shall be snapshots."
        )
    start = Weights("step_0", config["init"], config["backbone"])
    device = accelerator.device
    network, views, origin = network_of(start, args.data.image_size, config["seed"], device)
    former = json.loads((found[max(found)] / STATE).read_text(encoding="utf-8"))["facts"]["origin"]
    if former != origin.as_dict():
        raise InputError(f"{config['init']} is no longer what {folder} started from; put the former weights there.")
    output_dir.mkdir(parents=True, exist_ok=True)
    snapshots = {}
    for step in (0, *sorted(found)):
        one = _backbone_in(found[step], config).to(device) if step else network
        target = output_dir / f"step_{step}"
        save_timm_folder(
            with_reestimated_batchnorm(one, sample_for_statistics(store), views, device),
            target,
            preprocessing=views.preprocessing,
            provenance={"recipe": "analyze", "snapshot_of": folder.name, "method": config["method"], "step": step},
        )
        snapshots[step] = Weights(f"step_{step}", str(target), config["backbone"])
    return snapshots


def _backbone_in(path: Path, config: dict[str, Any]) -> nn.Module:
    """Take the backbone out of a checkpoint of a target pretraining."""
    spec = PRETRAIN[config["method"]]
    set_seed(config["seed"])
    backbone, _ = load_backbone(config["backbone"], init="random", image_size=config["image_size"])
    try:
        own = spec.config(**{item.name: config[item.name] for item in fields(spec.config)})
        method = Anchor(spec.build(backbone, own), 0.0)
        method.load_state_dict(load_file(path / f"method{TENSORS_SUFFIX}"))
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged, or of another version of this package ({reason}).") from error
    return method.deployed
