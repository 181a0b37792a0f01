"""Finetune a classifier with few labels and many images (paper §III-A, Eq. 4; Tables I, V, VI).

    accelerate launch recipes/ssl_classify.py                       # FixMatch, 40 labels of the embedded digits
    accelerate launch recipes/ssl_classify.py --dataset path/to/images --labels labels.csv --init outputs/mine/model
    accelerate launch recipes/ssl_classify.py --config recipes/configs/ssl_classify/cifar10_40_fixmatch.yaml

Every setting is one flat key: defaults < --config file < command line; --help lists them. Without --config and
--dataset the settings of configs/ssl_classify/digits.yaml are used, from the weights of the default target
pretraining where they are there. The folder --output_dir then holds config.yaml, labels.json, augmentations.png,
metrics.jsonl, curves.png, pseudo_labels.png, checkpoints/, model/ (loads in timm and transformers) and results.json.
Started again with the same settings, an unfinished run continues where it was. --label_seeds 1,2,3 makes a run for
each draw of labels in a folder of its own, and a results.json over all of them.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, cast

from accelerate import Accelerator
from torch import nn

from tpssl_hf.config.parser import config_files, parse_with_method, take
from tpssl_hf.config.shared import DataConfig, ModelConfig, PushConfig, RunConfig
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.monitoring.pseudo_labels import draw_pseudo_labels
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.classify.config import ClassifyConfig, FinetuneConfig
from tpssl_hf.tasks.classify.run import Job, evaluations, finetune, prepare, published_path, score_test
from tpssl_hf.tasks.label_seeds import mean_and_spread, run_each_label_seed
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.checkpoint_manager import open_run_dir
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir, StopSignals, read_metrics

PAPER = "arXiv:2205.03001"
GROUPS: list[type] = [ClassifyConfig, DataConfig, ModelConfig, FinetuneConfig, RunConfig, PushConfig]
DIGITS = Path(__file__).parent / "configs/ssl_classify/digits.yaml"
ADAPTED_DIGITS = Path("outputs/digits_byol/model")  # where the default target pretraining leaves its weights
LAST_EVALUATIONS = 20


def main() -> int:
    """Settle the settings, then make one run, or one for each draw of labels; returns the exit code."""
    settings, method_config = read_settings(sys.argv[1:])
    accelerator = make_accelerator(take(RunConfig, settings))
    say: Callable[..., None] = print if accelerator.is_main_process else lambda *_: None
    push = validate_push(settings, accelerator, say)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        say(describe(accelerator, THREADS))
        code = run_each_label_seed(
            settings,
            accelerator,
            lambda one: run_once(one, method_config, accelerator, signals, say),
            lambda whole, seeds: say(save_label_seed_summary(whole, settings, seeds)),
        )
    return code or push_finished(push, say)


def read_settings(arguments: list[str]) -> tuple[dict[str, Any], Any]:
    """Resolve every key; the embedded digits are the default where neither a data set nor a file is given."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not config_files(arguments) and "--dataset" not in given:
        arguments = ["--config", str(DIGITS), *arguments]
        if "--init" not in given and "--backbone" not in given:
            adapted = (ADAPTED_DIGITS / "config.json").is_file()
            arguments += ["--init", str(ADAPTED_DIGITS) if adapted else "random"]
    own = {"output_dir": "outputs/ssl_classify"}
    methods = {name: (spec.config, {**own, **spec.defaults}) for name, spec in CLASSIFY.items()}
    return parse_with_method(arguments, GROUPS, methods, description=__doc__ or "", default="fixmatch")


def run_once(
    settings: dict[str, Any],
    method_config: Any,
    accelerator: Accelerator,
    signals: StopSignals,
    say: Callable[..., None],
) -> int:
    """Make, or finish, the run of one draw of labels; returns the exit code."""
    with ExitStack() as stack:
        run, finished = open_run_dir(stack, settings, accelerator, say)
        if finished:
            return 0
        job = prepare(settings, method_config, accelerator, run)
        say(
            f"{job.data.labeled.chosen}: {len(job.data.labeled.indices)} of {len(job.data.store):,} images; "
            f"from {job.origin.kind} weights ({job.origin.name}); {job.max_steps} steps"
        )
        for line in job.data.notes:
            say(f"  {line}")
        for note in (rate_note(settings, job.origin.kind), job.origin.size_note(job.views.image_size)):
            if note:
                say(note)
        done, state = finetune(job, run, signals, say)
        if done < job.max_steps:
            say(f"stopped after step {done} of {job.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        if run:
            say(save_results(job, run, state))
    return 0


def rate_note(settings: dict[str, Any], start: str) -> str | None:
    """Say so if pretrained weights are about to be undone: a rate that is far above 0.03 for 64, in proportion."""
    proportional = 0.03 * settings["batch_size"] / 64
    if start == "random" or settings["optimizer"] != "sgd" or settings["learning_rate"] <= 2 * proportional:
        return None
    return (
        f"note: learning_rate {settings['learning_rate']:g} is high for {settings['batch_size']} labeled images a "
        "step and may undo what was pretrained; "
        f"in proportion to FixMatch's 0.03 for 64 it would be {proportional:.2g}"
    )


def save_results(job: Job, run: RunDir, state: dict[str, Any]) -> str:
    """Score the last EMA network once, write images, model/ and results.json; returns the summary for people."""
    data, settings = job.data, job.settings
    entries = read_metrics(run.path / "metrics.jsonl")
    draw_curves(run.path / "curves.png", entries)
    draw_pseudo_labels(run.path / "pseudo_labels.png", entries, data.labeled.class_names)
    network = cast(nn.Module, job.method.deployed)
    scored, answers = score_test(job)
    validation = evaluations(job, test=False)
    last = [entry["test_accuracy"] for entry in entries if "test_accuracy" in entry][-LAST_EVALUATIONS:]
    if last:
        scored[f"median_of_last_{len(last)}_evaluations"] = median(last)
    dataset = {"name": data.source.name, "fingerprint": data.store.fingerprint, "images": len(data.store)}
    labels = {"count": len(data.labeled.indices), "chosen": data.labeled.chosen, "seed": settings["label_seed"]}
    results = run_facts(
        recipe="ssl_classify",
        method=settings["method"],
        task="image classification",
        dataset=dataset,
        unlabeled_images=len(data.unlabeled) if "unlabeled" in job.transforms else 0,
        test={"images": len(data.test.indices), "split": data.test.name} if data.test else None,
        labels=labels,
        notes=list(data.notes),
        class_names=list(data.labeled.class_names),
        backbone=settings["backbone"],
        init=job.origin.as_dict(),
        seed=settings["seed"],
        protocol="last EMA network on the test split, never the best on it",
        steps=job.max_steps,
        seconds=state["seconds"],
        machine=describe(job.accelerator, THREADS),
        metrics={**scored, **validation},
        config=settings,
    )
    kept = ("recipe", "method", "dataset", "labels", "init", "seed", "steps", "metrics", "versions")
    save_timm_folder(
        network,
        run.path / "model",
        preprocessing=job.views.preprocessing,
        provenance={**{key: results[key] for key in kept}, "paper": PAPER},
        license=job.origin.license,
        label_names=list(data.labeled.class_names),
    )
    results["published_path"] = published_path(job, run.path / "model", answers)
    run.write_json(RESULTS, results)
    return summary(run.path, results)


def save_label_seed_summary(run: RunDir, settings: dict[str, Any], seeds: list[int]) -> str:
    """Write results.json over several draws of labels; returns the summary for people."""
    parts = [json.loads((run.path / f"label_seed_{seed}" / RESULTS).read_text(encoding="utf-8")) for seed in seeds]
    values = [part["metrics"]["accuracy"] for part in parts if "accuracy" in part["metrics"]]
    spread = mean_and_spread(values)
    shared = {
        key: parts[0][key] for key in ("recipe", "method", "task", "dataset", "test", "backbone", "init", "protocol")
    }
    seconds = sum(part["seconds"] for part in parts)
    run.write_json(RESULTS, run_facts(**shared, label_seeds=seeds, accuracy=spread, seconds=seconds, config=settings))
    if not values:
        return f"\n{len(seeds)} draws of labels, no test images, so no score: {run.path}"
    plus = f" ± {100 * spread['standard_deviation']:.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return (
        f"\nAccuracy over {len(seeds)} draws of labels: {100 * spread['mean']:.1f}{plus} % ({each})\n"
        f"  in {run.path / RESULTS}"
    )


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines, warning = results["metrics"], [], results["published_path"]["warning"]
    if "accuracy" in metrics:
        count = results["test"]["images"]
        lines.append(f"  accuracy      {100 * metrics['accuracy']:.1f} % of {count:,} test images (last EMA network)")
        lines.append(
            f"  sure and wrong  expected calibration error {100 * metrics['expected_calibration_error']:.1f} %"
        )
    if "validation_accuracy" in metrics:
        lines.append(f"  validation    {100 * metrics['validation_accuracy']:.1f} % of the labels held out")
    return "\n".join(
        [
            f"\nFinetuned {results['backbone']} with {results['method']} on {results['labels']['count']} labels of "
            f"{results['dataset']['name']}: {results['steps']} steps in {results['seconds']:.0f} s",
            *lines,
            *([f"  warning       {warning}"] if warning else []),
            f"  weights       {folder / 'model'}",
            f"  look at       {folder / 'curves.png'}, {folder / 'pseudo_labels.png'}",
            f"  next          use it anywhere: pipeline('image-classification', model='{folder / 'model'}')",
        ]
    )


if __name__ == "__main__":
    run_cli(main)
