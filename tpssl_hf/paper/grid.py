"""The paper's tables and figures as cells, each of them a few commands, and what came out of them.

A YAML file of ``tables`` among the presets has ``rows`` and ``columns``; a cell is its ``cell``, overlaid by its row
and its column. In a cell, ``recipe``, ``preset`` and ``overrides`` make the last command; ``start`` says from which
weights it starts (random, in_sup, in_pixpro); ``pretrain`` and ``pretrain_overrides`` put a target pretraining
before it, and ``snapshot: N`` makes it start from the N-th checkpoint of that. ``bn_only`` makes that pretraining
leave all weights as they are, so that nothing but BatchNorm statistics is new. Other entries are names, for
``{name}`` in presets and overrides. ``paper`` lists the printed values of each row: null where the paper has no such
cell, which is not made then; what lies beyond the list is ours. ``scales`` adds to those of common.yaml. ``figure``
names the analysis that is made of all cells in the end, ``image`` the file a cell leaves that is the figure.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import read_config_file
from tpssl_hf.errors import InputError
from tpssl_hf.paper.cells import RUNS, Cell, Stage
from tpssl_hf.paper.config import ReproduceConfig

TABLES = {name: f"table{number}" for number, name in enumerate(("I", "II", "III", "IV", "V", "VI", "VII"), 1)}
FIGURES = {name: f"figure{name}" for name in ("1", "3", "4", "5")}
OWN = {"recipe", "preset", "overrides", "start", "pretrain", "pretrain_overrides", "snapshot", "select", "bn_only"}
STATISTICS_ONLY = {
    "base_learning_rate": 0.0,
    "max_steps": 1,
    "warmup_epochs": 0.0,
    "backbone_batchnorm": "train",
    "select": "last",
}


@dataclass(frozen=True)
class Plan:
    """A table or figure at one scale.

    Attributes:
        name: of its files.
        content: its YAML file.
        cells: what is to be made.
        note: what is to be thought of the scale.
        downloads: data sets that come from the Hub.
        sources: where each data set and weight comes from.
    """

    name: str
    content: Mapping[str, Any]
    cells: tuple[Cell, ...]
    note: str
    downloads: tuple[str, ...]
    sources: Mapping[str, str]


def figure_of(plan: Plan, runs: Path) -> Stage | None:
    """Return the command that draws the figure of all cells that are finished, or None where there is none."""
    analysis = plan.content.get("figure")
    cells = [cell for cell in plan.cells if cell.stages[-1].results(runs) is not None]
    if analysis == "steps":  # Φ_pre is no snapshot of a target pretraining
        cells = [cell for cell in cells if len(cell.stages) > 1]
    folders = [f"{RUNS}/{cell.stages[-1].name}" for cell in cells]
    overrides = {"analysis": analysis, "runs": ",".join(folders)}
    return Stage("analyze", None, overrides, plan.name) if analysis and folders else None


def make_plan(options: ReproduceConfig, configs: Path) -> Plan:
    """Read the table that is asked for, and plan its cells.

    Args:
        options: which table, at which scale, from which data and weights.
        configs: the folder of presets.

    Raises:
        InputError: if no such table, cell or data set exists, or not exactly one table is named.
    """
    file = _file_asked_for(options)
    content = read_config_file(configs / "tables" / f"{file}.yaml")
    common = read_config_file(configs / "tables" / "common.yaml")
    scale = common["scales"][options.scale]
    for recipe, keys in content.get("scales", {}).get(options.scale, {}).items():
        scale[recipe] = {**scale.get(recipe, {}), **keys}
    planner = _Planner(options, configs, scale, {**common["data"], **common["weights"]})
    cells: list[Cell] = []
    for row, of_row in content["rows"].items():
        printed = (content.get("paper") or {}).get(row, [])
        for number, (column, of_column) in enumerate(content["columns"].items()):
            value = printed[number] if number < len(printed) else None
            if number >= len(printed) or value is not None:
                cells.append(planner.cell(row, column, [content["cell"], of_row, of_column], value))
    planner.refuse_unused_paths()
    chosen, downloads = tuple(_chosen(cells, options.cells)), tuple(sorted(planner.downloads))
    return Plan(file, content, chosen, scale["note"], downloads, planner.sources)


def _file_asked_for(options: ReproduceConfig) -> str:
    table, figure = options.table, options.figure
    if (table is None) == (figure is None):
        given = "both" if table else "neither"
        raise InputError(f"{given} of --table and --figure is given; name one, such as --table V or --figure 1.")
    known, asked, kind = (TABLES, str(table).upper(), "table") if table else (FIGURES, str(figure), "figure")
    numbers = {file.removeprefix(kind): file for file in known.values()}
    if asked not in known and asked not in numbers:
        raise InputError(f"{kind} {asked!r} is not one of {', '.join(known)}; see --help.")
    return known.get(asked) or numbers[asked]


def _chosen(cells: Sequence[Cell], asked: str | None) -> list[Cell]:
    patterns = [part.strip() for part in asked.split(",")] if asked else ["*"]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            names = ", ".join(cell.name for cell in cells)
            raise InputError(f"no cell is called {pattern!r}; the cells are {names} (* stands for anything).")
    return [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]


class _Planner:
    """Settles cells one after the other, with what the user and the scale say of all of them."""

    def __init__(
        self, options: ReproduceConfig, configs: Path, scale: Mapping[str, Any], sources: Mapping[str, str]
    ) -> None:
        self.options, self.configs, self.scale, self.sources = options, configs, scale, sources
        self.paths = _paths(options.dataset_paths)
        self.seen: set[str] = set()
        self.downloads: set[str] = set()

    def cell(self, row: str, column: str, layers: Sequence[Mapping[str, Any]], paper: float | None) -> Cell:
        """Overlay ``layers`` and make the commands of one cell."""
        merged = {name: value for layer in layers for name, value in layer.items()}
        names = {name: value for name, value in merged.items() if name not in OWN}
        for name in ("overrides", "pretrain_overrides", "select"):
            given = {key: value for layer in layers for key, value in layer.get(name, {}).items()}
            merged[name] = {k: v.format(**names) if isinstance(v, str) else v for k, v in given.items()}
        missing: set[str] = set()
        start = self._start(merged["start"], missing)
        stages: list[Stage] = []
        if "pretrain" in merged:
            preset = merged["pretrain"].format(**names)
            own = {**merged["pretrain_overrides"], "init": start}
            adapted = self._stage("target_pretrain", preset, own, missing, f"{preset}_{merged['start']}")
            if merged.get("bn_only"):  # whatever the scale says of rate and length
                overrides = {**adapted.overrides, **STATISTICS_ONLY}
                adapted = replace(adapted, overrides=overrides, title=f"bn_only_{adapted.title}")
            stages.append(adapted)
            start = f"{RUNS}/{adapted.name}/model"
            if snapshot := merged.get("snapshot"):
                run = {"analysis": "steps", "run": f"{RUNS}/{adapted.name}"}
                snapshots = self._stage("analyze", None, run, missing, f"snapshots_{preset}")
                stages.append(snapshots)
                start = f"{RUNS}/{snapshots.name}/snapshots/step_{snapshot * adapted.overrides['save_every']}"
        if merged["recipe"] == "analyze":
            own = {"adapted": f"{RUNS}/{stages[-1].name}", **merged["overrides"]}
            stages.append(self._stage("analyze", None, own, missing, f"{own['analysis']}_{preset}"))
        else:
            preset = merged["preset"].format(**names)
            own = {**merged["overrides"], "init": start}
            title = f"{own['method']}_{preset}"
            stages.append(self._stage(merged["recipe"], preset, own, missing, title))
        return Cell(row, column, tuple(stages), merged["select"], paper, tuple(sorted(missing)))

    def _start(self, kind: str, missing: set[str]) -> str:
        kind = self.scale.get("starts", {}).get(kind, kind)
        if kind == "random":
            return kind
        if kind == "in_sup":
            return self.options.init
        if self.options.init_pixpro is None:
            missing.add(kind)
        return self.options.init_pixpro or "path/to/pixpro.safetensors"

    def _stage(
        self,
        recipe: str,
        preset: str | None,
        own: Mapping[str, Any],
        missing: set[str],
        title: str,
    ) -> Stage:
        path = self.configs / recipe / f"{preset}.yaml" if preset else None
        content = read_config_file(path) if path else {}
        method = own.get("method", content.get("method"))
        overrides = dict(own) | self.scale.get(recipe, {}) | self.scale.get(f"{recipe}/{method}", {})
        if self.options.backbone and recipe != "analyze":
            overrides["backbone"] = self.options.backbone
        if self.options.select and recipe == "target_pretrain":
            overrides["select"] = self.options.select
        if "dataset" in content and "dataset" not in overrides:
            name = Path(content["dataset"]).name
            self.seen.add(name)
            given = self.paths.get(name, self.options.dataset)
            if given:
                overrides["dataset"] = given
            source = given or content["dataset"]
            if not _is_path(source):
                self.downloads.add(name)
            elif not given:
                missing.add(name)
            elif not Path(given).expanduser().exists():
                raise InputError(f"{name} is to be in {given}, and there is no such folder; give the one it is in.")
        return Stage(recipe, path, overrides, re.sub(r"_paper|[^\w]", "", title))

    def refuse_unused_paths(self) -> None:
        """Refuse data sets that this table does not have."""
        known = ", ".join(sorted(self.seen)) or "none at this scale"
        for name in self.paths:
            if name not in self.seen:
                raise InputError(f"dataset_paths names {name!r}; the data sets of this table are: {known}.")
        if self.options.dataset and len(self.seen) != 1:
            raise InputError(
                f"--dataset says where one data set is, and this table has {len(self.seen)} ({known}); "
                "give --dataset_paths NAME=PATH,NAME=PATH."
            )


def _is_path(dataset: str) -> bool:
    return dataset.startswith((".", "/", "~", "path/to/")) or dataset.count("/") > 1


def _paths(text: str | None) -> dict[str, str]:
    """Read ``NAME=PATH,NAME=PATH``."""
    parts = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for name, _, path in parts:
        if not (name.strip() and path.strip()):
            raise InputError(f"dataset_paths {text!r} is not NAME=PATH,NAME=PATH, such as cifar10=data/cifar10.")
    return {name.strip(): path.strip() for name, _, path in parts}
