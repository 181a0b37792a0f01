"""Whether scores find unlabeled images of none of the classes, and whether holding these back is worth anything.

    python benchmarks/none_of_these.py --init path/to/weights --labels 4 --draws 4

For each draw three of the ten embedded digits are "none of these": their training images stay among the others,
no label names them, and no test image is of them. Scores of unlabeled images are compared by how well they tell them
apart (area under the ROC curve, 0.5 by chance), by frozen features. Then labels are spread over the unlabeled images,
and a classifier is fitted to them, as the learner `label_spreading` does: over all images, without the share that is
least like any labeled image, without as many at random, and without "none of these", the most that could be gained.
Prints a Markdown table of both, means over draws.

    python benchmarks/none_of_these.py --init path/to/weights --draws 1 --steps 100

does the same by finetuning with FixMatch, with "none of these" among the unlabeled images and with them taken out, and
tells them apart by what `predict` writes.
"""

from tpssl_hf.process import prepare_process

prepare_process()

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow.parquet as pq
import torch
from label_rounds import split_of
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from tpssl_hf.evaluation.fitted_head import fit_head
from tpssl_hf.methods.classify.label_spreading import LabelSpreadingConfig, NeighborGraph

RECIPES = Path(__file__).parents[1] / "recipes"
NONE, SHARE = 3, 0.3  # classes that no label names, and about the share of images that they are
TRAINING = 1497  # images, as the embedded digits are split
NAMES = ("among the unlabeled", "taken out")


def draw_of(labels: np.ndarray, count: int, seed: int) -> tuple[list[int], np.ndarray]:
    """Draw the digits that are none of these, and ``count`` images (7 · count,) of each other one."""
    random = np.random.default_rng(seed)
    none = random.permutation(10)[:NONE].tolist()
    known = sorted(set(range(10)) - set(none))
    return none, np.concatenate([random.permutation(np.flatnonzero(labels == digit))[:count] for digit in known])


def without_finetuning(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Return what is found by frozen features, of each draw."""
    (features, digits), (test, test_digits) = (split_of(arguments, split) for split in ("train", "test"))
    unit, found = features / np.linalg.norm(features, axis=1, keepdims=True), []
    for seed in range(arguments.draws):
        none, labeled = draw_of(digits, arguments.labels, seed)
        classes, given = np.unique(digits[labeled], return_inverse=True)
        others = np.setdiff1d(np.arange(len(digits)), labeled)
        belongs, asked = ~np.isin(digits[others], none), ~np.isin(test_digits, none)
        head = nn.Linear(features.shape[1], len(classes))

        def answers(rows: np.ndarray, head: nn.Linear = head) -> np.ndarray:
            with torch.inference_mode():
                return head(torch.from_numpy(rows)).numpy()

        fit_head(head, features[labeled], given)
        logits, similarity = answers(features[others]), (unit[others] @ unit[labeled].T).max(axis=1)
        among = unit[others] @ unit[others].T
        np.fill_diagonal(among, -1.0)
        scores = {
            "similarity to the nearest labeled image": similarity,
            "the same less that to the 10 nearest unlabeled ones": similarity - np.sort(among)[:, -10:].mean(axis=1),
            "confidence of the probe": softmax(logits, axis=1).max(axis=1),
            "energy of the probe": logsumexp(logits, axis=1),
        }
        facts = {f"AUROC, {name}": float(roc_auc_score(belongs, score)) for name, score in scores.items()}
        left_out = round(SHARE * len(others))
        kept = {
            "all": others,
            "least similar held back": others[np.argsort(similarity)[left_out:]],
            "as many at random held back": np.random.default_rng(seed).permutation(others)[left_out:],
            "none of these taken out": others[belongs],
        }
        for name, rows in kept.items():
            chosen, unknown = np.concatenate([labeled, rows]), np.full(len(rows), -1)
            graph = NeighborGraph(features[chosen], LabelSpreadingConfig())
            fit_head(head, features[chosen], *graph.spread(np.append(given, unknown)))
            right = classes[answers(test[asked]).argmax(axis=1)] == test_digits[asked]
            facts[f"accuracy, {name}"] = 100 * float(right.mean())
        found.append(facts)
    return found


def write_folders(folder: Path, count: int, seed: int) -> list[int]:
    """Write ``train``, ``clean``, ``test`` and ``labels.csv``; returns the digits that are none of these."""
    found = load_digits()
    digits = found.target
    none, labeled = draw_of(digits[:TRAINING], count, seed)
    for number, (pixels, digit) in enumerate(zip(found.images, digits.tolist(), strict=True)):
        places = [folder / "train", *([] if digit in none else [folder / "clean"])]
        if number >= TRAINING:
            places = [] if digit in none else [folder / "test" / f"digit_{digit}"]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(place / f"{digit}_{number:04d}.png")
    lines = [f"{digits[number]}_{number:04d}.png,digit_{digits[number]}" for number in labeled.tolist()]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines, ""]), encoding="utf-8")
    return none


def run_once(recipe: str, **keys: object) -> None:
    """Run a recipe; what is finished is left as it is."""
    command = [sys.executable, str(RECIPES / recipe), *(f"--{name}={value}" for name, value in keys.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def with_finetuning(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Return what is found by finetuned networks, of each draw."""
    found = []
    for seed in range(arguments.draws):
        folder, facts = arguments.output_dir / f"{arguments.labels}_{seed}", dict[str, float]()
        none = write_folders(folder, arguments.labels, seed)
        for name, images, run in zip(NAMES, ("train", "clean"), ("run_0", "run_clean"), strict=True):
            run_once(
                "ssl_classify.py",
                dataset=folder / images,
                labels=folder / "labels.csv",
                test_dataset=folder / "test",
                label_column="folder",
                backbone=arguments.backbone,
                init=arguments.init,
                image_size=arguments.image_size,
                batch_size=8,
                unlabeled_ratio=4,
                max_steps=arguments.steps,
                select="last",
                output_dir=folder / run,
            )
            results = json.loads((folder / run / "results.json").read_text())
            facts[f"accuracy, {name}"] = 100 * results["metrics"]["accuracy"]
        keys = {"model": folder / "run_0", "dataset": folder / "train", "output_dir": folder / "run_0_predictions"}
        run_once("predict.py", **keys)
        table = pq.read_table(keys["output_dir"] / "predictions.parquet")
        with (folder / "labels.csv").open(encoding="utf-8") as file:
            labeled = {row["file"] for row in csv.DictReader(file)}
        names = table["file"].to_pylist()
        others = np.array([name not in labeled for name in names])
        belongs = np.array([int(name[0]) not in none for name in names])[others]
        for column, sign in (("nearest_similarity", 1), ("confidence", 1), ("entropy", -1)):
            score = sign * table[column].to_numpy()[others]
            facts[f"AUROC, {column}"] = float(roc_auc_score(belongs, score))
        found.append(facts)
    return found


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--labels", type=int, default=4, help="of each of the seven other digits")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0, help="of FixMatch; 0 for frozen features")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/none_of_these"))
    parser.set_defaults(dataset="digits")
    arguments = parser.parse_args()
    found = with_finetuning(arguments) if arguments.steps else without_finetuning(arguments)
    print("| | mean | each draw |\n|---|---|---|")
    for name in found[0]:
        values = [facts[name] for facts in found]
        print(f"| {name} | {mean(values):.3g} | {', '.join(f'{value:.3g}' for value in values)} |")


if __name__ == "__main__":
    main()
