r"""What is the size of the images worth? A frozen probe on training images at several sizes, and what they cost.

    python benchmarks/image_sizes.py --backbone tf_efficientnet_lite0 --init path/to/weights \
        --data eurosat=path/to/eurosat cifar10=path/to/cifar10

Logistic regression on frozen features of 1,200 training images: 4 labels of each class are drawn eight times, and the
other images are asked about. No test image is looked at: `--budget` chooses the size by what this shows.
"""

import argparse
import time

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

import numpy as np
import torch
from does_it_help import draw, few_label_accuracy, open_split

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.timm_export import preprocessing_of

PER_CLASS, DRAWS = 4, 8


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="a timm model")
    parser.add_argument("--init", required=True, help="its weights")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--sizes", default="64,96,128,160,224", help="sides in pixels, with commas")
    parser.add_argument("--limit_images", type=int, default=1200)
    parser.add_argument("--work_dir", default="outputs/image_sizes")
    arguments = parser.parse_args()
    print("| data | pixels | probe, % | CPU seconds for the features |\n|---|---|---|---|")
    for data in arguments.data:
        name, _, dataset = data.partition("=")
        for side in map(int, arguments.sizes.split(",")):
            accuracies, seconds = probed(dataset, side, arguments)
            mean, spread = 100 * np.mean(accuracies), 100 * np.std(accuracies, ddof=1)
            print(f"| {name} | {side} | {mean:.1f} ± {spread:.1f} | {seconds:.0f} |", flush=True)


def probed(dataset: str, side: int, arguments: argparse.Namespace) -> tuple[list[float], float]:
    """Return the accuracy of each draw, and the CPU seconds of all features."""
    network, _ = load_backbone(arguments.backbone, init=arguments.init, image_size=side)
    views = ViewSettings.of(preprocessing_of(network), 0, horizontal_flip=False)
    store = open_split(dataset, "train", arguments, side)
    assert store.labels is not None
    everything, labels, began = np.arange(len(store)), store.labels, time.process_time()
    features = extract_features(network.eval(), store, everything, views, torch.device("cpu"))
    seconds, accuracies = time.process_time() - began, []
    for seed in range(DRAWS):
        bank = draw(labels, PER_CLASS, seed)
        asked = np.setdiff1d(everything, bank)
        accuracies.append(few_label_accuracy(features, features[asked], labels, labels[asked], bank))
    return accuracies, seconds


if __name__ == "__main__":
    main()
