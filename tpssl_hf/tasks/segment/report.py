"""What a finished segmentation writes: images, model/, results.json, and a summary for people."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tpssl_hf.data.segmentation_classes import ISIC
from tpssl_hf.metrics.tpssl_segmentation.confusion import ConfusionMatrix
from tpssl_hf.metrics.tpssl_segmentation.tpssl_segmentation import lesion_scores, segmentation_scores
from tpssl_hf.models.segmenter import TpsslForSemanticSegmentation, save_segmenter
from tpssl_hf.plots.segmentation import draw_predictions
from tpssl_hf.plots.training import draw_curves
from tpssl_hf.tasks.finetuning import provenance
from tpssl_hf.tasks.published_path import check_segmenter, some_of
from tpssl_hf.tasks.segment.data import EvaluationImages
from tpssl_hf.tasks.segment.run import SegmentRun, predicted
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir, read_metrics

DRAWN = 6  # test images in predictions.png


def save_results(run: SegmentRun, run_dir: RunDir, seconds: float) -> str:
    """Score the last network once, write images, model/ and results.json; returns the summary for people."""
    data, args, network = run.data, run.args, run.method.deployed
    assert isinstance(network, TpsslForSemanticSegmentation)
    draw_curves(run_dir.path / "curves.png", read_metrics(run_dir.path / "metrics.jsonl"), what=run.subject)
    if data.test:
        draw_test_images(run, run_dir.path / "predictions.png")
    results = run_facts(
        recipe="ssl_segment",
        task="semantic segmentation",
        dataset={"name": data.source.name, "fingerprint": data.store.fingerprint, "images": len(data.store)},
        unlabeled_images=len(data.unlabeled) if "unlabeled" in run.transforms else 0,
        test={"images": len(data.test.indices), "split": args.task.test_split} if data.test else None,
        labels={
            "count": len(data.labeled.indices),
            "chosen": data.labeled.chosen,
            "seed": args.task.label_seed,
        },
        class_names=list(data.class_names),
        scored=run.method.scored,
        protocol=f"last {run.method.scored} on the test split, images and masks with the shorter side at most "
        f"{args.data.shorter_side} px, one confusion matrix of all images, mean over all classes",
        metrics=evaluate(run, data.test) if data.test else {},
        **run.facts(seconds),
    )
    save_segmenter(
        network,
        run_dir.path / "model",
        shorter_side=args.data.shorter_side,
        image_size=run.views.crop_size if args.task.test_mode == "resize" else None,
        window=run.views.crop_size if args.task.test_mode == "slide" else None,
        provenance={**provenance(results), "license": run.origin.license},
    )
    results["published_path"] = published_path(run, run_dir.path / "model")
    run_dir.write_json(RESULTS, results)
    return summary(run_dir.path, results)


def draw_test_images(run: SegmentRun, path: Path) -> None:
    """Draw what is found in some test images, evenly spaced over the set."""
    test = run.data.test
    assert test is not None
    places = np.linspace(0, len(test.indices) - 1, min(DRAWN, len(test.indices))).round().astype(np.int64)
    rows = [
        (pixels.cpu().numpy(), truth.cpu().numpy(), found.cpu().numpy())
        for batch in predicted(run, test, test.indices[places])
        for pixels, truth, found in zip(*batch, strict=True)
    ]
    draw_predictions(path, rows, run.data.class_names, run.data.palette)


def evaluate(run: SegmentRun, test: EvaluationImages) -> dict[str, Any]:
    """Score the deployed network on all test images together, see :func:`segmentation_scores`."""
    matrix = ConfusionMatrix(len(run.data.class_names), device=run.accelerator.device)
    counts = [matrix.add(found, wanted) for _, wanted, found in predicted(run, test, test.indices)]
    scores = segmentation_scores(matrix.counts.cpu().numpy())
    if run.data.source.masks == ISIC:
        scores |= lesion_scores(torch.cat(counts).cpu().numpy())
    return scores


def published_path(run: SegmentRun, folder: Path) -> dict[str, Any]:
    """Compare the folder that was saved with the deployed network, see :func:`check_segmenter`."""
    data = run.data
    of, asked = ("test", data.test) if data.test else ("training", EvaluationImages(data.store, data.labeled.indices))
    chosen = some_of(asked.indices)
    masks = [mask for _, _, found in predicted(run, asked, chosen) for mask in found.cpu().numpy()]
    return check_segmenter(folder, asked.store, chosen, masks, run.accelerator.device, of)


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
