"""One run for each of several draws of labels, and the spread over them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from accelerate import Accelerator

from tpssl_hf.config.shared import CARRY_OUT_KEYS
from tpssl_hf.training.run_dir import RunDir


def run_each_label_seed(
    settings: dict[str, Any],
    accelerator: Accelerator,
    run_once: Callable[[dict[str, Any]], int],
    save_label_seed_summary: Callable[[RunDir, list[int]], None],
) -> int:
    """Run ``settings``, or once below output_dir for each of its ``label_seeds``; returns the exit code.

    Args:
        settings: every key with its value.
        accelerator: freed of the network after each draw.
        run_once: settings of one draw -> exit code; another than 0 ends the rest.
        save_label_seed_summary: called on the main process with the folder of all draws and their seeds, once
            all are finished.
    """
    if not settings["label_seeds"]:
        return run_once(settings)
    folder, seeds = Path(settings["output_dir"]), list(settings["label_seeds"])
    with ExitStack() as stack:
        whole = None
        if accelerator.is_main_process:
            whole = stack.enter_context(RunDir(folder, settings, ignore=CARRY_OUT_KEYS))
        for seed in seeds:
            own = {"label_seeds": None, "label_seed": seed, "output_dir": str(folder / f"label_seed_{seed}")}
            code = run_once(settings | own)
            if code:
                return code
            accelerator.free_memory()
        if whole:
            save_label_seed_summary(whole, seeds)
    return 0


def mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, median, sample standard deviation (None for one value) and the values; empty without values."""
    if not values:
        return {}
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values), "median": median(values), "standard_deviation": deviation, "values": list(values)}
