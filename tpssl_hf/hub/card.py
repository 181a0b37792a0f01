"""Render a model card from what a run left behind; every number in it is one the run wrote."""

from importlib.resources import files
from pathlib import PurePath
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tpssl_hf.hub.run_record import Evidence
from tpssl_hf.hub.snippets import snippets
from tpssl_hf.tasks.pretrain.helped import sentence

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
    "mean_iou": ("mean_iou", "mean IoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "mean_class_accuracy": ("accuracy", "mean accuracy over classes"),
    "expected_calibration_error": ("expected_calibration_error", "expected calibration error"),
    "knn_accuracy_after": ("accuracy", "kNN accuracy"),
    "linear_probe_accuracy_after": ("accuracy", "linear probe accuracy"),
}
PROBED = "training images, labels held out"
ADAPTED, BASE, STATISTICS = "this model", "base", "base, statistics only"


def render_card(evidence: Evidence, repo: str, files_beside: frozenset[str], more_usage: str | None = None) -> str:
    """Return README.md.

    Args:
        evidence: what the run says about itself.
        repo: Hub id that the snippets name.
        files_beside: names of the files published with it; images among them are shown.
        more_usage: what stands below the usual ways to load the model.
    """
    results = evidence.results
    template = Template(files("tpssl_hf.hub").joinpath("card_template.md").read_text(encoding="utf-8"))
    text = template.substitute(
        title=repo.partition("/")[2],
        intro=_intro(evidence),
        results=_results(evidence),
        usage=snippets(results, repo) + (f"\n\n{more_usage}" if more_usage else ""),
        verdict=_verdict(evidence, files_beside),
        origin=_origin(evidence),
        training=_training(evidence),
        health=_health(evidence, files_beside),
        limits=_limits(evidence),
    )
    return f"---\n{metadata(evidence, repo).to_yaml()}\n---\n\n{text}"


def metadata(evidence: Evidence, repo: str) -> ModelCardData:
    """Return what the Hub files the model under, with its results and their protocol."""
    results, recipe = evidence.results, evidence.results["recipe"]
    tags = ["tpssl", results["method"], results["backbone"].partition(".")[0], "semi-supervised", f"arxiv:{PAPER}"]
    if recipe == "target_pretrain":
        tags[3] = "self-supervised"
    scored = _eval_results(evidence)
    return ModelCardData(
        license=evidence.license,
        library_name="transformers" if recipe == "ssl_segment" else "timm",
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
    protocol: dict[str, Any] = {"protocol": PROBED if probing else results.get("protocol"), "seed": results["seed"]}
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


def _intro(evidence: Evidence) -> str:
    results = evidence.results
    labels = f" and {results['labels']['count']} labels" if results.get("labels") else ""
    return (
        f"`{results['backbone']}` as {KINDS[results['recipe']]}: {results['method']} on "
        f"{_count(results)} images of {_dataset(evidence)}{labels}. Made with tpssl_hf after "
        f"[arXiv:{PAPER}](https://arxiv.org/abs/{PAPER})."
    )


def _dataset(evidence: Evidence) -> str:
    name = evidence.results["dataset"]["name"]
    if evidence.dataset_id is None:
        return f"`{name}`"
    return f"[{evidence.dataset_id}](https://huggingface.co/datasets/{evidence.dataset_id})"


def _count(results: dict[str, Any]) -> str:
    images = results["dataset"].get("images")
    return f"{images:,}" if images else "streamed"


def _results(evidence: Evidence) -> str:
    results, found = evidence.results, evidence.results["metrics"]
    rows = [(words, found[name]) for name, (_, words) in SCORES.items() if found.get(name) is not None]
    if not rows:
        unknown = f" {sentence(results['verdict'])}" if results.get("verdict") else ""
        return f"There were no test images, so nothing was scored.{unknown}"
    if results["recipe"] == "target_pretrain":
        lines = ["| | before | statistics only | after |", "|---|---|---|---|"]
        for name in ("knn_accuracy", "linear_probe_accuracy"):
            cells = [found.get(f"{name}_{when}") for when in ("before", "statistics_only", "after")]
            shown = [f"{100 * cell:.1f} %" if cell is not None else "" for cell in cells]
            lines.append(f"| {SCORES[f'{name}_after'][1]} | {' | '.join(shown)} |")
        words = (
            f"Features frozen; {PROBED}. *statistics only*: the base weights with nothing but BatchNorm statistics "
            "measured anew on these images."
        )
        judged = f"**{sentence(results['verdict'])}**\n\n" if results.get("verdict") else ""
        return judged + "\n".join(lines) + f"\n\n{words}"
    lines = ["| measure | value |", "|---|---|", *(f"| {words} | {100 * value:.1f} % |" for words, value in rows)]
    text = "\n".join(lines)
    if results.get("test"):
        text += (
            f"\n\nOn {results['test']['images']:,} images of the split `{results['test']['split']}`; "
            f"{results['protocol']}."
        )
    return text + _spread(evidence) + _published_path(results.get("published_path"))


def _published_path(found: dict[str, Any] | None) -> str:
    """Say whether the ways to use the model give what was scored; runs of before that was checked say nothing."""
    if found is None:
        return ""
    asked = f"{found['images']} {found['of']} images"
    if found["warning"] is None:
        return f"\n\nLoaded as below, this model gave {asked} the answers that were scored, but for rounding."
    return (
        "\n\n**Warning**: what is above was measured on images read as in training, and loaded as below this model "
        f"does not give the same. Of {asked}: {found['warning']}."
    )


def _spread(evidence: Evidence) -> str:
    whole = evidence.spread or {}
    found = whole.get("accuracy") or whole.get("mean_iou")
    if not found:
        return " One run with one draw of labels: another draw gives another number."
    plus = f" ± {100 * found['standard_deviation']:.1f}" if found.get("standard_deviation") is not None else ""
    each = ", ".join(f"{100 * value:.1f}" for value in found["values"])
    return (
        f" This is one of {len(found['values'])} draws of labels, over which it is {100 * found['mean']:.1f}{plus} % "
        f"({each})."
    )


def _verdict(evidence: Evidence, files_beside: frozenset[str]) -> str:
    verdict = evidence.verdict
    if verdict is None:
        return ""
    own = evidence.folder.resolve().name
    rows = [row for row in verdict["rows"] if row["name"] in (BASE, STATISTICS, own) and row["probe"]]
    lines = ["| weights | linear probe | kNN | probe − base | probe − statistics only |", "|---|---|---|---|---|"]
    for row in rows:
        differences = [_difference(verdict, row["name"], against) for against in (BASE, STATISTICS)]
        scores = [f"{100 * sum(row[kind]) / len(row[kind]):.1f} %" for kind in ("probe", "knn")]
        name = ADAPTED if row["name"] == own else row["name"]
        lines.append(f"| {' | '.join([name, *scores, *differences])} |")
    parts = ["## Did adapting help", verdict["sentence"], *(["\n".join(lines)] if rows else [])]
    if "verdict.png" in files_beside:
        parts.append("![each draw of labels, and the differences](verdict.png)")
    chosen = verdict["questions"]["chosen"]
    parts.append(f"Intervals in points, over draws of labels and questions; {chosen}. All numbers: `verdict.json`.")
    return "\n\n".join(parts) + "\n\n"


def _difference(verdict: dict[str, Any], name: str, against: str) -> str:
    for entry in verdict["comparisons"]:
        if (entry["name"], entry["against"]) == (name, against):
            mean, low, high = (100 * entry["probe"][part] for part in ("mean", "low", "high"))
            return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    return ""


def _origin(evidence: Evidence) -> str:
    results, base = evidence.results, evidence.base
    if base.hub_id is None:
        nowhere = "" if base.converted else " (published nowhere)"
        start = f"{base.note.rstrip('.')}{nowhere}" if base.note else "random weights"
    else:
        at = f" at commit `{base.revision}`" if base.revision else ""
        start = f"[{base.hub_id}](https://huggingface.co/{base.hub_id}){at}"
    lines = [f"- **Base weights**: {start}" + "".join(f"; then {step}" for step in base.steps)]
    lines.append(
        f"- **Images**: {_dataset(evidence)}, {_count(results)} of them, fingerprint "
        f"`{results['dataset']['fingerprint']}`"
    )
    if results.get("labels"):
        lines.append(f"- **Labels**: {results['labels']['chosen']} ({results['labels']['count']} in all)")
        if results.get("unlabeled_images"):
            lines.append(f"- **Without labels**: {results['unlabeled_images']:,} images")
    if results.get("class_names"):
        names = results["class_names"]
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        lines.append(f"- **Classes**: {', '.join(map(str, names[:20]))}{more}")
    return "\n".join(lines)


def _training(evidence: Evidence) -> str:
    results = evidence.results
    passes = f" ({results['epochs']:.1f} epochs)" if results.get("epochs") else ""
    commit = f"; source commit `{results['commit']}`" if results.get("commit") else ""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    stopped = f" {results['stopped']}" if results.get("stopped") else ""
    machine = f"\n\nMachine: {results['machine']}. Energy was not measured." if results.get("machine") else ""
    return (
        f"{results['method']}, {results['steps']:,} steps{passes} in {_duration(results['seconds'])}, seed "
        f"{results['seed']}.{stopped} Every setting is in `run_config.yaml`:\n\n"
        f"```bash\naccelerate launch recipes/{results['recipe']}.py --config run_config.yaml\n```\n\n"
        f"Versions: {versions}{commit}.{machine}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _health(evidence: Evidence, files_beside: frozenset[str]) -> str:
    parts = []
    if evidence.health:
        rows = [
            f"| {name.removeprefix('health_').replace('_', ' ')} | {value:.4g} |"
            for name, value in evidence.health.items()
        ]
        parts.append("\n".join(["| at the end of training | |", "|---|---|", *rows]))
    if "curves.png" in files_beside:
        parts.append("![curves of training](curves.png)")
    return "\n\n".join(["## Drift and health", *parts]) + "\n\n" if parts else ""


def _limits(evidence: Evidence) -> str:
    results, base = evidence.results, evidence.base
    few = "" if results["recipe"] == "target_pretrain" else " The classes it knows are those listed above, no others."
    stated = base.license or "not stated where they were taken from"
    lines = [
        f"- It was made for images like those of {_dataset(evidence)}; on others expect less.{few} Nothing was "
        "checked for bias, and errors are not spread evenly over classes.",
        f"- **Weights**: {evidence.license}."
        + (f" Base weights: {stated}." if base.hub_id or base.note else " They started from random weights."),
        f"- **Images**: {evidence.dataset_license or 'terms not stated by who published this'}. They are not part "
        "of this repository.",
    ]
    if evidence.dataset_citation:
        lines.append(f"- **Source of the images**: {evidence.dataset_citation}.")
    return "\n".join(lines)
