"""Whether going round is worth it: labels asked for in rounds, by typical images, doubts and at random.

    python benchmarks/label_rounds.py --init outputs/mine/model --count 40 --rounds 4

Frozen features of the weights. After each round a logistic regression is fitted to the labels so far, as the head of
a finetuning is; it answers the test images, and its doubts choose the next round of `doubtful`, whose first round is
`typical`. Prints a Markdown table of test accuracies, mean ± standard deviation over seeds.
"""

from tpssl_hf.process import prepare_process

prepare_process()

import argparse
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch import nn

from tpssl_hf.active_learning.doubt import doubts
from tpssl_hf.active_learning.strategies import NONE_KNOWN, Known, choose_images
from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.sources import load_source
from tpssl_hf.evaluation.feature_cache import features_of
from tpssl_hf.evaluation.fitted_head import fit_head

STRATEGIES = ("typical", "doubtful", "random")


def split_of(arguments: argparse.Namespace, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (N, D) and labels (N,) of a split."""
    source = load_source(arguments.dataset, split=split)
    store, _ = load_image_cache(
        source, image_size=arguments.image_size, cache_budget=2**34, num_workers=2, progress=False
    )
    found = features_of(
        store,
        np.arange(len(store)),
        backbone=arguments.backbone,
        init=arguments.init,
        image_size=arguments.image_size,
        device=torch.device("cpu"),
    )
    assert store.labels is not None, "this comparison needs labels to score by"
    return found.values, store.labels


def accuracies(
    strategy: str,
    seed: int,
    arguments: argparse.Namespace,
    training: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> list[float]:
    """Return the test accuracy after each round, in percent."""
    (features, labels), classes = training, int(training[1].max()) + 1
    known, head, found = NONE_KNOWN, nn.Linear(features.shape[1], classes), []
    for number in range(arguments.rounds):
        way, doubt = strategy, None
        if strategy == "doubtful":
            way, doubt = ("doubtful", doubts(head, features)) if number else ("typical", None)
        draw = seed * arguments.rounds + number
        chosen = choose_images(features, arguments.count, strategy=way, seed=draw, known=known, doubt=doubt)
        indices = np.concatenate([known.indices, chosen])
        known = Known(indices, labels[indices], classes)
        fit_head(head, features[indices], labels[indices])
        with torch.inference_mode():
            answers = head(torch.from_numpy(test[0])).argmax(dim=1).numpy()
        found.append(100 * float((answers == test[1]).mean()))
    return found


def main() -> None:
    """Go round in every way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--init", required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    training, test = split_of(arguments, "train"), split_of(arguments, "test")
    print(f"{Path(arguments.init).name}: {len(training[1]):,} images to choose from, {len(test[1]):,} asked about\n")
    totals = [arguments.count * number for number in range(1, arguments.rounds + 1)]
    print(f"| chosen by |{'|'.join(f' {total} labels ' for total in totals)}|\n|---{'|---' * len(totals)}|")
    for strategy in STRATEGIES:
        runs = [accuracies(strategy, seed, arguments, training, test) for seed in range(arguments.seeds)]
        cells = [f" {mean(values):.1f} ± {stdev(values):.1f} " for values in zip(*runs, strict=True)]
        print(f"| {strategy} |{'|'.join(cells)}|", flush=True)


if __name__ == "__main__":
    main()
