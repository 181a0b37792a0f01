"""Tables and curves over finished finetuning runs, read from what they left in their folders (Table VI, Fig. 3, 4)."""

import glob
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError
from tpssl_hf.training.run_dir import CONFIG, METRICS, RESULTS, read_metrics

RECIPE = "ssl_classify"


@dataclass(frozen=True)
class FinishedRun:
    """One finished run of classify, of one or several label seeds.

    Attributes:
        folder: where it is.
        results: its results.json.
        accuracies: on the test split, in [0, 1], one for each label seed.
    """

    folder: Path
    results: dict[str, Any]
    accuracies: list[float]

    @property
    def config(self) -> dict[str, Any]:
        """Every key of the run with its value."""
        config: dict[str, Any] = self.results["config"]
        return config

    @property
    def start(self) -> str:
        """Name of the weights it started from."""
        init = self.results["init"]
        return "random" if init["kind"] == "random" else str(init["name"])

    @property
    def task(self) -> str:
        """Data set and labels, as ``cifar10@40``."""
        labels = self.config["labels"]
        return f"{self.results['dataset']['name']}@{Path(labels).name if isinstance(labels, str) else labels}"


def find_runs(named: str | None) -> list[FinishedRun]:
    """Read the runs in the folders ``named``, with commas between; ``*`` stands for any name.

    Raises:
        InputError: if a folder does not hold a finished and scored run of classify, or none is named.
    """
    folders: list[str] = []
    for part in (part.strip() for part in (named or "").split(",")):
        folders += sorted(glob.glob(part)) if "*" in part else [part] if part else []
    if not folders:
        raise InputError(
            f"runs {named!r} names no folder; give --runs the folders of finished classify runs, with commas "
            "between (outputs/one,outputs/two or 'outputs/*')."
        )
    return [_read(Path(folder)) for folder in folders]


def _read(folder: Path) -> FinishedRun:
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        recipe = results.get("recipe")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder} holds no readable {RESULTS}: it is no finished run; finish it, or leave it out of --runs."
        ) from error
    if recipe != RECIPE:
        raise InputError(f"{folder} is a run of {recipe}; --runs takes runs of {RECIPE}.")
    if "mean_average_precision" in {**results, **results.get("metrics", {})}:
        raise InputError(
            f"{folder} is a run of several labels an image and has no accuracy to compare; leave it out of --runs."
        )
    if "accuracy" in results:  # over several label seeds
        values = list(results["accuracy"].get("values", []))
    else:
        values = [results["metrics"]["accuracy"]] if "accuracy" in results["metrics"] else []
    if not values:
        raise InputError(f"{folder} has no score, because it ran with --test_split none; leave it out of --runs.")
    return FinishedRun(folder, results, values)


def transfer_table(runs: Sequence[FinishedRun]) -> dict[str, dict[str, FinishedRun]]:
    """Arrange runs as Table VI: start -> data set and labels -> run; a cell nobody has filled is absent.

    Raises:
        InputError: if the runs differ in learner or backbone, two share a cell, or two starts share a name.
    """
    _refuse_mixture(runs, "method")
    _refuse_mixture(runs, "backbone")
    table: dict[str, dict[str, FinishedRun]] = {}
    for run in runs:
        row = table.setdefault(run.start, {})
        if run.task in row:
            raise InputError(
                f"{row[run.task].folder} and {run.folder} both finetune {run.start} on {run.task}; leave one out of "
                "--runs. Several label seeds belong into one run: --label_seeds 1,2,3."
            )
        other = next(iter(row.values()), run)
        if other.results["init"].get("sha256") != run.results["init"].get("sha256"):
            raise InputError(
                f"{other.folder} and {run.folder} start from different weights that are both called {run.start}; "
                "rename a folder of weights and run again, or leave one out of --runs."
            )
        row[run.task] = run
    return table


def _refuse_mixture(runs: Sequence[FinishedRun], key: str) -> None:
    """Refuse runs that differ in a key that makes their scores incomparable."""
    found: dict[str, Path] = {}
    for run in runs:
        found.setdefault(str(run.config[key]), run.folder)
    if len(found) > 1:
        mixed = " and ".join(f"{value} ({folder})" for value, folder in list(found.items())[:2])
        raise InputError(f"the runs mix {key} {mixed}; one table compares starts, give --runs of one {key}.")


def missing_commands(table: dict[str, dict[str, FinishedRun]]) -> list[str]:
    """Return the commands that would fill the empty cells, each with the keys of a run of its column."""
    commands = []
    for task in dict.fromkeys(task for row in table.values() for task in row):
        donor = next(row[task] for row in table.values() if task in row)
        for start, row in table.items():
            if task not in row:
                init = str(next(iter(row.values())).config["init"])
                name = re.sub(r"[^\w@.-]+", "_", f"{start}_on_{task}")
                words = ["tpssl-hf", "classify", "--config", str(donor.folder / CONFIG)]
                words += ["--init", init, "--output_dir", str(donor.folder.parent / name)]
                commands.append(shlex.join(words))
    return commands


def steps_of_runs(runs: Sequence[FinishedRun]) -> dict[str, dict[int, list[float]]]:
    """Arrange runs as Fig. 3: labels -> step of the snapshot they started from -> accuracies.

    Raises:
        InputError: if a run did not start from a folder ``step_N``, two share a point, or the runs differ in learner,
            backbone, or the folder their snapshots lie in.
    """
    _refuse_mixture(runs, "method")
    _refuse_mixture(runs, "backbone")
    series: dict[str, dict[int, list[float]]] = {}
    folders = {Path(run.config["init"]).parent for run in runs}
    for run in runs:
        match = re.fullmatch(r"step_(\d+)", Path(run.config["init"]).name)
        if match is None or len(folders) > 1:
            raise InputError(
                f"{run.folder} starts from {run.config['init']}; for steps all --runs must start from snapshots of "
                "one target pretraining, snapshots/step_N as `--analysis steps --run FOLDER` leaves them."
            )
        points = series.setdefault(run.task, {})
        if int(match[1]) in points:
            raise InputError(f"two of --runs finetune step {match[1]} on {run.task}; leave {run.folder} out.")
        points[int(match[1])] = run.accuracies
    return {task: dict(sorted(points.items())) for task, points in series.items()}


@dataclass(frozen=True)
class Curve:
    """Test accuracy of one run, or of one label seed of it, along the way.

    Attributes:
        run: folder of the run.
        title: data set, labels, learner and start.
        group: data set and labels: what curves must share to be compared.
        adapted: whether it started from the ``model`` folder of another run.
        epochs: epochs of each evaluation.
        accuracies: in [0, 1], of the EMA network.
    """

    run: Path
    title: str
    group: str
    adapted: bool
    epochs: list[float]
    accuracies: list[float]


def convergence_curves(runs: Sequence[FinishedRun]) -> list[Curve]:
    """Read the curves of Fig. 4 from the runs' metrics.jsonl.

    Raises:
        InputError: if a run was not evaluated along the way.
    """
    curves = []
    for run in runs:
        parts = sorted(run.folder.glob(f"label_seed_*/{METRICS}")) or [run.folder / METRICS]
        for part in parts:
            points = [(line["epoch"], line["test_accuracy"]) for line in read_metrics(part) if "test_accuracy" in line]
            if not points:
                raise InputError(
                    f"{part} holds no test accuracy along the way; run it again with --evaluate_every 1 (epochs "
                    "between evaluations), or leave it out of --runs."
                )
            epochs, accuracies = (list(values) for values in zip(*points, strict=True))
            title = f"{run.config['method']} from {run.start}"
            curves.append(Curve(run.folder, title, run.task, run.start.endswith("/model"), epochs, accuracies))
    return curves
