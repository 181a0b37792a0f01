r"""How much is aligning pseudo-labels with the labels' shares worth, and what does it cost where classes are uneven?

    python benchmarks/aligned_pseudo_labels.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --labels 1,4 --alignments 0,0.5,1

FixMatch from the weights as they are, on training images alone: 30 % of them (1,500 at most) are held out and asked
about, and at most 4,000 of the others are learned from. `--uneven 10` keeps a tenth of one class, all of another, and
shares between of the rest, among the images of both; labels are drawn evenly all the same. Prints accuracy and
macro-averaged F1 of the averaged network, in per cent. A run that is there is not made again.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

import datasets
import numpy as np
from cells import Pair, read_pair

import tpssl_hf
from tpssl_hf.data.sources import load_source


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--labels", default="1,4", help="of each class, with commas")
    parser.add_argument("--alignments", default="0,0.5,1", help="with commas")
    parser.add_argument("--seeds", default="1", help="label seeds, with commas")
    parser.add_argument(
        "--uneven", type=float, default=1.0, help="images of the commonest class for one of the rarest"
    )
    parser.add_argument("--work_dir", default="outputs/aligned")
    arguments = parser.parse_args()
    print("| data | uneven | labels a class | label seed | alignment | accuracy | macro F1 |")
    print(f"|{'---|' * 7}", flush=True)
    for data in arguments.data:
        pair = read_pair(arguments.weights, data)
        folder = Path(arguments.work_dir) / f"{pair.data}_{arguments.uneven:g}"
        classes = held_out(pair, folder, arguments.uneven)
        for per_class in arguments.labels.split(","):
            for seed in arguments.seeds.split(","):
                for alignment in arguments.alignments.split(","):
                    name = f"{per_class}_{seed}_{alignment}"
                    metrics = finetuned(pair, folder, int(per_class) * classes, int(seed), float(alignment), name)
                    found = f"{100 * metrics['accuracy']:.1f} | {100 * metrics['macro_f1']:.1f}"
                    what = f"{pair.data} | {arguments.uneven:g} | {per_class} | {seed} | {alignment}"
                    print(f"| {what} | {found} |", flush=True)


def held_out(pair: Pair, folder: Path, uneven: float) -> int:
    """Write training images to learn from and to ask about as parquet; return the number of classes."""
    source = load_source(pair.dataset)
    labels, classes = source.label_column, len(source.class_names or [])
    table = source.dataset
    assert labels is not None and isinstance(table, datasets.Dataset)
    asked = 0.3 if len(table) < 5000 else 1500
    parts = table.train_test_split(test_size=asked, seed=3, stratify_by_column=labels)
    parts["train"] = parts["train"].select(range(min(4000, len(parts["train"]))))
    random = np.random.default_rng(5)
    order = random.permutation(classes)
    kept = {int(number): uneven ** (-place / (classes - 1)) for place, number in enumerate(order)}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, part in parts.items():
        if uneven > 1:
            places = [np.flatnonzero(np.array(part[labels]) == number) for number in range(classes)]
            some = [random.permutation(p)[: max(5, round(len(p) * kept[n]))] for n, p in enumerate(places)]
            part = part.select(np.sort(np.concatenate(some)))
        part.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return classes


def finetuned(pair: Pair, folder: Path, labels: int, seed: int, alignment: float, name: str) -> dict[str, float]:
    """Return the scores of FixMatch."""
    run = tpssl_hf.finetune_classifier(
        backbone=pair.architecture,
        init=pair.init,
        dataset=str(folder / "data"),
        method="fixmatch",
        alignment=alignment,
        labels=labels,
        label_seed=seed,
        image_size=64,
        select="last",
        batch_size=16,
        unlabeled_ratio=4,
        max_steps=300,
        log_every=50,
        cache_dir=folder / "cache",
        output_dir=folder / name,
    )
    metrics: dict[str, float] = run.results["metrics"]
    return metrics


if __name__ == "__main__":
    main()
