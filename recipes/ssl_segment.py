"""Finetune a segmenter with few masks and many images (paper §III-A, Eq. 4; Tables II, III, IV).

    accelerate launch recipes/ssl_segment.py                       # CutMix, 100 masks of the embedded digit scenes
    accelerate launch recipes/ssl_segment.py --dataset path/to/folder --labels 5% --init outputs/mine/model
    accelerate launch recipes/ssl_segment.py --config recipes/configs/ssl_segment/voc_1pct_cutmix_paper.yaml

Every setting is one flat key: defaults < --config file < command line; --help lists them. Without --config and
--dataset the settings of configs/ssl_segment/digit_scenes.yaml are used. The folder --output_dir then holds
config.yaml, labels.json, augmentations.png, metrics.jsonl, curves.png, predictions.png, checkpoints/, model/ (loads in
transformers after `import tpssl_hf`) and results.json. Started again with the same settings, an unfinished run
continues where it was. --label_seeds 1,2,3 makes a run for each draw of masks in a folder of its own, and a
results.json over all of them.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator

from tpssl_hf.config.parser import config_files, parse_with_method, take
from tpssl_hf.config.shared import ModelConfig, PushConfig, RunConfig
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation, save_segmenter
from tpssl_hf.plots.segmentation import draw_predictions
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.label_seeds import mean_and_spread, run_each_label_seed
from tpssl_hf.tasks.segment.config import MaskDataConfig, SegmentConfig, SegmentOptimConfig
from tpssl_hf.tasks.segment.run import Job, evaluate, predicted, prepare, published_path, segment
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.checkpoint_manager import open_run_dir
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir, StopSignals, read_metrics

PAPER = "arXiv:2205.03001"
GROUPS: list[type] = [SegmentConfig, MaskDataConfig, ModelConfig, SegmentOptimConfig, RunConfig, PushConfig]
DIGIT_SCENES = Path(__file__).parent / "configs/ssl_segment/digit_scenes.yaml"
DRAWN = 6  # test images in predictions.png


def main() -> int:
    """Settle the settings, then make one run, or one for each draw of masks; returns the exit code."""
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
    """Resolve every key; the embedded digit scenes are the default where neither a data set nor a file is given."""
    given = [argument.partition("=")[0] for argument in arguments]
    if not config_files(arguments) and "--dataset" not in given:
        arguments = ["--config", str(DIGIT_SCENES), *arguments]
    own = {"output_dir": "outputs/ssl_segment", "backbone": "resnet50"}
    methods = {name: (spec.config, {**own, **spec.defaults}) for name, spec in SEGMENT.items()}
    return parse_with_method(arguments, GROUPS, methods, description=__doc__ or "", default="cutmix")


def run_once(
    settings: dict[str, Any],
    method_config: Any,
    accelerator: Accelerator,
    signals: StopSignals,
    say: Callable[..., None],
) -> int:
    """Make, or finish, the run of one draw of masks; returns the exit code."""
    with ExitStack() as stack:
        run, finished = open_run_dir(stack, settings, accelerator, say)
        if finished:
            return 0
        job = prepare(settings, method_config, accelerator, run)
        say(
            f"{job.data.labeled.chosen}: {len(job.data.labeled.indices)} of {len(job.data.store):,} images, "
            f"{len(job.data.class_names)} classes; from {job.origin.kind} weights ({job.origin.name}), BatchNorm "
            f"statistics of the backbone {'frozen' if job.statistics_frozen else 'learned'}; {job.max_steps} steps"
        )
        done, state = segment(job, run, signals, say)
        if done < job.max_steps:
            say(f"stopped after step {done} of {job.max_steps}; the same command continues from there")
            return signals.exit_code or 143  # or another process of the run was told
        if run:
            say(save_results(job, run, state))
    return 0


def save_results(job: Job, run: RunDir, state: dict[str, Any]) -> str:
    """Score the last network once, write images, model/ and results.json; returns the summary for people."""
    data, settings = job.data, job.settings
    draw_curves(run.path / "curves.png", read_metrics(run.path / "metrics.jsonl"))
    if data.test:
        draw_test_images(job, run.path / "predictions.png")
    results = run_facts(
        recipe="ssl_segment",
        method=settings["method"],
        task="semantic segmentation",
        dataset={"name": data.source.name, "fingerprint": data.store.fingerprint, "images": len(data.store)},
        unlabeled_images=len(data.unlabeled) if "unlabeled" in job.transforms else 0,
        test={"images": len(data.test.indices), "split": settings["test_split"]} if data.test else None,
        labels={
            "count": len(data.labeled.indices),
            "chosen": data.labeled.chosen,
            "seed": settings["label_seed"],
        },
        class_names=list(data.class_names),
        backbone=settings["backbone"],
        init=job.origin.as_dict(),
        backbone_statistics_frozen=job.statistics_frozen,
        seed=settings["seed"],
        scored=job.scored,
        protocol=f"last {job.scored} on the test split, images and masks with the shorter side at most "
        f"{settings['shorter_side']} px, one confusion matrix of all images, mean over all classes",
        steps=job.max_steps,
        seconds=state["seconds"],
        machine=describe(job.accelerator, THREADS),
        metrics=evaluate(job, data.test) if data.test else {},
        config=settings,
    )
    kept = ("recipe", "method", "dataset", "labels", "init", "seed", "steps", "metrics", "versions")
    save_segmenter(
        cast(TpsslForSemanticSegmentation, job.method.deployed),
        run.path / "model",
        shorter_side=settings["shorter_side"],
        image_size=job.views.crop_size if settings["test_mode"] == "resize" else None,
        window=job.views.crop_size if settings["test_mode"] == "slide" else None,
        provenance={**{key: results[key] for key in kept}, "paper": PAPER, "license": job.origin.license},
    )
    results["published_path"] = published_path(job, run.path / "model")
    run.write_json(RESULTS, results)
    return summary(run.path, results)


def draw_test_images(job: Job, path: Path) -> None:
    """Draw what is found in some test images, evenly spaced over the set."""
    test = job.data.test
    assert test is not None
    places = np.linspace(0, len(test.indices) - 1, min(DRAWN, len(test.indices))).round().astype(np.int64)
    rows = [
        (pixels.cpu().numpy(), truth.cpu().numpy(), found.cpu().numpy())
        for batch in predicted(job, test, test.indices[places])
        for pixels, truth, found in zip(*batch, strict=True)
    ]
    draw_predictions(path, rows, job.data.class_names, job.data.palette)


def save_label_seed_summary(run: RunDir, settings: dict[str, Any], seeds: list[int]) -> str:
    """Write results.json over several draws of masks; returns the summary for people."""
    parts = [json.loads((run.path / f"label_seed_{seed}" / RESULTS).read_text(encoding="utf-8")) for seed in seeds]
    values = [part["metrics"]["mean_iou"] for part in parts if "mean_iou" in part["metrics"]]
    spread = mean_and_spread(values)
    names = ("recipe", "method", "task", "dataset", "test", "class_names", "backbone", "init", "scored", "protocol")
    shared = {name: parts[0][name] for name in names}
    seconds = sum(part["seconds"] for part in parts)
    run.write_json(RESULTS, run_facts(**shared, label_seeds=seeds, mean_iou=spread, seconds=seconds, config=settings))
    if not values:
        return f"\n{len(seeds)} draws of masks, no test images, so no score: {run.path}"
    plus = f" ± {100 * spread['standard_deviation']:.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return (
        f"\nMean IoU over {len(seeds)} draws of masks: {100 * spread['mean']:.1f}{plus} % ({each})\n"
        f"  in {run.path / RESULTS}"
    )


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines, warning = results["metrics"], [], results["published_path"]["warning"]
    if metrics:
        ranked = sorted(zip(metrics["per_class_iou"], results["class_names"], strict=True))
        lines = [
            f"  mean IoU      {100 * metrics['mean_iou']:.1f} % of {results['test']['images']:,} test images "
            f"(last {results['scored']})",
            f"  from          {ranked[0][1]} {100 * ranked[0][0]:.1f} % to {ranked[-1][1]} "
            f"{100 * ranked[-1][0]:.1f} %; pixel accuracy {100 * metrics['pixel_accuracy']:.1f} %",
        ]
    images = [folder / name for name in ("curves.png", "predictions.png") if metrics or name == "curves.png"]
    return "\n".join(
        [
            f"\nFinetuned {results['backbone']} with {results['method']} on {results['labels']['count']} masks of "
            f"{results['dataset']['name']}: {results['steps']} steps in {results['seconds']:.0f} s",
            *lines,
            *([f"  warning       {warning}"] if warning else []),
            f"  weights       {folder / 'model'}",
            f"  look at       {', '.join(map(str, images))}",
            "  next          use it anywhere: import tpssl_hf; "
            f"pipeline('image-segmentation', model='{folder / 'model'}')",
        ]
    )


if __name__ == "__main__":
    run_cli(main)
