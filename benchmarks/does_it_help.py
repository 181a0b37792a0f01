r"""Does adapting help? Frozen probes and finetuned learners before and after, beside baselines nobody should lose to.

    python benchmarks/does_it_help.py run --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --learners supervised,fixmatch
    python benchmarks/does_it_help.py page          # docs/evidence.md from the JSON files in benchmarks/evidence/

A cell is a pair of weights and data: adapted by `tpssl_hf.pretrain` with a method's defaults, 100 steps of 128 images,
then scored on the test split, once: a probe on frozen features of base, base with re-estimated BatchNorm statistics
(bn_only), adapted (model/) and the last checkpoint; label spreading on base and adapted; logistic regression on raw
pixels; a probe on the base at the size its weights were trained at, which costs nothing but time; and each learner
finetuned from base and from adapted. Labels are drawn from training images, five label seeds,
the same for every row; differences are paired by label seed, with a 95 % interval of Student's t. A cell that is there
already is not made again, and an interrupted one goes on.
"""

import argparse
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    THREADS = prepare_process()

import numpy as np
import torch
from cells import EVIDENCE, read_cell, read_pair, write_cell
from evidence_page import write_page
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
from tpssl_hf.models.own_size import own_image_size
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.tasks.pretrain.crops import Crops
from tpssl_hf.tasks.pretrain.shown_images import ShownImages

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"
SEEDS = range(1, 6)
COUNTS, MOST_LABELS = (1, 2, 4, 10, 25), 500  # labels of each class that probes are also given; in all
CPU = torch.device("cpu")


def main() -> None:
    """Run cells, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--weights", nargs="+", default=[], help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", nargs="+", default=[], help="NAME=DATASET")
    parser.add_argument("--budget", help="time of each adaptation, in place of steps")
    parser.add_argument("--batch_size", type=int, default=128, help="of each adaptation without a budget")
    parser.add_argument("--max_steps", type=int, default=100, help="of each adaptation without a budget")
    parser.add_argument("--per_class", type=int, default=4, help="labels of each class")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--limit_images", type=int, default=10000)
    parser.add_argument("--limit_test_images", type=int, default=2000)
    parser.add_argument("--learners", default="", help="finetuned from base and adapted, with commas")
    parser.add_argument("--learner_seeds", type=int, default=5, help="label seeds of each learner")
    parser.add_argument("--learner_steps", type=int, default=600)
    parser.add_argument("--learner_starts", default="adapted,base", help="what they go on from, with commas")
    parser.add_argument("--learner_precision", default="fp32", help="of finetuning")
    parser.add_argument("--method", default="moco", help="of target pretraining")
    parser.add_argument("--teacher", default=None, help="of --method distill; `init`: the weights themselves")
    parser.add_argument("--work_dir", default="outputs/does_it_help")
    arguments = parser.parse_args()
    if arguments.what == "run":
        for weights in arguments.weights:
            for data in arguments.data:
                run_cell(weights, data, arguments)
    write_page(EVIDENCE, PAGE)


def run_cell(weights: str, data: str, arguments: argparse.Namespace) -> None:
    """Make what is missing of one cell and write its JSON file."""
    pair = read_pair(weights, data)
    architecture, init, dataset = pair.architecture, pair.init, pair.dataset
    other = "" if arguments.method == "moco" else f"_{arguments.method}"
    file = EVIDENCE / f"{pair.weights}_{pair.data}_{arguments.per_class}{other}.json"
    folder = Path(arguments.work_dir) / f"{pair.weights}_{pair.data}{other}"
    teacher = {"teacher": init if arguments.teacher == "init" else arguments.teacher} if arguments.teacher else {}
    cell = read_cell(file)
    shared = {"backbone": architecture, "image_size": arguments.image_size, "precision": "fp32"}
    shared |= {"dataset": dataset, "limit_images": arguments.limit_images, "cache_dir": f"{arguments.work_dir}/cache"}
    steps = {"batch_size": arguments.batch_size, "max_steps": arguments.max_steps}
    length = {"budget": arguments.budget} if arguments.budget else steps
    if "own_size" not in cell and (own := own_image_size(architecture, init)) != arguments.image_size:
        cell["own_size"] = {"image_size": own, "probe": probe_of_base(architecture, init, own, dataset, arguments)}
        if "probes" in cell:
            write_cell(file, cell)
    if "probes" in cell and not arguments.learners:
        return
    began = time.process_time()
    adapted = tpssl_hf.pretrain(
        **shared,
        init=init,
        **length,
        **teacher,
        method=arguments.method,
        output_dir=folder / "adapted",
    )
    if "probes" not in cell:
        results, seconds = adapted.results, time.process_time() - began
        cell |= {
            "weights": pair.weights,
            "data": pair.data,
            "per_class": arguments.per_class,
            "image_size": arguments.image_size,
        }
        cell |= {"budget": arguments.budget, "minutes": results["seconds"] / 60, "steps": results["steps"]}
        cell |= {"cpu_minutes": seconds / 60, "batch_size": results["config"]["batch_size"]}
        cell |= {
            "method": results["method"],
            "batchnorm": results["batchnorm"],
            "saved": results["saved"]["candidate"],
        }
        cell |= {"machine": results["machine"], "versions": results["versions"], "learners": {}}
        starts = {"base": init, "adapted": str(adapted.model_path)}
        if (last := folder / "adapted" / "model_last").is_dir():
            starts["last"] = str(last)
        cell |= probes(architecture, starts, dataset, arguments)
        write_cell(file, cell)
    for learner in filter(None, arguments.learners.split(",")):
        for start in arguments.learner_starts.split(","):
            weights_of = str(adapted.model_path) if start == "adapted" else init
            done = cell["learners"].setdefault(f"{learner} from {start}", {})
            for seed in list(SEEDS)[: arguments.learner_seeds]:
                if str(seed) in done:
                    continue
                classes, started = cell["images"]["classes"], time.process_time()
                run = tpssl_hf.finetune_classifier(
                    **shared | {"precision": arguments.learner_precision},
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
                    **({"alignment": 0.0} if learner == "fixmatch" else {}),  # as published, as in the first cells
                )
                done[str(seed)] = {
                    "accuracy": run.results["metrics"]["accuracy"],
                    "cpu_seconds": time.process_time() - started,
                    "steps": arguments.learner_steps,
                    "precision": arguments.learner_precision,
                }
                write_cell(file, cell)


def probes(
    architecture: str, starts: dict[str, str], dataset: str, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Ask about the test images, and without labels about crops of the training images.

    Returns:
        ``probes``: row -> accuracy for each label seed. ``by_labels``: row -> labels of each class -> the same of its
        probe. ``crops``: row -> mean reciprocal rank of an image's other crop, which needs no label, and its
        difference to the base's. ``images``: how many there are, and classes.
    """
    train, test = (open_split(dataset, split, arguments) for split in ("train", "test"))
    assert train.labels is not None and test.labels is not None
    banks = [draw(train.labels, arguments.per_class, seed) for seed in SEEDS]
    found: dict[str, list[float]] = {}
    by_labels: dict[str, dict[str, list[float]]] = {}
    seen: dict[str, Crops] = {}
    classes = len(np.unique(train.labels))
    for name, init in starts.items():
        network, _ = load_backbone(architecture, init=init, image_size=arguments.image_size)
        views = ViewSettings.of(preprocessing_of(network), 0, horizontal_flip=False)
        variants = {name: network.eval()}
        if name == "base":
            variants["bn_only"] = with_reestimated_batchnorm(network, sample_for_statistics(train), views, CPU)
        for row, variant in variants.items():
            features = [extract_features(variant, s, np.arange(len(s)), views, CPU) for s in (train, test)]
            seen[row] = ShownImages(train, views, CPU).crops(variant)
            shown = (*features, train.labels, test.labels)
            found[row] = [few_label_accuracy(*shown, bank) for bank in banks]
            by_labels[row] = {
                str(count): [few_label_accuracy(*shown, draw(train.labels, count, seed)) for seed in SEEDS]
                for count in COUNTS
                if count * classes <= MOST_LABELS
            }
            if row in ("base", "adapted"):
                found[f"label spreading, {row}"] = [spread(*shown, bank) for bank in banks]
    views = ViewSettings(arguments.image_size, (0.5,) * 3, (0.5,) * 3, seed=0)
    pixels = [np.concatenate([raw(s, part, views) for part in batches_of(np.arange(len(s)))]) for s in (train, test)]
    found["raw pixels"] = [
        float(LogisticRegression(max_iter=300).fit(pixels[0][b], train.labels[b]).score(pixels[1], test.labels))
        for b in banks
    ]
    crops = {
        row: {"rank": c.mean_rank, "directions": c.directions, **c.better(seen["base"])} for row, c in seen.items()
    }
    images = {"train": len(train), "test": len(test), "classes": classes}
    return {"probes": found, "by_labels": by_labels, "crops": crops, "images": images}


def probe_of_base(architecture: str, init: str, side: int, dataset: str, arguments: argparse.Namespace) -> list[float]:
    """Return the accuracy of a probe on the base for each label seed, with images of ``side`` pixels."""
    network, _ = load_backbone(architecture, init=init, image_size=side)
    views = ViewSettings.of(preprocessing_of(network), 0, horizontal_flip=False)
    train, test = (open_split(dataset, split, arguments, side) for split in ("train", "test"))
    assert train.labels is not None and test.labels is not None
    asked = extract_features(network.eval(), test, np.arange(len(test)), views, CPU)
    found = []
    for seed in SEEDS:
        bank = draw(train.labels, arguments.per_class, seed)
        shown = extract_features(network, train, bank, views, CPU)
        found.append(few_label_accuracy(shown, asked, train.labels[bank], test.labels, np.arange(len(bank))))
    return found


def open_split(dataset: str, split: str, arguments: argparse.Namespace, side: int | None = None) -> ImageCache:
    """Open at most so many images of a split, to be shown with ``side`` pixels, or as the arguments say."""
    limit = arguments.limit_images if split == "train" else arguments.limit_test_images
    cache, _ = load_image_cache(
        load_source(dataset, split=split),
        image_size=side or arguments.image_size,
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


def few_label_accuracy(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, test_labels: np.ndarray, bank: np.ndarray
) -> float:
    """Fit a probe to the labels of the bank, then ask about the test images."""
    return float((few_label_answers(train[bank], labels[bank], test) == test_labels).mean())


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


if __name__ == "__main__":
    main()
