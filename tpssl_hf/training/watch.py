"""How far a run is and whether it is well, by what it has written to its folder; nothing of the run is touched."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tpssl_hf.config.allowed import ABOVE_0
from tpssl_hf.config.parser import key, read_config_file
from tpssl_hf.errors import InputError
from tpssl_hf.plots.headline import COLLAPSED, health_of
from tpssl_hf.training.run_dir import CONFIG, LOCK, METRICS, RESULTS, read_metrics

RECENT = 5  # lines of the log whose speed tells how long the rest takes
BAR = 30  # characters
SHOWN = {  # name in the log -> what people are told
    "accepted": "accepted share",
    "test_accuracy": "test accuracy",
    "validation_accuracy": "held-out accuracy",
    "test_mean_average_precision": "test mAP",
    "validation_mean_average_precision": "held-out mAP",
    "choosing_accuracy": "choosing accuracy",
    "drift": "drift",
    "learning_rate": "learning rate",
    "images_per_second": "images/s",
}
HEALTH = {
    "health_embedding_std": "std of embeddings",
    "health_effective_rank": "effective rank",
    "health_knn_accuracy": "kNN accuracy",
}


@dataclass(frozen=True)
class WatchConfig:
    """Watching a run."""

    run: str = key("", "Folder of a run, its `output_dir`; may also be given first, without `--run`.")
    every: float = key(5.0, "Seconds between two looks.", within=ABOVE_0)
    once: bool = key(False, "Look once and end.")


@dataclass(frozen=True)
class WatchArgs:
    """Every key of watch."""

    watch: WatchConfig


def look(folder: Path, *, now: float | None = None) -> str:
    """Say in a few lines how far a run is, how long the rest takes, its last losses and its health.

    Args:
        folder: of the run.
        now: seconds since the epoch; the time it is when not given.

    Raises:
        InputError: for a folder that is none of a run, and a log that is damaged.
    """
    try:
        config = read_config_file(folder / CONFIG)
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder} holds no {CONFIG} of a run; give the output_dir of pretrain, classify or segment, of several "
            "label seeds the folder of one."
        ) from error
    entries = read_metrics(folder / METRICS)
    lines = [" ".join(str(config[name]) for name in ("method", "backbone", "dataset") if config.get(name))]
    if is_finished(folder):
        seconds = json.loads((folder / RESULTS).read_text(encoding="utf-8")).get("seconds")
        took = f" in {duration(seconds)}" if isinstance(seconds, int | float) else ""
        lines.append(f"  finished{took}; {folder / RESULTS} has the results")
    elif not entries:
        lines.append("  no step is logged yet" if (folder / LOCK).exists() else "  not running, and no step is logged")
    else:
        age = (time.time() if now is None else now) - (folder / METRICS).stat().st_mtime
        lines += [f"  {progress(config, entries)}", f"  {state(folder, age)}"]
    if entries:
        lines += [f"  {part}" for part in (losses(entries), measures(entries), health(entries)) if part]
    return "\n".join(lines)


def is_finished(folder: Path) -> bool:
    """Whether a run has written its results."""
    return (folder / RESULTS).exists()


def progress(config: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a bar, the steps made and to make, and how long the rest takes at the speed of the last lines."""
    step, total = int(entries[-1]["step"]), total_steps(config, entries[-1])
    if total is None:
        return f"step {step:,}"
    done = min(1.0, step / total)
    filled = round(BAR * done)
    text = f"[{'#' * filled}{'.' * (BAR - filled)}] {done:4.0%}  step {step:,} of {total:,}"
    speeds = [entry["images_per_second"] for entry in entries[-RECENT:] if entry.get("images_per_second")]
    if not speeds or step >= total:
        return text
    images = config["batch_size"] * (1 + (config.get("unlabeled_ratio") or 0))
    return f"{text}, {duration((total - step) * images / median(speeds))} of training left"


def total_steps(config: Mapping[str, Any], last: Mapping[str, Any]) -> int | None:
    """Return how many steps the run makes; None where neither keys nor log tell."""
    if config.get("max_steps"):
        return int(config["max_steps"])
    if config.get("epochs") and last.get("epoch"):
        return max(1, round(float(last["step"] * config["epochs"] / last["epoch"])))
    return None


def state(folder: Path, age: float) -> str:
    """Say when the last line was written; a run that was killed leaves its lock, which alone says little."""
    if not (folder / LOCK).exists():
        return f"not running: stopped {duration(age)} ago; the same command continues it"
    return f"last line {duration(age)} ago"


def losses(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the losses of the last line, and where the first one was."""
    found = {name: value for name, value in entries[-1].items() if name.startswith("loss")}
    parts = [f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items()]
    if "loss" in entries[0] and len(entries) > 1:
        parts.append(f"(at step {entries[0]['step']:,}: loss {number(entries[0]['loss'])})")
    return "  ".join(parts)


def measures(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the last known value of each other measure that people look at."""
    return "  ".join(
        f"{title} {number(latest(entries, name))}" for name, title in SHOWN.items() if name in _all(entries)
    )


def health(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what the last check of the features found; empty where none was made."""
    found = health_of(entries)
    if not found:
        return ""
    reason = " (different images look nearly the same)" if COLLAPSED in found else ""
    parts = [f"{title} {number(latest(entries, name))}" for name, title in HEALTH.items() if name in _all(entries)]
    return f"{found}{reason}  {'  '.join(parts)}"


def latest(entries: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Return the last known value of a measure; None without one."""
    return next((entry[name] for entry in reversed(entries) if entry.get(name) is not None), None)


def number(value: Any) -> str:
    """Write a value of the log; NaN and infinities are null there."""
    return "not finite" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Write a duration for people."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _all(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    return {name for entry in entries for name in entry}
