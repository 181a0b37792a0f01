r"""Do a finetuning's folds deploy the better network? Its choice beside what the test split says of all candidates.

    python benchmarks/rightly_deployed.py --weights lite0=tf_efficientnet_lite0:path/to/weights \
        --data eurosat=path/to/eurosat --learners supervised,fixmatch --labels 4,25

`tpssl-hf classify` compares what it finetuned with the frozen probe and label spreading by labels held out in turn, in
short runs (`--select best`). A choice is wrong by as much as the best candidate is better on the test split, which
nothing is chosen by. A run that is there is not made again.
"""

import argparse
from pathlib import Path
from statistics import mean

if __name__ == "__main__":
    from tpssl_hf.process import prepare_process

    prepare_process()

from cells import Pair, read_pair

import tpssl_hf
from tpssl_hf.data.sources import load_source
from tpssl_hf.tasks.classify.selection import FINETUNED


def main() -> None:
    """Print a row for each data set, number of labels and learner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="NAME=ARCHITECTURE:INIT")
    parser.add_argument("--data", required=True, nargs="+", help="NAME=DATASET")
    parser.add_argument("--learners", default="supervised,fixmatch", help="with commas")
    parser.add_argument("--labels", default="4,25", help="of each class, with commas")
    parser.add_argument("--seeds", type=int, default=5, help="label seeds")
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--work_dir", default="outputs/rightly_deployed")
    arguments = parser.parse_args()
    print(
        "| data | labels a class | learner | finetuned | best baseline | baseline deployed | of these better | lost |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for data in arguments.data:
        pair = read_pair(arguments.weights, data)
        for per_class in arguments.labels.split(","):
            for learner in arguments.learners.split(","):
                found = [run(pair, learner, int(per_class), seed, arguments) for seed in range(1, arguments.seeds + 1)]
                print(f"| {pair.data} | {per_class} | {learner} | {row(found)} |", flush=True)


def run(
    pair: Pair, learner: str, per_class: int, seed: int, arguments: argparse.Namespace
) -> tuple[str, dict[str, float]]:
    """Finetune; return the name of what is deployed, and the test accuracy of each candidate in per cent."""
    finished = tpssl_hf.finetune_classifier(
        backbone=pair.architecture,
        init=pair.init,
        dataset=pair.dataset,
        method=learner,
        labels=per_class * len(load_source(pair.dataset).class_names or []),
        label_seed=seed,
        image_size=64,
        batch_size=16,
        unlabeled_ratio=4,
        max_steps=arguments.max_steps,
        limit_test_images=2000,
        log_every=50,
        cache_dir=f"{arguments.work_dir}/cache",
        output_dir=Path(arguments.work_dir) / f"{pair.weights}_{pair.data}_{per_class}_{learner}_{seed}",
    )
    name = finished.results["saved"]["candidate"]
    beside = {name: finished.results["metrics"]["accuracy"], **finished.results["beside"]}
    return name, {candidate: 100 * accuracy for candidate, accuracy in beside.items()}


def row(found: list[tuple[str, dict[str, float]]]) -> str:
    """Return means over label seeds, how often a baseline is deployed, and what wrong choices lose."""
    baselines = [max(value for name, value in accuracies.items() if name != FINETUNED) for _, accuracies in found]
    others = [(accuracies[name], accuracies[FINETUNED]) for name, accuracies in found if name != FINETUNED]
    lost = [max(accuracies.values()) - accuracies[name] for name, accuracies in found]
    return " | ".join(
        [
            f"{mean(accuracies[FINETUNED] for _, accuracies in found):.1f}",
            f"{mean(baselines):.1f}",
            f"{len(others)} of {len(found)}",
            str(sum(one > other for one, other in others)),
            f"{mean(lost):.1f} ({', '.join(f'{points:.1f}' for points in lost)})",
        ]
    )


if __name__ == "__main__":
    main()
