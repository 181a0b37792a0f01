"""Whether images chosen from features are worth more, once labeled, than images drawn at random.

    python benchmarks/label_picker_vs_random.py --dataset cifar10 --init outputs/mine/model --labels 40

Frozen features of the weights; a fifth of the training images is held out to ask about, the rest is chosen from.
Each way of choosing gets the same number of labels, several times: with other seeds of k-means, or other draws. Random
*balanced* draws, the customary ones, take as many images of each class and so use labels that the other ways do not
see, and that nobody has who is about to label. What to compare with is the unbalanced draws. Prints a Markdown table.
"""

from tpssl_hf.process import prepare_process

prepare_process()

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from tpssl_hf.active_learning.strategies import choose_images
from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.label_splits import draw_labels
from tpssl_hf.data.sources import load_source
from tpssl_hf.evaluation.feature_cache import features_of
from tpssl_hf.evaluation.probes import ProbeSplit, knn_accuracy, linear_probe_accuracy, probe_split

STRATEGIES = ("typical", "coverage", "random")
NEIGHBORS = 1  # some draws have but one image of a class


def row_of(
    way: str,
    choose: Callable[..., np.ndarray],
    draws: int,
    bank: np.ndarray,
    queries: np.ndarray,
    split: ProbeSplit,
) -> str:
    """Return one row of the table.

    Args:
        way: name of the way of choosing.
        choose: seed -> rows of the bank.
        draws: seeds 0, 1, …
        bank: (N, D) features to choose from.
        queries: (M, D) features to ask about.
        split: labels of both.
    """
    began = time.perf_counter()
    drawn = [choose(seed=seed) for seed in range(draws)]
    seconds = (time.perf_counter() - began) / draws
    linear, nearest, classes = [], [], []
    for rows in drawn:
        known = bank[rows], split.bank_labels[rows], queries, split.query_labels
        linear.append(100 * linear_probe_accuracy(*known))
        nearest.append(100 * knn_accuracy(*known, neighbors=NEIGHBORS))
        classes.append(len(np.unique(split.bank_labels[rows])))
    cells = [f"{mean(values):.1f} ± {stdev(values):.1f} ({min(values):.1f})" for values in (linear, nearest)]
    return f"| {way} | {cells[0]} | {cells[1]} | {mean(classes):.1f} | {seconds:.1f} |"


def main() -> None:
    """Choose in every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--init", nargs="+", required=True, help="one or several weights, a table each")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--labels", type=int, nargs="+", default=[40])
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    source = load_source(arguments.dataset)
    store, _ = load_image_cache(
        source,
        image_size=arguments.image_size,
        cache_budget=2**34,
        num_workers=2,
        progress=False,
        limit_images=arguments.images,
        allow_unlabeled=True,
    )
    assert store.labels is not None, "this comparison needs labels to score by"
    split = probe_split(store.labels, most=arguments.images)
    assert split is not None, "too few images"
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    classes = int(store.labels.max()) + 1
    for init in arguments.init:
        bank, queries = (
            features_of(
                store, part, backbone=arguments.backbone, init=init, image_size=arguments.image_size, device=device
            ).values
            for part in (split.bank, split.queries)
        )
        for labels in arguments.labels:
            ways = {strategy: partial(choose_images, bank, labels, strategy=strategy) for strategy in STRATEGIES}
            balanced = partial(draw_labels, split.bank_labels, labels, classes, mode="balanced")
            ways["random, balanced (needs all labels)"] = balanced
            print(f"\n{Path(init).parent.name}/{Path(init).name}: {labels} labels chosen from {len(bank):,} images of")
            print(
                f"{source.name}, {len(queries):,} others asked about, {arguments.draws} draws: mean ± sd (worst), %\n"
            )
            print(
                "| chosen by | linear probe | nearest neighbor | classes hit | s per choice |\n|---|---|---|---|---|"
            )
            for way, choose in ways.items():
                print(row_of(way, choose, arguments.draws, bank, queries, split), flush=True)


if __name__ == "__main__":
    main()
