"""What a finished target pretraining writes: curves.png, model/, results.json, and a summary for people."""

from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import flat
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.pretrain.helped import accuracies, sentence, verdict
from tpssl_hf.tasks.pretrain.prepare import PretrainRun, finished_backbone, probed
from tpssl_hf.tasks.pretrain.run import Progress
from tpssl_hf.training.accelerator import describe
from tpssl_hf.training.provenance import PAPER, run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir, read_metrics


def save_results(run: PretrainRun, run_dir: RunDir, done: int, progress: Progress) -> str:
    """Write curves.png, model/ and results.json; returns the summary for people."""
    args, backbone = run.args, finished_backbone(run)
    right = {
        "before": progress.before,
        "statistics_only": progress.statistics_only,
        "after": probed(run, backbone),
    }
    metrics = {f"{name}_{when}": v for when, answers in right.items() for name, v in accuracies(answers).items()}
    draw_curves(run_dir.path / "curves.png", read_metrics(run_dir.path / "metrics.jsonl"))
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
        seed=args.run.seed,
        steps=done,
        stopped=progress.stop_reason,
        epochs=done / run.epoch_steps if run.epoch_steps else None,
        seconds=progress.seconds,
        machine=describe(run.accelerator),
        images_per_second=done * args.optim.batch_size / progress.seconds,
        metrics=metrics,
        verdict=verdict(**right),
        config=flat(args),
    )
    provenance = {name: results[name] for name in ("recipe", "method", "dataset", "init", "seed", "steps", "versions")}
    save_timm_folder(
        backbone,
        run_dir.path / "model",
        preprocessing=run.views.preprocessing,
        provenance={**provenance, "paper": PAPER},
        license=run.origin.license,
    )
    run_dir.write_json(RESULTS, results)
    return summary(run_dir.path, results)


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines = results["metrics"], []
    for title, name in (("kNN accuracy", "knn_accuracy"), ("linear probe", "linear_probe_accuracy")):
        if f"{name}_after" in metrics:
            before, alone, after = (100 * metrics[f"{name}_{when}"] for when in ("before", "statistics_only", "after"))
            lines.append(
                f"  {title:13} {before:.1f} % before, {alone:.1f} % with re-estimated BatchNorm statistics only, "
                f"{after:.1f} % after (training images, labels held out)"
            )
    return "\n".join(
        [
            f"\n{sentence(results['verdict'])}",
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
