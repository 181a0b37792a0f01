r"""Does adapting help? Frozen probes and finetuned learners before and after, beside baselines nobody should lose to.

    python benchmarks/does_it_help.py run --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --budget 10m --learners supervised,fixmatch
    python benchmarks/does_it_help.py page          # docs/evidence.md from the JSON files in benchmarks/evidence/

A cell is a pair of weights and data: adapted by `tpssl_hf.pretrain` with its defaults within a budget of minutes, then
scored on the test split, once: a probe on frozen features of base, base with re-estimated BatchNorm statistics
(bn_only), adapted (model/) and the last checkpoint; label spreading on base and adapted; logistic regression on raw
pixels; and each learner finetuned from base and from adapted. Labels are drawn from training images, five label seeds,
the same for every row; differences are paired by label seed, with a 95 % interval of Student's t. A cell that is there
already is not made again, and an interrupted one goes on.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    THREADS = prepare_process()

import numpy as np
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import LabelSpreading

import tpssl_hf
from tpssl_hf.augment.pretrain_views import ViewSettings, eval_view
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.features import batches_of, extract_features
from tpssl_hf.evaluation.probes import few_label_answers
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import preprocessing_of

ROOT = Path(__file__).parents[1]
EVIDENCE, PAGE = ROOT / "benchmarks" / "evidence", ROOT / "docs" / "evidence.md"
SEEDS = range(1, 6)
CPU = torch.device("cpu")


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--weights", nargs="+", default=[], help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", nargs="+", default=[], help="NAME=DATASET")
    parser.add_argument("--budget", default="10m", help="time of each adaptation")
    parser.add_argument("--batch_size", type=int, help="of each adaptation; chosen by the budget when not given")
    parser.add_argument("--per_class", type=int, default=4, help="labels of each class")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--limit_images", type=int, default=10000)
    parser.add_argument("--limit_test_images", type=int, default=2000)
    parser.add_argument("--learners", default="", help="finetuned from base and adapted, with commas")
    parser.add_argument("--learner_seeds", type=int, default=5, help="label seeds of each learner")
    parser.add_argument("--learner_steps", type=int, default=300)
    parser.add_argument("--method", default=None, help="of target pretraining; its default when not given")
    parser.add_argument("--work_dir", default="outputs/does_it_help")
    arguments = parser.parse_args()
    if arguments.what == "run":
        for weights in arguments.weights:
            for data in arguments.data:
                run_cell(weights, data, arguments)
    write_page()


def run_cell(weights: str, data: str, arguments: argparse.Namespace) -> None:
    """Make what is missing of one cell and write its JSON file."""
    (name, _, what), (data_name, _, dataset) = weights.partition("="), data.partition("=")
    architecture, _, init = what.partition(":")
    file = EVIDENCE / f"{name}_{data_name}_{arguments.per_class}.json"
    folder = Path(arguments.work_dir) / f"{name}_{data_name}"
    cell: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    shared = {"backbone": architecture, "image_size": arguments.image_size, "precision": "fp32"}
    shared |= {"dataset": dataset, "limit_images": arguments.limit_images, "cache_dir": f"{arguments.work_dir}/cache"}
    adapted = tpssl_hf.pretrain(
        **shared,
        init=init,
        budget=arguments.budget,
        batch_size=arguments.batch_size,
        method=arguments.method,
        output_dir=folder / "adapted",
    )
    if "probes" not in cell:
        results = adapted.results
        cell |= {
            "weights": name,
            "data": data_name,
            "per_class": arguments.per_class,
            "image_size": arguments.image_size,
        }
        cell |= {"budget": arguments.budget, "minutes": results["seconds"] / 60, "steps": results["steps"]}
        cell |= {
            "method": results["method"],
            "batchnorm": results["batchnorm"],
            "saved": results["saved"]["candidate"],
        }
        cell |= {"machine": results["machine"], "versions": results["versions"], "learners": {}}
        starts = {"base": init, "adapted": str(adapted.model_path)}
        if (last := folder / "adapted" / "model_last").is_dir():
            starts["last"] = str(last)
        cell["probes"], cell["images"] = probes(architecture, starts, dataset, arguments)
        write(file, cell)
    for learner in filter(None, arguments.learners.split(",")):
        for start, weights_of in (("base", init), ("adapted", str(adapted.model_path))):
            done = cell["learners"].setdefault(f"{learner} from {start}", {})
            for seed in list(SEEDS)[: arguments.learner_seeds]:
                if str(seed) in done:
                    continue
                classes = cell["images"]["classes"]
                run = tpssl_hf.finetune_classifier(
                    **shared,
                    init=weights_of,
                    method=learner,
                    labels=arguments.per_class * classes,
                    label_seed=seed,
                    select="last",
                    batch_size=16,
                    unlabeled_ratio=0 if learner == "supervised" else 4,
                    max_steps=arguments.learner_steps,
                    limit_test_images=arguments.limit_test_images,
                    log_every=50,
                    output_dir=folder / f"{learner}_{start}_{seed}",
                )
                done[str(seed)] = {"accuracy": run.results["metrics"]["accuracy"], "seconds": run.results["seconds"]}
                write(file, cell)


def probes(
    architecture: str, starts: dict[str, str], dataset: str, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return row -> accuracy on the test images for each label seed, and how many images and classes there are."""
    train, test = (open_split(dataset, split, arguments) for split in ("train", "test"))
    assert train.labels is not None and test.labels is not None
    banks = [draw(train.labels, arguments.per_class, seed) for seed in SEEDS]
    found: dict[str, list[float]] = {}
    for name, init in starts.items():
        network, _ = load_backbone(architecture, init=init, image_size=arguments.image_size)
        views = ViewSettings.of(preprocessing_of(network), 0, horizontal_flip=False)
        variants = {name: network.eval()}
        if name == "base":
            variants["bn_only"] = with_reestimated_batchnorm(network, sample_for_statistics(train), views, CPU)
        for row, variant in variants.items():
            features = [extract_features(variant, s, np.arange(len(s)), views, CPU) for s in (train, test)]
            found[row] = [
                float((few_label_answers(features[0][b], train.labels[b], features[1]) == test.labels).mean())
                for b in banks
            ]
            if row in ("base", "adapted"):
                found[f"label spreading, {row}"] = [spread(*features, train.labels, test.labels, b) for b in banks]
    views = ViewSettings(arguments.image_size, (0.5,) * 3, (0.5,) * 3, seed=0)
    pixels = [np.concatenate([raw(s, part, views) for part in batches_of(np.arange(len(s)))]) for s in (train, test)]
    found["raw pixels"] = [
        float(LogisticRegression(max_iter=300).fit(pixels[0][b], train.labels[b]).score(pixels[1], test.labels))
        for b in banks
    ]
    return found, {"train": len(train), "test": len(test), "classes": len(np.unique(train.labels))}


def open_split(dataset: str, split: str, arguments: argparse.Namespace) -> ImageCache:
    """Open at most so many images of a split."""
    limit = arguments.limit_images if split == "train" else arguments.limit_test_images
    cache, _ = load_image_cache(
        load_source(dataset, split=split),
        image_size=arguments.image_size,
        cache_scale=2.5,
        limit_images=limit,
        cache_dir=Path(arguments.work_dir) / "cache",
        cache_budget=2**34,
        num_workers=2,
        progress=False,
    )
    return cache


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Draw so many labels of each class."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)])


def spread(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, test_labels: np.ndarray, bank: np.ndarray
) -> float:
    """Spread labels over the training images by their nearest neighbors, then ask about the test images."""
    unit = [f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (train, test)]
    known = np.full(len(labels), -1)
    known[bank] = labels[bank]
    model = LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.2, max_iter=50).fit(unit[0], known)
    return float((model.predict(unit[1]) == test_labels).mean())


def raw(store: ImageCache, indices: np.ndarray, views: ViewSettings) -> np.ndarray:
    """Return images shrunk to 16 pixels a side, as rows."""
    shown = eval_view(store.gather(indices, epoch=0), views)
    small: np.ndarray = torch.nn.functional.interpolate(shown, size=16, mode="area").flatten(1).numpy()
    return small


def write(file: Path, cell: dict[str, Any]) -> None:
    """Write a cell."""
    file.parent.mkdir(exist_ok=True)
    cell["written"] = time.strftime("%Y-%m-%d")
    file.write_text(json.dumps(cell, indent=1) + "\n")


def paired(before: list[float], after: list[float]) -> str:
    """Write the difference of paired values in points, with its 95 % interval."""
    changes = [100 * (b - a) for a, b in zip(before, after, strict=True)]
    if len(changes) < 2:
        return f"{changes[0]:+.1f} (one seed)"
    half = float(stats.t.ppf(0.975, len(changes) - 1)) * statistics.stdev(changes) / len(changes) ** 0.5
    mean = statistics.mean(changes)
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def mean_of(values: list[float]) -> str:
    """Write a mean in per cent, with the standard deviation over label seeds."""
    plus = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{plus}"


def write_page() -> None:
    """Write docs/evidence.md from the cells."""
    cells = [json.loads(file.read_text()) for file in sorted(EVIDENCE.glob("*.json"))]
    lines = [
        "# Does it help?",
        "",
        "Written by `python benchmarks/does_it_help.py page` from `benchmarks/evidence/*.json`; its docstring says "
        "what a row is. Accuracy on the test split in per cent, mean and standard deviation over label seeds; "
        "differences are paired by label seed, in points, with a 95 % interval.",
        "",
        "## Frozen probe",
        "",
        "| weights | data | labels a class | raw pixels | base | bn_only | adapted | adapted − base | "
        "adapted − bn_only | label spreading, base | label spreading, adapted | BatchNorm | saved | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rows = cell["probes"]
        values = [mean_of(rows[name]) for name in ("raw pixels", "base", "bn_only", "adapted")]
        values += [paired(rows[name], rows["adapted"]) for name in ("base", "bn_only")]
        values += [mean_of(rows[f"label spreading, {name}"]) for name in ("base", "adapted")]
        values += [cell["batchnorm"]["mode"], cell["saved"], f"{cell['minutes']:.0f}"]
        lines.append(f"| {cell['weights']} | {cell['data']} | {cell['per_class']} | {' | '.join(values)} |")
    learned = [(cell, name, done) for cell in cells for name, done in cell["learners"].items() if done]
    if learned:
        lines += ["", "## Finetuned", ""]
        lines += [
            "| weights | data | labels a class | learner | accuracy | minus the probe of its start | label seeds |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
    for cell, name, done in learned:
        values = [done[seed]["accuracy"] for seed in sorted(done)]
        start = cell["probes"][name.rpartition(" ")[2]]
        probe_values = [start[int(seed) - 1] for seed in sorted(done)]
        lines.append(
            f"| {cell['weights']} | {cell['data']} | {cell['per_class']} | {name} | {mean_of(values)} | "
            f"{100 * (statistics.mean(values) - statistics.mean(probe_values)):+.1f} | {len(values)} |"
        )
    machines = sorted({cell["machine"] for cell in cells})
    lines += ["", f"Machine: {'; '.join(machines)}. Not measured on a GPU."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(cells)} cells: {PAGE}\n")


if __name__ == "__main__":
    main()
