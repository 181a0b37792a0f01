r"""What does adapting add once a network is finetuned well? FixMatch from adapted weights and from the base.

    python benchmarks/adapt_then_finetune.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --adaptations moco:20,distill:2 --labels 1,4,25

The claim of arXiv 2205.03001 is about this difference, and that it grows as labels shrink. A cell is a pair of weights
and data: adapted without labels by `tpssl_hf.pretrain` with each method for so many epochs, then finetuned by FixMatch
with few labels a class, from the base and from each adaptation, with the same labels and the same seeds. The last
averaged network is asked about the test split, once. Labels are drawn by label seed, by which differences are paired.
A run that is there is not made again. FixMatch as published is `--alignment 0`, a cell of its own. `python
benchmarks/does_it_help.py page` writes the page.
"""

import argparse
import time
from pathlib import Path

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

from cells import BATCH_SIZE, BATCH_SIZES, EVIDENCE, read_cell, read_pair, write_cell

import tpssl_hf
from tpssl_hf.data.sources import load_source
from tpssl_hf.tasks.classify.config import FITTED_ALIGNMENT

BASE = "base"  # among the starts of FixMatch


def main() -> None:
    """Make what is missing of each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--adaptations", default="moco:20", help="METHOD:EPOCHS, with commas")
    parser.add_argument("--labels", default="1,4,25", help="of each class, with commas")
    parser.add_argument("--seeds", type=int, default=5, help="label seeds")
    parser.add_argument("--max_steps", type=int, default=300, help="of each finetuning")
    parser.add_argument("--alignment", type=float, default=FITTED_ALIGNMENT, help="of FixMatch; 0 as published")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of everything")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--limit_images", type=int, default=10000)
    parser.add_argument("--limit_test_images", type=int, default=2000)
    parser.add_argument("--work_dir", default="outputs/adapt_then_finetune")
    arguments = parser.parse_args()
    for data in arguments.data:
        run_cell(data, arguments)


def run_cell(data: str, arguments: argparse.Namespace) -> None:
    """Adapt, then finetune from each start with each number of labels and label seed; write the cell after each."""
    pair = read_pair(arguments.weights, data)
    name = f"{pair.weights}_{pair.data}" + (f"_aligned{arguments.alignment:g}" if arguments.alignment else "")
    file, folder = EVIDENCE / f"finetuned_{name}.json", Path(arguments.work_dir) / name
    cell = read_cell(file)
    cell |= {
        "weights": pair.weights,
        "data": pair.data,
        "max_steps": arguments.max_steps,
        "image_size": arguments.image_size,
        "alignment": arguments.alignment,
        "precision": arguments.precision,
    }
    adaptations, accuracies = cell.setdefault("adaptations", {}), cell.setdefault("accuracies", {})
    shared = {
        "backbone": pair.architecture,
        "dataset": pair.dataset,
        "precision": arguments.precision,
        "image_size": arguments.image_size,
    }
    shared |= {"limit_images": arguments.limit_images, "cache_dir": f"{arguments.work_dir}/cache"}
    starts = {BASE: pair.init}
    for adaptation in arguments.adaptations.split(","):
        method, epochs = adaptation.split(":")
        began, output_dir = time.process_time(), folder / f"adapted_{method}_{epochs}"
        begun_before = output_dir.exists()
        adapted = tpssl_hf.pretrain(
            **shared,
            init=pair.init,
            method=method,
            epochs=int(epochs),
            batch_size=BATCH_SIZES.get(method, BATCH_SIZE),
            output_dir=output_dir,
        )
        starts[adaptation] = str(adapted.model_path)
        if adaptation not in adaptations:
            results = adapted.results
            adaptations[adaptation] = {
                "steps": results["steps"],
                "batch_size": results["config"]["batch_size"],
                "cpu_minutes": None if begun_before else (time.process_time() - began) / 60,
                "saved": results["saved"]["candidate"],
            }
            cell |= {"machine": results["machine"], "versions": results["versions"]}
    classes = len(load_source(pair.dataset).class_names or [])
    for per_class in arguments.labels.split(","):
        for seed in range(1, arguments.seeds + 1):
            for start, weights in starts.items():
                done = accuracies.setdefault(per_class, {}).setdefault(start, {})
                if str(seed) in done:
                    continue
                began = time.process_time()
                run = tpssl_hf.finetune_classifier(
                    **shared,
                    init=weights,
                    method="fixmatch",
                    alignment=arguments.alignment,
                    labels=int(per_class) * classes,
                    label_seed=seed,
                    select="last",
                    batch_size=16,
                    unlabeled_ratio=4,
                    max_steps=arguments.max_steps,
                    limit_test_images=arguments.limit_test_images,
                    log_every=50,
                    output_dir=folder / f"fixmatch_{per_class}_{start.replace(':', '_')}_{seed}",
                )
                accuracy = run.results["metrics"]["accuracy"]
                done[str(seed)] = {"accuracy": accuracy, "cpu_seconds": time.process_time() - began}
                write_cell(file, cell)


if __name__ == "__main__":
    main()
