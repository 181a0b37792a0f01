"""What each learner makes of the same start, the same images, the same labels and as many steps.

    python benchmarks/learners_same_budget.py --dataset cifar10 --init path/to/weights --steps 100

Runs the recipe once for each learner and number of labels, over several draws of labels, and prints a markdown table
of test accuracies: the median of the draws, then each of them. Runs that are finished are not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

RECIPE = Path(__file__).parents[1] / "recipes" / "ssl_classify.py"
LEARNERS = (
    "supervised",
    "mean_teacher",
    "vat",
    "uda",
    "fixmatch",
    "self_tuning",
    "flexmatch",
    "freematch",
    "softmatch",
)
PAIRED = (
    "mean_teacher",
    "vat",
    "self_tuning",
)  # as many unlabeled images as labeled ones, as their sources have it


def command_of(method: str, labels: int, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the recipe's command line."""
    ratio = 0 if method == "supervised" else 1 if method in PAIRED else arguments.unlabeled_ratio
    # Self-Tuning's classifier learns ten times as fast as its backbone: so all classifiers learn at the same rate.
    rate = arguments.learning_rate / (10 if method == "self_tuning" else 1)
    settings = {
        "dataset": arguments.dataset,
        "backbone": arguments.backbone,
        "init": arguments.init,
        "method": method,
        "labels": labels,
        "select": "last",
        "label_seeds": ",".join(str(seed) for seed in range(1, arguments.draws + 1)),
        "image_size": arguments.image_size,
        "limit_images": arguments.images,
        "limit_test_images": arguments.test_images,
        "batch_size": arguments.batch_size,
        "unlabeled_ratio": ratio,
        "max_steps": arguments.steps,
        "learning_rate": rate,
        "save_every": 100000,
        "output_dir": folder,
    }
    return [sys.executable, str(RECIPE), *(f"--{name}={value}" for name, value in settings.items())]


def main() -> None:
    """Finetune with each learner and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--init", required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--test_images", type=int, default=2000)
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 250])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--unlabeled_ratio", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=0.004, help="0.03 is for batches of 64")
    parser.add_argument("--methods", nargs="+", default=list(LEARNERS), choices=LEARNERS)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/learners_same_budget"))
    arguments = parser.parse_args()
    cells: dict[tuple[str, int], str] = {}
    for labels in arguments.labels:
        for method in arguments.methods:
            folder = arguments.output_dir / f"{method}_{labels}"
            if not (folder / "results.json").exists():
                subprocess.run(command_of(method, labels, folder, arguments), check=True)
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            values = [100 * value for value in results["accuracy"]["values"]]
            each = ", ".join(f"{value:.1f}" for value in values)
            cells[method, labels] = f"{median(values):.1f} ({each}) | {results['seconds'] / len(values):.0f}"
    print("\n| learner |" + "".join(f" {labels} labels: median (each) % | s per run |" for labels in arguments.labels))
    print("|---|" + "---|---|" * len(arguments.labels))
    for method in arguments.methods:
        print(f"| {method} | " + " | ".join(cells[method, labels] for labels in arguments.labels) + " |")


if __name__ == "__main__":
    main()
