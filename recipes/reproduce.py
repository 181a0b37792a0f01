"""Make the paper's tables and figures: print or run the commands behind each cell, and set ours beside the printed.

    python recipes/reproduce.py --table V --list                       # what would be run, and what is missing
    python recipes/reproduce.py --table V --scale small                # CIFAR-10 on two CPU cores, two hours
    python recipes/reproduce.py --table I --scale paper --cells 'in_sup_*/cifar10_40'
    python recipes/reproduce.py --figure 4 --scale smoke               # the embedded digits, to see every command run

Tables I to VII and figures 1, 3, 4, 5, from the grids in recipes/configs/tables. A cell is one to three commands of
the other recipes, each in a folder of its own in --output_dir/runs, which cells and tables share where their settings
are the same. Started again, what is finished is kept and what was interrupted continues. After every cell
--output_dir/tables holds NAME_SCALE.md and .json: our value with its 95 % interval over draws of labels, the printed
value, the seconds. A cell that fails is named with its command and its log in --output_dir/logs, and the others go on;
the exit code is then 1.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import parse_config, take
from tpssl_hf.paper.cells import LEVEL, Cell, Stage
from tpssl_hf.paper.config import ReproduceConfig
from tpssl_hf.paper.grid import Plan, figure_of, make_plan
from tpssl_hf.process import run_cli
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RunDir, StopSignals

RECIPES = Path(__file__).parent
LISTENING = 0.2  # seconds between looks at whether somebody wants this to stop


def main() -> int:
    """Settle the cells, list them or make them one after the other; returns the exit code."""
    settings = read_settings(sys.argv[1:])
    plan = make_plan(take(ReproduceConfig, settings), RECIPES / "configs")
    folder = Path(settings["output_dir"])
    if settings["list"]:
        print("\n".join(listing(plan, folder)))
        return 0
    failures: dict[str, str] = {}
    with StopSignals() as signals:
        for number, cell in enumerate(plan.cells, 1):
            print(f"[{number}/{len(plan.cells)}] {cell.name}", flush=True)
            make_cell(cell, folder, failures, signals, plan)
            write_table(plan, folder, settings, failures)
            if signals.requested:
                print("stopped; the same command continues from there")
                return signals.exit_code
        draw_figure(plan, folder, settings, failures, signals)
    print((folder / "tables" / f"{plan.name}_{settings['scale']}.md").read_text(encoding="utf-8"))
    return 1 if failures else 0


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Resolve every key."""
    return parse_config([ReproduceConfig], arguments, description=__doc__ or "")


def command_of(stage: Stage, folder: Path) -> list[str]:
    """Return the command line of one stage."""
    script = os.path.relpath(RECIPES / f"{stage.recipe}.py")
    arguments = [a.replace(str(RECIPES), os.path.relpath(RECIPES)) for a in stage.arguments(folder / "runs")]
    return [sys.executable, script, *arguments]


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
                lines.append(f"    {shlex.join(['python', *command_of(stage, folder)[1:]])}")
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


def make_cell(cell: Cell, folder: Path, failures: dict[str, str], signals: StopSignals, plan: Plan) -> None:
    """Run what is not finished of one cell; what goes wrong is told and put into ``failures``, by cell and stage."""
    reason = ""
    if cell.missing and not cell.stages[-1].results(folder / "runs"):
        reason = "missing " + "; ".join(f"{name} ({plan.sources[name]}): {how(name)}" for name in cell.missing)
    for stage in cell.stages:
        if reason or stage.results(folder / "runs") is not None:
            continue
        if stage.name in failures:
            reason = f"it needs {stage.name}, which failed: {failures[stage.name]}"
            continue
        began = time.perf_counter()
        code = run_stage(stage, folder, signals)
        if signals.requested:
            return
        if code or stage.results(folder / "runs") is None:
            reason = f"{last_words(log_of(stage, folder))} (exit code {code}; whole log: {log_of(stage, folder)})"
            failures[stage.name] = reason
            print(f"    failed: {shlex.join(command_of(stage, folder))}", flush=True)
        else:
            print(f"    {stage.name}: {time.perf_counter() - began:.0f} s", flush=True)
    if reason:
        failures[cell.name] = reason
        print(f"    not made: {reason}", flush=True)
    else:
        outcome = cell.outcome(folder / "runs", plan.content["measure"])
        print(f"    {said(outcome)}, paper {printed(cell.paper)}", flush=True)


def draw_figure(
    plan: Plan, folder: Path, settings: dict[str, Any], failures: dict[str, str], signals: StopSignals
) -> None:
    """Draw the figure of all finished cells, where the plan has one."""
    stage = figure_of(plan, folder / "runs")
    if stage is None:
        return
    if stage.results(folder / "runs") is None and run_stage(stage, folder, signals):
        failures["the figure"] = f"{last_words(log_of(stage, folder))} (whole log: {log_of(stage, folder)})"
        print(f"the figure could not be drawn: {failures['the figure']}")
    write_table(plan, folder, settings, failures)


def images(plan: Plan, folder: Path) -> list[str]:
    """Return the images that are there."""
    name, stage = plan.content.get("image"), figure_of(plan, folder / "runs")
    found = [folder / "runs" / cell.stages[-1].name / name for cell in plan.cells] if name else []
    if stage is not None:
        found.append(folder / "runs" / stage.name / f"{plan.content['figure']}.png")
    return [str(path) for path in found if path.exists()]


def log_of(stage: Stage, folder: Path) -> Path:
    """Return where a stage's output goes."""
    return folder / "logs" / f"{stage.name}.log"


def run_stage(stage: Stage, folder: Path, signals: StopSignals) -> int:
    """Run one command, pass on a wish to stop, and return its exit code."""
    log_of(stage, folder).parent.mkdir(parents=True, exist_ok=True)
    with log_of(stage, folder).open("ab") as log:
        process = subprocess.Popen(command_of(stage, folder), stdout=log, stderr=subprocess.STDOUT)
        told = False
        while process.poll() is None:
            if signals.requested and not told:
                process.send_signal(signals.requested)
                told = True
            time.sleep(LISTENING)
    return process.returncode


def last_words(log: Path) -> str:
    """Return the sentence a recipe ended with, or else the last line of its log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


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


def write_table(plan: Plan, folder: Path, settings: dict[str, Any], failures: Mapping[str, str]) -> None:
    """Write the table's .json and .md with what is there so far."""
    runs, tables = folder / "runs", folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    entries = []
    for cell in plan.cells:
        outcome = cell.outcome(runs, plan.content["measure"])
        difference = outcome["mean"] - cell.paper if outcome["values"] and cell.paper is not None else None
        stages = [
            {"folder": str(runs / stage.name), "seconds": seconds, "command": shlex.join(command_of(stage, folder))}
            for stage, seconds in zip(cell.stages, outcome.pop("seconds"), strict=True)
        ]
        own = {"row": cell.row, "column": cell.column, **outcome, "paper": cell.paper, "difference": difference}
        entries.append({**own, "failed": failures.get(cell.name), "stages": stages})
    unique = {stage["folder"]: stage["seconds"] or 0.0 for entry in entries for stage in entry["stages"]}
    facts = run_facts(
        recipe="reproduce",
        table=plan.name,
        title=plan.content["title"],
        scale=settings["scale"],
        note=plan.note,
        measure=plan.content["measure"],
        columns=list(plan.content["columns"]),
        cells=entries,
        images=images(plan, folder),
        seconds=sum(unique.values()),
        config=settings,
    )
    name = f"{plan.name}_{settings['scale']}"
    RunDir(tables, {}).write_json(f"{name}.json", facts)
    (tables / f"{name}.md").write_text(markdown(facts), encoding="utf-8")


def markdown(facts: Mapping[str, Any]) -> str:
    """Return the table for people: ours and the printed value by row and column, then every cell with its seconds."""
    cells = {(entry["row"], entry["column"]): entry for entry in facts["cells"]}
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = [column for column in facts["columns"] if any(key[1] == column for key in cells)]
    lines = [f"# {facts['title']}", "", f"Scale `{facts['scale']}`: {facts['note']}", ""]
    interval = f"{100 * LEVEL:.0f} % interval of the mean over draws (Student's t)"
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
    words = ["python", "recipes/reproduce.py", *(f"--{name}={value}" for name, value in given.items())]
    return "\n".join([*lines, "", f"    {shlex.join(words)}", ""])


def short(entry: Mapping[str, Any]) -> str:
    """Return ``ours ± half its interval / paper``."""
    ours = with_interval(entry) if entry["values"] else "–"
    return f"{ours} / {'–' if entry['paper'] is None else format(entry['paper'], '.2f')}"


if __name__ == "__main__":
    run_cli(main)
