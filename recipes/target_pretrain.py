"""Adapt a backbone to your own images, without labels: Φ_pre → target pretraining → Φ_T (paper §III-B, Eq. 3).

    accelerate launch recipes/target_pretrain.py                    # the embedded digits: minutes on a laptop
    accelerate launch recipes/target_pretrain.py --dataset path/to/images --init timm --backbone resnet18.tv_in1k
    accelerate launch recipes/target_pretrain.py --config recipes/configs/target_pretrain/cifar10_byol_paper.yaml

Every setting is one flat key: defaults < --config file < command line; --help lists them. Without --config and
--dataset the settings of configs/target_pretrain/digits_METHOD.yaml are used. The folder --output_dir then holds
config.yaml, scan.json, augmentations.png, metrics.jsonl, curves.png, checkpoints/, model/ (loads in timm and
transformers) and results.json. Started again with the same settings, an unfinished run continues where it was.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tpssl_hf.config.parser import config_files, method_named, parse_with_method, read_config_file, take
from tpssl_hf.config.shared import DataConfig, ModelConfig, OptimConfig, PushConfig, RunConfig
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.pretrain.budget import fit_to_length, plan_for_budget
from tpssl_hf.tasks.pretrain.config import HealthConfig, PretrainConfig
from tpssl_hf.tasks.pretrain.helped import accuracies, sentence, verdict
from tpssl_hf.tasks.pretrain.run import Job, cautions, finished_backbone, prepare, pretrain, probed
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.checkpoint_manager import open_run_dir
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import CONFIG, RESULTS, RunDir, StopSignals, read_metrics

PAPER = "arXiv:2205.03001"
GROUPS: list[type] = [PretrainConfig, HealthConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, PushConfig]
CONFIGS = Path(__file__).parent / "configs/target_pretrain"


def main() -> int:
    """Settle the settings, adapt, and publish if asked to; returns the exit code."""
    settings, method_config = read_settings(sys.argv[1:])
    options = take(RunConfig, settings)
    accelerator = make_accelerator(options)
    say: Callable[..., None] = print if accelerator.is_main_process else lambda *_: None
    push = validate_push(settings, accelerator, say)
    if settings["budget"]:
        apply_time_budget(settings, method_config, accelerator, say)
        if settings["plan"]:
            return 0
    return run_once(settings, method_config, accelerator, say) or push_finished(push, say)


def read_settings(arguments: list[str]) -> tuple[dict[str, Any], Any]:
    """Resolve every key; the embedded digits are the default where neither a data set nor a file is given."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not config_files(arguments) and "--dataset" not in given:
        digits = CONFIGS / f"digits_{method_named(arguments, "byol")}.yaml"
        arguments = ["--config", str(digits), *arguments] if digits.exists() else arguments
    methods = {name: (spec.config, spec.defaults) for name, spec in PRETRAIN.items()}
    settings, method_config = parse_with_method(arguments, GROUPS, methods, description=__doc__ or "")
    if settings["l2_weight"] is None:  # METHODS: a pull toward random weights means nothing
        settings["l2_weight"] = 0.0 if settings["init"] == "random" else 1e-2
    return settings, method_config


def apply_time_budget(
    settings: dict[str, Any], method_config: Any, accelerator: Accelerator, say: Callable[..., None]
) -> None:
    """Put batch size, length, rate and momentum that fit the budget in; a run that has begun keeps its own."""
    begun = Path(settings["output_dir"]) / CONFIG
    former = read_config_file(begun) if begun.exists() else {}
    if former.get("budget") == settings["budget"] and former.get("max_steps"):
        for name in ("batch_size", "max_steps", "learning_rate", "base_momentum", "key_momentum"):
            if name in settings:
                settings[name] = former[name]
            if hasattr(method_config, name):
                setattr(method_config, name, former[name])
        return
    say(f"timing this machine for a budget of {settings['budget']}")
    chosen = plan_for_budget(settings, method_config, accelerator)
    settings["batch_size"], settings["max_steps"] = chosen.batch_size, chosen.max_steps
    say("\n".join([chosen.summary(), *fit_to_length(settings, method_config, chosen)]))


def run_once(settings: dict[str, Any], method_config: Any, accelerator: Accelerator, say: Callable[..., None]) -> int:
    """Make, or finish, the run; returns the exit code."""
    with ExitStack() as stack:
        run, finished = open_run_dir(stack, settings, accelerator, say)
        if finished:
            return 0
        signals = stack.enter_context(StopSignals())
        say(describe(accelerator, THREADS))
        job = prepare(settings, method_config, accelerator, run)
        if note := job.origin.size_note(job.views.image_size):
            say(note)
        for caution in cautions(job):
            say(caution)
        done, state = pretrain(job, run, signals, say)
        if done < job.max_steps and not state["stop_reason"]:
            say(f"stopped after step {done} of {job.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        if run:
            say(save_results(job, run, done, state))
    accelerator.end_training()
    return 0


def save_results(job: Job, run: RunDir, done: int, state: dict[str, Any]) -> str:
    """Write curves.png, model/ and results.json; returns the summary for people."""
    optim = take(OptimConfig, job.settings)
    backbone = finished_backbone(job)
    right = {"before": state["before"], "statistics_only": state["statistics_only"], "after": probed(job, backbone)}
    metrics = {f"{name}_{when}": v for when, answers in right.items() for name, v in accuracies(answers).items()}
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
        machine=describe(job.accelerator, THREADS),
        images_per_second=done * optim.batch_size / state["seconds"],
        metrics=metrics,
        verdict=verdict(**right),
        config=job.settings,
    )
    provenance = {key: results[key] for key in ("recipe", "method", "dataset", "init", "seed", "steps", "versions")}
    save_timm_folder(
        backbone,
        run.path / "model",
        preprocessing=job.views.preprocessing,
        provenance={**provenance, "paper": PAPER},
        license=job.origin.license,
    )
    run.write_json(RESULTS, results)
    return summary(run.path, results)


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines = results["metrics"], []
    for title, name in (("kNN accuracy", "knn_accuracy"), ("linear probe", "linear_probe_accuracy")):
        if f"{name}_after" in metrics:
            before, alone, after = (100 * metrics[f"{name}_{when}"] for when in ("before", "statistics_only", "after"))
            lines.append(
                f"  {title:13} {before:.1f} % before, {alone:.1f} % with nothing but new BatchNorm statistics, "
                f"{after:.1f} % after (training images, labels held out)"
            )
    judged, model = results["verdict"], folder / "model"
    ask = "python recipes/verdict.py --adapted {} --base {} --backbone {} --dataset FOLDER --labels labels.csv".format(
        folder, results["config"]["init"], results["config"]["backbone"]
    )
    use = f"timm.create_model('local-dir:{model}', pretrained=True)"
    steps = {
        "worse": [f"keep the weights it started from; to look at these: {use}", f"what makes it worse: {ask}"],
        "unknown": [f"did it help? With a few labels: {ask}", f"use them anywhere: {use}"],
    }.get(judged["verdict"], [f"use them anywhere: {use}", f"what few labels make of it: {ask}"])
    steps.append(
        "adapt to your own images: accelerate launch recipes/target_pretrain.py "
        "--dataset FOLDER --backbone resnet18.tv_in1k --init timm --output_dir outputs/mine"
    )
    return "\n".join(
        [
            f"\n{sentence(judged)}",
            f"Adapted {results['backbone']} ({results['init']['kind']} weights) to {results['dataset']['name']}: "
            f"{results['steps']} steps in {results['seconds']:.0f} s, {results['images_per_second']:.0f} images/s",
            *([f"  {results['stopped']}"] if results["stopped"] else []),
            *lines,
            f"  weights       {model}",
            f"  look at       {folder / 'curves.png'}",
            *(f"  {'next' if number == 0 else '':13} {step}" for number, step in enumerate(steps)),
        ]
    )


if __name__ == "__main__":
    run_cli(main)
