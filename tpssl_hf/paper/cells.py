"""One cell of the paper's tables: the commands that make it, and what came out of them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from tpssl_hf.config.parser import read_config_file
from tpssl_hf.training.run_dir import RESULTS

LEVEL = 0.95  # of the intervals over label seeds
RUNS = "{runs}"  # stands for the folder of all runs, so that a run's name does not depend on where it is


@dataclass(frozen=True)
class Stage:
    """One command: a recipe with a preset and keys that replace those of the preset.

    Attributes:
        recipe: name of the script.
        preset: YAML file of keys, or None.
        overrides: keys that replace those of the preset.
        title: beginning of its folder's name.
    """

    recipe: str
    preset: Path | None
    overrides: Mapping[str, Any]
    title: str

    @cached_property
    def name(self) -> str:
        """Name of its folder: equal keys have equal names, so cells and tables share their runs."""
        resolved = (read_config_file(self.preset) if self.preset else {}) | dict(self.overrides) | {"output_dir": None}
        content = [self.recipe, {name: str(value) for name, value in resolved.items()}]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.title}-{digest[:8]}"

    @property
    def produces(self) -> str:
        """The file that is there once it is finished."""
        return f"{self.overrides['analysis']}.json" if self.recipe == "analyze" else RESULTS

    def arguments(self, runs: Path) -> list[str]:
        """Return the command line after the script."""
        preset = [f"--config={self.preset}"] if self.preset else []
        values = {name: "null" if value is None else value for name, value in self.overrides.items()}
        overrides = [f"--{name}={value}".replace(RUNS, str(runs)) for name, value in values.items()]
        return [*preset, *overrides, f"--output_dir={runs / self.name}"]

    def results(self, runs: Path) -> dict[str, Any] | None:
        """Return what it has left, or None where it is not finished."""
        try:
            found: dict[str, Any] = json.loads((runs / self.name / self.produces).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the commands that make it, the last of which holds its value.

    Attributes:
        row: its row.
        column: its column.
        stages: commands in order.
        select: which entries of an analysis are its values.
        paper: the printed value in per cent, or None.
        missing: names of data and weights that have to be given first.
    """

    row: str
    column: str
    stages: tuple[Stage, ...]
    select: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``row/column``."""
        return f"{self.row}/{self.column}"

    def outcome(self, runs: Path, measure: str) -> dict[str, Any]:
        """Return values in per cent, one for each draw or start, their mean, spread and interval, and the seconds."""
        found = [stage.results(runs) for stage in self.stages]
        last = found[-1]
        values: list[float] = []
        if last and "table" in last:
            entries = [e for e in last["table"] if all(e.get(k) == v for k, v in self.select.items())]
            values = [100 * e["value"] for e in entries if isinstance(e["value"], float)]
        elif last:
            drawn = last[measure]["values"] if measure in last else [last["metrics"][measure]]
            values = [100 * value for value in drawn]
        return {
            "finished": last is not None,
            "values": values,
            "mean": mean(values) if values else None,
            "standard_deviation": stdev(values) if len(values) > 1 else None,
            "half_interval": _half_interval(values) if len(values) > 1 else None,
            "seconds": [content["seconds"] if content else None for content in found],
        }


def _half_interval(values: Sequence[float]) -> float:
    """Half the width of the interval of the mean by Student's t, wide for few draws: 2.5 deviations for three."""
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return quantile * stdev(values) / math.sqrt(len(values))
