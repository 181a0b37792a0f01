"""What is known of a table's cells: the list of what would be run, and the table itself as JSON and Markdown."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import flat
from tpssl_hf.paper import launch
from tpssl_hf.paper.cells import LEVEL
from tpssl_hf.paper.config import ReproduceArgs
from tpssl_hf.paper.grid import Plan, figure_of
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RunDir


def listing(plan: Plan, folder: Path) -> list[str]:
    """Say for each cell whether it is done, what makes it and what is missing."""
    lines = [str(plan.content["title"]), plan.note, ""]
    shown: set[str] = set()
    for cell in plan.cells:
        outcome = cell.outcome(folder / "runs", plan.content["measure"])
        state = "done" if outcome["finished"] else "missing data" if cell.missing else "to run"
        lines.append(f"{cell.name}: {state}; {said(outcome)}; paper {printed(cell.paper)}")
        for stage in cell.stages:
            if stage.name in shown:
                lines.append(f"    (shared) {stage.name}")
            else:
                lines.append(f"    {shlex.join(['python', *launch.command_of(stage, folder)[1:]])}")
            shown.add(stage.name)
    return [*lines, *what_is_missing(plan)]


def what_is_missing(plan: Plan) -> list[str]:
    """Name data and weights that have to be given, and where they come from."""
    names = sorted({name for cell in plan.cells for name in cell.missing})
    lines = [f"downloaded once: {name}, from {plan.sources[name]}; or {how(name)}" for name in plan.downloads]
    lines += [f"missing: {name}, from {plan.sources[name]}; {how(name)}" for name in names]
    return ["", *lines] if lines else []


def how(name: str) -> str:
    """Say which key gives data or weights of this name."""
    return "give --init_pixpro FILE" if name == "in_pixpro" else f"give --dataset_paths {name}=PATH"


def images(plan: Plan, folder: Path) -> list[str]:
    """Return the images that are there."""
    name, stage = plan.content.get("image"), figure_of(plan, folder / "runs")
    found = [folder / "runs" / cell.stages[-1].name / name for cell in plan.cells] if name else []
    if stage is not None:
        found.append(folder / "runs" / stage.name / f"{plan.content['figure']}.png")
    return [str(path) for path in found if path.exists()]


def said(outcome: Mapping[str, Any]) -> str:
    """Return a value for people."""
    if not outcome["values"]:
        return "see its images" if outcome["finished"] else "no value yet"
    return f"ours {with_interval(outcome)} % (n = {len(outcome['values'])})"


def with_interval(outcome: Mapping[str, Any]) -> str:
    """Return ``mean ± half its interval``, or the value alone where there is one draw."""
    half = outcome["half_interval"]
    return f"{outcome['mean']:.1f}" + (f" ± {half:.1f}" if half is not None else "")


def printed(value: float | None) -> str:
    """Return a printed value for people."""
    return "–" if value is None else f"{value:.2f} %"


def write_table(plan: Plan, args: ReproduceArgs, failures: Mapping[str, str]) -> Path:
    """Write the table's .json and .md with what is there so far; returns the path of the .md."""
    folder, scale = Path(args.reproduce.output_dir), args.reproduce.scale
    runs, tables = folder / "runs", folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    entries = []
    for cell in plan.cells:
        outcome = cell.outcome(runs, plan.content["measure"])
        difference = outcome["mean"] - cell.paper if outcome["values"] and cell.paper is not None else None
        commands = [shlex.join(launch.command_of(stage, folder)) for stage in cell.stages]
        stages = [
            {"folder": str(runs / stage.name), "seconds": seconds, "command": command}
            for stage, seconds, command in zip(cell.stages, outcome.pop("seconds"), commands, strict=True)
        ]
        own = {"row": cell.row, "column": cell.column, **outcome, "paper": cell.paper, "difference": difference}
        entries.append({**own, "failed": failures.get(cell.name), "stages": stages})
    unique = {stage["folder"]: stage["seconds"] or 0.0 for entry in entries for stage in entry["stages"]}
    facts = run_facts(
        recipe="reproduce",
        table=plan.name,
        title=plan.content["title"],
        scale=scale,
        note=plan.note,
        measure=plan.content["measure"],
        columns=list(plan.content["columns"]),
        cells=entries,
        images=images(plan, folder),
        seconds=sum(unique.values()),
        config=flat(args),
    )
    path = tables / f"{plan.name}_{scale}.md"
    RunDir(tables, {}).write_json(path.with_suffix(".json").name, facts)
    path.write_text(markdown(facts), encoding="utf-8")
    return path


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the table for people: ours and the printed value by row and column, then every cell with its seconds."""
    cells = {(entry["row"], entry["column"]): entry for entry in facts["cells"]}
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = [column for column in facts["columns"] if any(key[1] == column for key in cells)]
    lines = [f"# {facts['title']}", "", f"Scale `{facts['scale']}`: {facts['note']}", ""]
    interval = f"{100 * LEVEL:.0f} % interval of the mean over label seeds (Student's t)"
    lines += [f"Ours ± half the {interval}, / the paper's, in %; – where there is none.", ""]
    lines += ["| |" + "".join(f" {column} |" for column in columns), "|---" * (1 + len(columns)) + "|"]
    for row in rows:
        found = [short(cells[row, column]) if (row, column) in cells else "" for column in columns]
        lines.append(f"| {row} |" + "".join(f" {text} |" for text in found))
    lines += ["", "| cell | ours, % | n | paper, % | difference | seconds | state |", "|---|---|---|---|---|---|---|"]
    for (row, column), entry in cells.items():
        seconds = [f"{stage['seconds']:.0f}" if stage["seconds"] is not None else "–" for stage in entry["stages"]]
        difference = "–" if entry["difference"] is None else f"{entry['difference']:+.1f}"
        state = "done" if entry["finished"] else f"not made: {entry['failed']}" if entry["failed"] else "not made yet"
        ours, _, paper = short(entry).partition(" / ")
        values = (ours, str(len(entry["values"])), paper, difference, " + ".join(seconds), state)
        lines.append(f"| {row}/{column} | " + " | ".join(text.replace("|", "\\|") for text in values) + " |")
    lines += ["", f"Seconds: those of a cell's commands in order; {facts['seconds']:.0f} s in all, shared ones once."]
    lines += ["", *(f"Figure: {path}" for path in facts["images"])] if facts["images"] else []
    given = {name: value for name, value in facts["config"].items() if value is not None and name != "list"}
    words = ["tpssl-hf", "reproduce", *(f"--{name}={value}" for name, value in given.items())]
    return "\n".join([*lines, "", f"    {shlex.join(words)}", ""])


def short(entry: Mapping[str, Any]) -> str:
    """Return ``ours ± half its interval / paper``."""
    ours = with_interval(entry) if entry["values"] else "–"
    return f"{ours} / {'–' if entry['paper'] is None else format(entry['paper'], '.2f')}"
