"""What each segmentation learner makes of the same few masks, from random weights and from adapted ones.

    python benchmarks/segmenters_same_budget.py --dataset path/to/camvid --inits random outputs/mine/model --steps 150

Runs the recipe once for each learner and start and prints a markdown table of mean IoU on the whole test split. Runs
that are finished are not made again. The predictions.png of each run is worth a look.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "ssl_segment.py"
LEARNERS = ("supervised", "cutmix", "classmix", "clmb", "unimatch")


def command_of(method: str, init: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the recipe's command line; settings but for the learner's own are the same for all."""
    settings = {
        "dataset": arguments.dataset,
        "backbone": arguments.backbone,
        "init": init,
        "method": method,
        "labels": arguments.labels,
        "shorter_side": arguments.shorter_side,
        "crop_height": arguments.crop[0],
        "crop_width": arguments.crop[1],
        "decoder_width": arguments.decoder_width,
        "batch_size": arguments.batch_size,
        "max_steps": arguments.steps,
        "optimizer": "adamw",
        "learning_rate": arguments.learning_rate,
        "head_lr_multiplier": 10,
        "weight_decay": 0,
        "schedule": "poly",
        "save_every": 100000,
        "output_dir": folder,
    }
    return [sys.executable, str(RECIPE), *(f"--{name}={value}" for name, value in settings.items())]


def main() -> None:
    """Finetune with each learner from each start and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--inits", nargs="+", default=["random"])
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--shorter_side", type=int, default=96)
    parser.add_argument("--crop", type=int, nargs=2, default=[80, 96], help="height and width")
    parser.add_argument("--decoder_width", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--methods", nargs="+", default=list(LEARNERS), choices=LEARNERS)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/segmenters_same_budget"))
    arguments = parser.parse_args()
    cells: dict[tuple[str, int], str] = {}
    for method in arguments.methods:
        for start, init in enumerate(arguments.inits):
            folder = arguments.output_dir / f"{method}_{start}"
            if not (folder / "results.json").exists():
                subprocess.run(command_of(method, init, folder, arguments), check=True)
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            scores = results["metrics"]
            cells[method, start] = (
                f"{100 * scores['mean_iou']:.1f} | {100 * scores['pixel_accuracy']:.1f} | {results['seconds']:.0f}"
            )
    names = [Path(init).parent.name if Path(init).name == "model" else Path(init).name for init in arguments.inits]
    print("\n| learner |" + "".join(f" {name}: mean IoU % | pixels % | s |" for name in names))
    print("|---|" + "---|---|---|" * len(names))
    for method in arguments.methods:
        print(f"| {method} | " + " | ".join(cells[method, start] for start in range(len(names))) + " |")


if __name__ == "__main__":
    main()
