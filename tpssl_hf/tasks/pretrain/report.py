"""What a finished target pretraining writes: curves.png, model/, results.json, and a summary for people."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tpssl_hf.config.parser import flat
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.pretrain.helped import accuracies, first_line, verdict
from tpssl_hf.tasks.pretrain.prepare import PretrainRun, finished_backbone, probed, teacher_facts
from tpssl_hf.tasks.pretrain.run import Progress, consider
from tpssl_hf.tasks.pretrain.selection import BN_ONLY, CHOOSING, KNOWN_AGAIN, LAST, START
from tpssl_hf.training.accelerator import describe
from tpssl_hf.training.provenance import PAPER, run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir, read_metrics

TITLES = {
    "few_label_accuracy": "4 labels each",
    "knn_accuracy": "kNN accuracy",
    "linear_probe_accuracy": "linear probe",
}
PROVENANCE = ("recipe", "method", "dataset", "init", "teacher", "seed", "steps", "versions")  # told by model/ as well


def save_results(run: PretrainRun, run_dir: RunDir, done: int, progress: Progress) -> str:
    """Write curves.png, model/ and results.json; returns the summary for people."""
    args, last = run.args, finished_backbone(run)
    saved, backbone, gain = choose(run, progress, last, done)
    right = {
        "before": progress.before,
        "statistics_only": progress.statistics_only,
        "after": progress.before if saved == START else probed(run, backbone),
    }
    judged = verdict(**right)
    if run.choosing is not None and saved != START and judged["verdict"] == "worse":  # other labels disagree
        saved, backbone, right["after"] = START, start_of(run), progress.before
        judged = verdict(**right)
    by = "labels" if run.choosing is not None else "crops" if run.selects else None
    metrics = {f"{name}_{when}": v for when, answers in right.items() for name, v in accuracies(answers).items()}
    draw_run(run, run_dir.path, progress)
    results = run_facts(
        recipe="target_pretrain",
        method=args.task.method,
        task="target pretraining",
        dataset={
            "name": run.source.name,
            "fingerprint": run.source.fingerprint,
            "images": len(run.store) if run.store else None,
        },
        backbone=args.model.backbone,
        init=run.origin.as_dict(),
        **teacher_facts(run),
        seed=args.run.seed,
        steps=done,
        stopped=progress.stop_reason,
        epochs=done / run.epoch_steps if run.epoch_steps else None,
        seconds=progress.seconds,
        machine=describe(run.accelerator),
        images_per_second=done * args.optim.batch_size / progress.seconds,
        metrics=metrics,
        verdict=judged,
        saved={
            "candidate": saved,
            "select": args.task.select,
            "gain": gain,
            "curve": progress.selection.curve,
            "by": by,
        },
        batchnorm={"mode": run.batchnorm.mode, "why": run.batchnorm.why},
        config=flat(args),
    )
    if run.selects:
        _save(last, run_dir.path / "model_last", run, {})
    provenance = {name: results[name] for name in PROVENANCE if name in results}
    _save(backbone, run_dir.path / "model", run, {**provenance, "paper": PAPER})
    run_dir.write_json(RESULTS, results)
    return summary(run_dir.path, results)


def draw_run(run: PretrainRun, folder: Path, progress: Progress) -> None:
    """Write curves.png; the last look of the labels that choose is not in the log."""
    entries, levels, chosen = read_metrics(folder / "metrics.jsonl"), {}, progress.selection
    name = CHOOSING if chosen.start is not None else KNOWN_AGAIN
    entries += [{"step": step, name: share} for step, share in chosen.curve[-1:]]
    if chosen.start is not None:
        known = {START: chosen.start, BN_ONLY: run.batchnorm.answers.get(BN_ONLY)}
        levels[name] = {of: sum(right) / len(right) for of, right in known.items() if right}
    elif chosen.crops is not None:
        levels[name] = {START: chosen.crops.mean_rank}
    what = f"{run.args.task.method}, {run.args.model.backbone} on {run.source.name}"
    draw_curves(folder / "curves.png", entries, levels, what=what)


def choose(
    run: PretrainRun, progress: Progress, last: nn.Module, done: int
) -> tuple[str, nn.Module, dict[str, float] | None]:
    """Return the name of what is saved, the network, and its difference to Φ_pre by labels, if these chose it."""
    selection = progress.selection
    if not run.selects:
        return LAST, last, None
    consider(run, selection, LAST, last, done)
    name, gain = selection.chosen()
    if name in (START, LAST):
        return name, start_of(run) if name == START else last, gain
    network = copy.deepcopy(last)
    network.load_state_dict(selection.state)
    return name, network, gain


def start_of(run: PretrainRun) -> nn.Module:
    """Load Φ_pre again; random weights are never chosen."""
    model = run.args.model
    backbone, _ = load_backbone(model.backbone, init=model.init, image_size=run.args.data.image_size)
    return backbone.to(run.accelerator.device).eval()


def _save(backbone: nn.Module, folder: Path, run: PretrainRun, provenance: Mapping[str, Any]) -> None:
    save_timm_folder(
        backbone,
        folder,
        preprocessing=run.views.preprocessing,
        provenance=dict(provenance),
        license=run.origin.license,
    )


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines = results["metrics"], []
    for name, title in TITLES.items():
        if f"{name}_after" in metrics:
            before, alone, after = (100 * metrics[f"{name}_{when}"] for when in ("before", "statistics_only", "after"))
            lines.append(
                f"  {title:13} {before:.1f} % before, {alone:.1f} % with re-estimated BatchNorm statistics only, "
                f"{after:.1f} % after (training images, labels held out)"
            )
    return "\n".join(
        [
            f"\n{first_line(results)}",
            f"Adapted {results['backbone']} ({results['init']['kind']} weights) to {results['dataset']['name']}: "
            f"{results['steps']} steps in {results['seconds']:.0f} s, {results['images_per_second']:.0f} images/s",
            *([f"  {results['stopped']}"] if results["stopped"] else []),
            *lines,
            f"  weights       {folder / 'model'}",
            f"  look at       {folder / 'curves.png'}",
            *(
                f"  {'next' if number == 0 else '':13} {step}"
                for number, step in enumerate(_next_steps(folder, results))
            ),
        ]
    )


def _next_steps(folder: Path, results: dict[str, Any]) -> list[str]:
    """What to type next, by what the probes say."""
    model = folder / "model"
    ask = (
        f"tpssl-hf verdict --adapted {folder} --base {results['config']['init']} "
        f"--backbone {results['config']['backbone']} --dataset FOLDER --labels labels.csv"
    )
    use = f"timm.create_model('local-dir:{model}', pretrained=True)"
    steps = {
        "worse": [f"keep the weights it started from; to look at these: {use}", f"what makes it worse: {ask}"],
        "unknown": [f"did it help? With a few labels: {ask}", f"use them anywhere: {use}"],
    }.get(results["verdict"]["verdict"], [f"use them anywhere: {use}", f"what few labels make of it: {ask}"])
    return [
        *steps,
        "adapt to your own images: tpssl-hf pretrain --dataset FOLDER --backbone resnet18.tv_in1k --init timm "
        "--output_dir outputs/mine",
    ]
