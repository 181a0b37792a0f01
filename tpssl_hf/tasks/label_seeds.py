"""One run for each of several label seeds, and the spread over them."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, TypeVar

from accelerate import Accelerator

from tpssl_hf.config.parser import flat
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.segment.config import SegmentArgs
from tpssl_hf.training.checkpoint_manager import locked_run_dir
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir

PRECISION = "mean_average_precision"
ArgsType = TypeVar("ArgsType", ClassifyArgs, SegmentArgs)
# What the runs of all label seeds have in common, as far as their results have it
SHARED = ("recipe", "method", "task", "dataset", "test", "class_names", "backbone", "init", "scored", "protocol")


def run_each_label_seed(
    args: ArgsType, accelerator: Accelerator, run_once: Callable[[ArgsType], int], metric: str
) -> int:
    """Run ``args``, or once below output_dir for each of its ``label_seeds``; returns the exit code.

    Args:
        args: of the run.
        accelerator: freed of the network after each run.
        run_once: arguments of one label seed -> exit code; another than 0 ends the rest.
        metric: what is averaged over the label seeds, a name in the ``metrics`` of ``results.json``; the mAP takes its
            place where images have several labels.
    """
    seeds = args.task.label_seeds
    if not seeds:
        return run_once(args)
    with ExitStack() as stack:
        whole = stack.enter_context(locked_run_dir(args)) if accelerator.is_main_process else None
        for seed in seeds:
            if code := run_once(of_label_seed(args, seed)):
                return code
            accelerator.free_memory()
        if whole:
            accelerator.print(save_label_seed_summary(whole, args, seeds, metric))
    return 0


def of_label_seed(args: ArgsType, seed: int) -> ArgsType:
    """Return the arguments of the run of one label seed, in a folder below ``output_dir``."""
    task = replace(args.task, label_seeds=None, label_seed=seed)
    run = replace(args.run, output_dir=str(Path(args.run.output_dir) / f"label_seed_{seed}"))
    return replace(args, task=task, run=run)


def save_label_seed_summary(
    run_dir: RunDir, args: ClassifyArgs | SegmentArgs, seeds: Sequence[int], metric: str
) -> str:
    """Write results.json over several label seeds; returns the summary for people."""
    files = [run_dir.path / f"label_seed_{seed}" / RESULTS for seed in seeds]
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    metric = PRECISION if all(part["metrics"].get(PRECISION) is not None for part in parts) else metric
    values = [part["metrics"][metric] for part in parts if metric in part["metrics"]]
    spread = mean_and_spread(values)
    facts = {name: parts[0][name] for name in SHARED if name in parts[0]}
    facts["protocol"] = "; or ".join(dict.fromkeys(part["protocol"] for part in parts))  # which network, by label seed
    facts |= {"label_seeds": list(seeds), metric: spread, "seconds": sum(part["seconds"] for part in parts)}
    facts |= {"beside": beside} if (beside := spread_of_candidates(parts)) else {}
    run_dir.write_json(RESULTS, run_facts(**facts, config=flat(args)))
    if not values:
        return f"\n{len(seeds)} label seeds, no test images, so no score: {run_dir.path}"
    plus = f" ± {100 * spread['standard_deviation']:.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    title = {"accuracy": "Accuracy", "mean_iou": "Mean IoU", PRECISION: "mAP"}[metric]
    means = ", ".join(f"{name.replace('_', ' ')} {100 * found['mean']:.1f} %" for name, found in beside.items())
    return (
        f"\n{title} over {len(seeds)} label seeds: {100 * spread['mean']:.1f}{plus} % ({each})\n"
        + (f"  of the candidates, whichever was deployed: {means}\n" if means else "")
        + f"  in {run_dir.path / RESULTS}"
    )


def spread_of_candidates(parts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean and spread of the test score of each candidate; empty unless all runs have compared them."""
    every = [
        {part["saved"]["candidate"]: part["metrics"].get("accuracy", part["metrics"].get(PRECISION)), **part["beside"]}
        for part in parts
        if part.get("beside")
    ]
    names = sorted(every[0]) if len(every) == len(parts) else []
    return {name: mean_and_spread([one[name] for one in every]) for name in names}


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, median, sample standard deviation (None for one value) and the values; empty without values."""
    if not values:
        return {}
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values), "median": median(values), "standard_deviation": deviation, "values": list(values)}
