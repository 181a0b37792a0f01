"""What a finished classification writes: images, model/, results.json, and a summary for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from tpssl_hf.evaluation.calibration import Calibration
from tpssl_hf.evaluation.multilabel import multilabel_scores
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration
from tpssl_hf.metrics.tpssl_classification.tpssl_classification import classification_scores
from tpssl_hf.models.timm_export import SEVERAL_LABELS, THRESHOLDS, save_timm_folder
from tpssl_hf.monitoring.pseudo_labels import draw_pseudo_labels
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.classify.data import Split
from tpssl_hf.tasks.classify.deployment import Deployment, deploy
from tpssl_hf.tasks.classify.run import ClassifyRun, main_score, measure_of, probabilities
from tpssl_hf.tasks.classify.selection import FINETUNED, WORDS, saved_sentence, shares
from tpssl_hf.tasks.finetuning import provenance
from tpssl_hf.tasks.published_path import check_classifier, some_of
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import CALIBRATION, RESULTS, RunDir, read_metrics

LAST_EVALUATIONS = 20
IMAGES = ("augmentations.png", "curves.png", "pseudo_labels.png")  # what a run may have drawn


def save_results(run: ClassifyRun, run_dir: RunDir, seconds: float) -> str:
    """Score the deployed network once, write images, model/ and results.json; returns the summary for people."""
    data, args, deployment = run.data, run.args, deploy(run, run_dir.path)
    entries = read_metrics(run_dir.path / "metrics.jsonl")
    if entries:  # a learner without steps has none
        draw_curves(run_dir.path / "curves.png", entries, what=run.subject)
    draw_pseudo_labels(run_dir.path / "pseudo_labels.png", entries, data.labeled.class_names)
    network, made = deployment.network, deployment.saved["candidate"] == FINETUNED
    metrics, answers = score(run, network, deployment.thresholds)
    last = [entry[name] for entry in entries if (name := f"test_{measure_of(run)}") in entry][-LAST_EVALUATIONS:]
    if last and made:
        metrics[f"median_of_last_{len(last)}_evaluations"] = median(last)
    dataset = {"name": data.source.name, "fingerprint": data.store.fingerprint, "images": len(data.store)}
    labels = {"count": len(data.labeled.indices), "chosen": data.labeled.chosen, "seed": args.task.label_seed}
    results = run_facts(
        recipe="ssl_classify",
        task="image classification",
        dataset=dataset,
        unlabeled_images=len(data.unlabeled) if "unlabeled" in run.transforms else 0,
        test={"images": len(data.test.indices), "split": data.test.name} if data.test else None,
        labels=labels,
        notes=list(data.notes),
        class_names=list(data.labeled.class_names),
        protocol=f"{words_of(run, deployment)} on the test split, never the best on it",
        metrics=metrics,
        beside=deployment.beside,
        saved=deployment.saved,
        calibration=calibration_facts(deployment.calibration),
        **threshold_facts(run, deployment),
        **run.facts(seconds + run.fit_seconds),
    )
    if not made:
        save(run, run.method.deployed, run_dir.path / "model_last", {})
    more = {CALIBRATION: json.dumps(asdict(deployment.calibration)).encode()} if deployment.calibration else {}
    made_by = {**provenance(results), "candidate": deployment.saved["candidate"]}
    made_by |= {} if deployment.thresholds is None else {THRESHOLDS: deployment.thresholds.tolist()}
    save(run, network, run_dir.path / "model", made_by, more)
    results["published_path"] = published_path(run, run_dir.path / "model", network, answers)
    run_dir.write_json(RESULTS, results)
    return summary(run_dir.path, results)


def calibration_facts(calibration: Calibration | MultilabelCalibration | None) -> dict[str, Any] | None:
    """Return what held-out labels say of the deployed network, without the single labels."""
    if calibration is None:
        return None
    if isinstance(calibration, MultilabelCalibration):
        return {**asdict(calibration), "sentence": calibration.sentence()}
    facts = {name: value for name, value in asdict(calibration).items() if name not in ("confidences", "right")}
    expected = {"labels": len(calibration.right), "expected_accuracy": calibration.expected_accuracy()}
    return {**facts, **expected, "sentence": calibration.sentence()}


def threshold_facts(run: ClassifyRun, deployment: Deployment) -> dict[str, Any]:
    """Return from which probability on an image is given each label; nothing where an image has one label."""
    if deployment.thresholds is None:
        return {}
    names = run.data.labeled.class_names
    return {THRESHOLDS: dict(zip(names, deployment.thresholds.tolist(), strict=True))}


def words_of(run: ClassifyRun, deployment: Deployment) -> str:
    """Say which network is deployed."""
    if deployment.saved["candidate"] != FINETUNED:
        return f"{WORDS[deployment.saved['candidate']]}, chosen on training labels,"
    return "last EMA network" if run.max_steps else "label spreading"


def save(
    run: ClassifyRun,
    network: nn.Module,
    folder: Path,
    provenance: dict[str, Any],
    more_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a network as timm and transformers load it."""
    save_timm_folder(
        network,
        folder,
        preprocessing=run.views.preprocessing,
        provenance=provenance,
        license=run.origin.license,
        label_names=list(run.data.labeled.class_names),
        problem_type=SEVERAL_LABELS if run.data.labeled.several else None,
        more_files=more_files,
    )


def score(
    run: ClassifyRun, network: nn.Module, thresholds: np.ndarray | None
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Score a network on test images and held-out labels, as far as there are any.

    Args:
        run: the finished run.
        network: the deployed one.
        thresholds: (K,) of several labels an image, else None.

    Returns:
        The scores, and the probabilities of the test images or None.
    """
    data, metrics, answers = run.data, dict[str, Any](), None
    if data.test is not None:
        answers = probabilities(run, network, data.test)
        if thresholds is None:
            metrics |= classification_scores(answers, data.test.labels)
        else:
            metrics |= multilabel_scores(answers, data.test.labels, thresholds)
    if data.validation is not None:
        metrics[f"validation_{measure_of(run)}"] = main_score(run, network, data.validation)
    return metrics, answers


def published_path(run: ClassifyRun, folder: Path, network: nn.Module, answers: np.ndarray | None) -> dict[str, Any]:
    """Compare the folder that was saved with the deployed network, see :func:`check_classifier`.

    Args:
        run: the finished run.
        folder: what was saved of it.
        network: the deployed one.
        answers: (N, K) probabilities of the test images that were scored, which are not looked at again; None
            without a test split.
    """
    data = run.data
    parts = {"test": data.test, "validation": data.validation}
    parts["training"] = Split(data.store, data.labeled.indices, data.labeled.labels)
    of, split = next((name, split) for name, split in parts.items() if split is not None)
    some = some_of(np.arange(len(split.indices)))
    chosen = replace(split, indices=split.indices[some], labels=split.labels[some])
    own = probabilities(run, network, chosen) if answers is None else answers[some]
    names = list(data.labeled.class_names)
    device, several = run.accelerator.device, data.labeled.several
    return check_classifier(folder, chosen.store, chosen.indices, own, names, device, of, several=several)


def summary(folder: Path, results: dict[str, Any]) -> str:
    """Say in a few lines what was made, what it is worth and what to type next."""
    metrics, lines, warning = results["metrics"], [], results["published_path"]["warning"]
    network = results["protocol"].partition(" on the test split")[0].rstrip(",")
    images = [str(folder / name) for name in IMAGES if (folder / name).exists()]
    if "accuracy" in metrics:
        count = results["test"]["images"]
        lines.append(f"  accuracy      {100 * metrics['accuracy']:.1f} % of {count:,} test images ({network})")
        lines.append(
            f"  over classes  balanced accuracy {100 * metrics['mean_class_accuracy']:.1f} %, macro-averaged F1 "
            f"{100 * metrics['macro_f1']:.1f} %"
        )
        lines.append(
            f"  calibration   expected calibration error (ECE) {100 * metrics['expected_calibration_error']:.1f} %"
        )
    if metrics.get("mean_average_precision") is not None:
        count = results["test"]["images"]
        lines.append(
            f"  mAP           {100 * metrics['mean_average_precision']:.1f} % of {count:,} test images ({network}); "
            f"{100 * metrics['chance_mean_average_precision']:.1f} % by chance"
        )
        lines.append(f"  at thresholds macro-averaged F1 {100 * metrics['macro_f1']:.1f} %")
    if results["beside"]:
        others = shares(results["beside"], results["method"])
        lines.append(f"  beside it     {others} (same images; nothing was chosen by these)")
    if "validation_accuracy" in metrics:
        lines.append(f"  validation    {100 * metrics['validation_accuracy']:.1f} % of the labels held out")
    if metrics.get("validation_mean_average_precision") is not None:
        value = 100 * metrics["validation_mean_average_precision"]
        lines.append(f"  validation    mAP {value:.1f} % of the labeled images held out")
    if results["calibration"]:
        lines.append(f"  held out      {results['calibration']['sentence']}")
    replaced = results["saved"]["candidate"] != FINETUNED
    compared = results["saved"]["select"] == "best"
    folds = results["saved"]["folds"] if results["steps"] else None
    labels = "labeled images" if THRESHOLDS in results else "labels"
    compared_in = f" and {folds['count']} x {folds['steps']} to compare" if folds else ""
    return "\n".join(
        [
            "",
            *([saved_sentence(results["saved"], results["method"])] if compared else []),
            f"Finetuned {results['backbone']} with {results['method']} on {results['labels']['count']} {labels} of "
            f"{results['dataset']['name']}: {results['steps']} steps{compared_in} in {results['seconds']:.0f} s",
            *lines,
            *([f"  warning       {warning}"] if warning else []),
            f"  weights       {folder / 'model'}",
            *([f"  last          {folder / 'model_last'} (what {results['method']} made)"] if replaced else []),
            f"  look at       {', '.join(images)}",
            f"  next          use it anywhere: pipeline('image-classification', model='{folder / 'model'}')",
        ]
    )
