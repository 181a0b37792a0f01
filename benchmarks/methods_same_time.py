"""What each method makes of the same start in the same time: kNN and few-label probes before and after.

    python benchmarks/methods_same_time.py --dataset cifar10 --init path/to/weights --minutes 5

Runs the recipe once per method with ``--budget``, then probes the start and each result on frozen features: kNN with
all training labels of the images used, and logistic regression on ``--labels`` labels, class-balanced, over
``--draws`` draws. Both are asked about images of the test split, which no run has seen. "before, BatchNorm" is the
start with nothing but the BatchNorm statistics of these images, which every saved model gets: what adapting itself
is worth lies between that row and a method's. Each method trains at its source's rate for a batch of 256, whatever the
batch. Prints a markdown table.
"""

from tpssl_hf.process import prepare_process

prepare_process()

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.evaluation.batchnorm import with_reestimated_batchnorm
from tpssl_hf.evaluation.features import batches_of, extract_features
from tpssl_hf.evaluation.probes import knn_accuracy, linear_probe_accuracy
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.backbone import load_backbone

RECIPE = Path(__file__).parents[1] / "recipes" / "target_pretrain.py"
# What differs from each method's own defaults: queues that suit a few thousand images.
EXTRA = {
    "byol": [],
    "moco": ["--queue_size", "4096"],
    "simclr": [],
    "densecl": ["--queue_size", "4096"],
    "pixpro": [],
}


def balanced_draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` labels, equally many of each class."""
    random, classes = np.random.default_rng(seed), np.unique(labels)
    each = count // len(classes)
    return np.concatenate([random.choice(np.flatnonzero(labels == c), each, replace=False) for c in classes])


def open_image_cache(arguments: argparse.Namespace, split: str, limit: int) -> ImageCache:
    """Open a fixed random subset of one split."""
    source = load_source(arguments.dataset, split=split)
    budget = 4 * 2**30
    return load_image_cache(
        source, image_size=arguments.image_size, cache_budget=budget, limit_images=limit, num_workers=2, progress=False
    )[0]


def probe(
    weights: str, arguments: argparse.Namespace, train: ImageCache, test: ImageCache, *, recalibrate: bool = False
) -> dict[str, float]:
    """Return kNN and few-label accuracy of one backbone, in per cent."""
    backbone, _ = load_backbone(arguments.backbone, init=weights, image_size=arguments.image_size)
    facts = backbone.pretrained_cfg
    settings = ViewSettings(arguments.image_size, facts["mean"], facts["std"], 0)
    if recalibrate:
        images = (train.gather(part, epoch=0) for part in batches_of(np.arange(len(train))))
        backbone = with_reestimated_batchnorm(backbone, images, settings, torch.device("cpu"))
    bank, queries = (
        extract_features(backbone, store, np.arange(len(store)), settings, torch.device("cpu"))
        for store in (train, test)
    )
    assert train.labels is not None and test.labels is not None
    few = []
    for draw in range(1, arguments.draws + 1):
        chosen = balanced_draw(train.labels, arguments.labels, draw)
        few.append(100 * linear_probe_accuracy(bank[chosen], train.labels[chosen], queries, test.labels))
    knn = 100 * knn_accuracy(bank, train.labels, queries, test.labels)
    return {"knn": knn, "few": float(np.mean(few)), "few_std": float(np.std(few, ddof=1))}


def main() -> None:
    """Adapt by each method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--init", required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test_images", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(EXTRA), choices=list(EXTRA))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/methods_same_time"))
    arguments = parser.parse_args()
    train, test = (
        open_image_cache(arguments, "train", arguments.images),
        open_image_cache(arguments, "test", arguments.test_images),
    )
    rows = [
        ("before", 0, 0.0, probe(arguments.init, arguments, train, test)),
        ("before, BatchNorm", 0, 0.0, probe(arguments.init, arguments, train, test, recalibrate=True)),
    ]
    for method in arguments.methods:
        folder = arguments.output_dir / method
        command = [sys.executable, str(RECIPE), "--dataset", arguments.dataset, "--method", method]
        command += ["--backbone", arguments.backbone, "--init", arguments.init, "--output_dir", str(folder)]
        command += ["--image_size", str(arguments.image_size), "--limit_images", str(arguments.images)]
        command += ["--batch_size", str(arguments.batch_size), "--budget", f"{arguments.minutes * 60:g}s"]
        # The recipe divides rates by 256 / batch_size; in so few steps of small batches, nothing would move.
        rate = PRETRAIN[method].defaults["base_learning_rate"] * 256 / arguments.batch_size
        command += ["--base_learning_rate", f"{rate:g}", "--probe_labels", "--save_every", "100000"]
        subprocess.run([*command, *EXTRA[method]], check=True)
        results = json.loads((folder / "results.json").read_text())
        rows.append(
            (method, results["steps"], results["seconds"], probe(str(folder / "model"), arguments, train, test))
        )
    print(f"\n| | steps | seconds | kNN % | {arguments.labels}-label probe %, {arguments.draws} draws |")
    print("|---|---|---|---|---|")
    for name, steps, seconds, found in rows:
        print(
            f"| {name} | {steps} | {seconds:.0f} | {found['knn']:.1f} | {found['few']:.1f} ± {found['few_std']:.1f} |"
        )


if __name__ == "__main__":
    main()
