"""Render a model card from what a run has recorded; every number in it is one the run wrote."""

from dataclasses import fields
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tpssl_hf.hub.run_record import CONTROLS, Evidence
from tpssl_hf.hub.snippets import TEMPLATES, snippets
from tpssl_hf.tasks.classify.selection import saved_sentence, shares
from tpssl_hf.tasks.pretrain.helped import first_line

PAPER = "2205.03001"
PIPELINES = {
    "target_pretrain": "image-feature-extraction",
    "ssl_classify": "image-classification",
    "ssl_segment": "image-segmentation",
}
KINDS = {
    "target_pretrain": "a backbone adapted to the images of one domain without labels",
    "ssl_classify": "an image classifier finetuned with few labels",
    "ssl_segment": "a semantic segmenter finetuned with few masks",
}
SCORES = {  # name in results.json -> (metric on the Hub, words)
    "accuracy": ("accuracy", "accuracy"),
    "mean_average_precision": ("mean_average_precision", "mean average precision (mAP)"),
    "mean_iou": ("mean_iou", "mean IoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "mean_class_accuracy": ("accuracy", "mean accuracy over classes"),
    "macro_f1": ("f1", "macro-averaged F1"),
    "expected_calibration_error": ("expected_calibration_error", "expected calibration error"),
    "knn_accuracy_after": ("accuracy", "kNN accuracy"),
    "linear_probe_accuracy_after": ("accuracy", "linear probe accuracy"),
    "few_label_accuracy_after": ("accuracy", "probe accuracy, 4 labels a class"),
}
PROBES = {
    "few_label_accuracy": "probe accuracy, 4 labels a class",
    "knn_accuracy": "kNN accuracy",
    "linear_probe_accuracy": "linear probe accuracy",
}
WHEN = ("before", "statistics_only", "after")
PROBED_ON = "training images, labels held out"


def render_card(evidence: Evidence, repo: str, files_beside: frozenset[str], more_usage: str | None = None) -> str:
    """Return README.md.

    Args:
        evidence: what the run says about itself.
        repo: Hub id that the snippets name.
        files_beside: names of the files published with it; images among them are shown.
        more_usage: what stands below the usual ways to load the model.
    """
    results, found = evidence.results, evidence.results["metrics"]
    facts = {field.name: getattr(evidence, field.name) for field in fields(evidence)}
    measures = ("accuracy", "mean_average_precision", "mean_iou")
    facts["spread"] = next(filter(None, map((evidence.spread or {}).get, measures)), None)
    card = ModelCard.from_template(
        metadata(evidence, repo),
        template_str=TEMPLATES.joinpath("card.md").read_text(encoding="utf-8"),
        title=repo.partition("/")[2],
        run=results,
        kind=KINDS[results["recipe"]],
        paper=PAPER,
        count=f"{results['dataset']['images']:,}" if results["dataset"].get("images") else "streamed",
        dataset=_dataset(evidence),
        duration=_duration(results["seconds"]),
        adapted=results["recipe"] == "target_pretrain",
        judged=first_line(results) if results.get("verdict") else None,
        deployed=_deployed(results),
        beside=shares(results.get("beside") or {}, results["method"]),
        scores=[(words, found[name]) for name, (_, words) in SCORES.items() if found.get(name) is not None],
        probes=[
            (words, [found.get(f"{name}_{when}") for when in WHEN])
            for name, words in PROBES.items()
            if found.get(f"{name}_after") is not None
        ],
        probed_on=PROBED_ON,
        published_path=results.get("published_path"),
        teacher=_teacher(results.get("teacher")),
        usage=snippets(results, repo, onnx=more_usage is not None) + (f"\n\n{more_usage}" if more_usage else ""),
        verdict_rows=_verdict_rows(evidence),
        files_beside=files_beside,
        **facts,
    )
    return f"{card}\n"


def metadata(evidence: Evidence, repo: str) -> ModelCardData:
    """Return what the Hub files the model under, with its results and their protocol."""
    results, recipe = evidence.results, evidence.results["recipe"]
    tags = ["tpssl", results["method"], results["backbone"].partition(".")[0], "semi-supervised", f"arxiv:{PAPER}"]
    if recipe == "target_pretrain":
        tags[3] = "self-supervised"
    scored = _eval_results(evidence)
    return ModelCardData(
        license=evidence.license,
        library_name="tpssl_hf" if recipe == "ssl_segment" else "timm",
        pipeline_tag=PIPELINES[recipe],
        base_model=evidence.base.hub_id,
        base_model_relation="finetune" if evidence.base.hub_id else None,
        datasets=[evidence.dataset_id] if evidence.dataset_id else None,
        tags=tags,
        model_name=repo.partition("/")[2] if scored else None,
        eval_results=scored or None,
    )


def _eval_results(evidence: Evidence) -> list[EvalResult]:
    results = evidence.results
    probing = results["recipe"] == "target_pretrain"
    protocol: dict[str, Any] = {"protocol": PROBED_ON if probing else results.get("protocol"), "seed": results["seed"]}
    if results.get("labels"):
        protocol |= {"labels": results["labels"]["count"], "label_seed": results["labels"]["seed"]}
    split = results["config"].get("split") if probing else (results.get("test") or {}).get("split")
    metrics = {name: results["metrics"][name] for name in SCORES if results["metrics"].get(name) is not None}
    other = None if probing else results["config"].get("test_dataset")
    name = PurePath(other).name if other else results["dataset"]["name"]
    return [
        EvalResult(
            task_type=PIPELINES[results["recipe"]],
            dataset_type=name if other else evidence.dataset_id or name,
            dataset_name=name,
            dataset_split=split,
            metric_type=SCORES[measure][0],
            metric_name=SCORES[measure][1],
            metric_value=round(value, 4),
            metric_args=protocol,
        )
        for measure, value in metrics.items()
    ]


def _dataset(evidence: Evidence) -> str:
    if evidence.dataset_id is None:
        return f"`{evidence.results['dataset']['name']}`"
    return f"[{evidence.dataset_id}](https://huggingface.co/datasets/{evidence.dataset_id})"


def _teacher(source: dict[str, Any] | None) -> dict[str, str] | None:
    """Return what the teacher of a distillation is, in Markdown, and its license; None without one."""
    if source is None:
        return None
    hub_id = {"hub": source["name"], "timm": f"timm/{source['name']}"}.get(source["kind"])
    if source["name"].endswith(".default"):  # timm's tag for weights that are in no repository
        hub_id = None
    shown = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{source['name']}`"
    at = f" at commit `{source['revision']}`" if source["revision"] else ""
    return {"shown": shown + at, "license": source["license"] or "not stated where it was taken from"}


def _verdict_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the rows of the verdict that speak of this run, its start and its teacher, with the name to show."""
    own = evidence.folder.resolve().name
    rows = evidence.verdict["rows"] if evidence.verdict else []
    return [
        row | {"shown": "this model" if row["name"] == own else row["name"]}
        for row in rows
        if row["name"] in (*CONTROLS, own) and row["probe"]
    ]


def _deployed(results: dict[str, Any]) -> str | None:
    """Say which candidate a classifier is, where candidates were compared."""
    saved = results.get("saved") or {}
    if results["recipe"] != "ssl_classify" or saved.get("select") != "best":
        return None
    return saved_sentence(saved, results["method"], "This model")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
