"""Make the paper's tables and figures: print or run the commands behind each cell, and set ours beside the printed.

    tpssl-hf reproduce --table V --list                       # what would be run, and what is missing
    tpssl-hf reproduce --table V --scale small                # CIFAR-10 on two CPU cores, two hours
    tpssl-hf reproduce --table I --scale paper --cells 'in_sup_*/cifar10_40'
    tpssl-hf reproduce --figure 4 --scale smoke               # the embedded digits, to see every command run
    python recipes/reproduce.py --table V --list              # the same without installing

Tables I to VII and figures 1, 3, 4, 5. A cell is one to three other commands, each in a folder of its own in
--output_dir/runs, which cells and tables share where their keys are the same. Started again, what is finished is kept
and what was interrupted continues. After every cell --output_dir/tables holds NAME_SCALE.md and .json: our value with
its 95 % interval over label seeds, the printed value, the seconds. A cell that fails is named with its command and its
log in --output_dir/logs, and the others go on; the exit code is then 1.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tpssl_hf.config.parser import parse_args
from tpssl_hf.paper import launch
from tpssl_hf.paper.cells import Cell
from tpssl_hf.paper.config import ReproduceArgs
from tpssl_hf.paper.grid import Plan, figure_of, make_plan
from tpssl_hf.paper.report import how, listing, printed, said, write_table
from tpssl_hf.training.run_dir import StopSignals


def main(arguments: Sequence[str] | None = None) -> int:
    """List the cells or make them one after the other; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse_args(ReproduceArgs, given, description=__doc__ or "")
    plan = make_plan(args.reproduce, launch.presets())
    folder = Path(args.reproduce.output_dir)
    if args.reproduce.list:
        print("\n".join(listing(plan, folder)))
        return 0
    failures: dict[str, str] = {}
    with StopSignals() as signals:
        for number, cell in enumerate(plan.cells, 1):
            print(f"[{number}/{len(plan.cells)}] {cell.name}", flush=True)
            make_cell(cell, folder, failures, signals, plan)
            write_table(plan, args, failures)
            if signals.requested:
                print("stopped; the same command continues from there")
                return signals.exit_code
        draw_figure(plan, folder, failures, signals)
    print(write_table(plan, args, failures).read_text(encoding="utf-8"))
    return 1 if failures else 0


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
        code = launch.run_stage(stage, folder, signals)
        if signals.requested:
            return
        if code or stage.results(folder / "runs") is None:
            log = launch.log_of(stage, folder)
            reason = f"{launch.last_words(stage, folder)} (exit code {code}; whole log: {log})"
            failures[stage.name] = reason
            print(f"    failed: {shlex.join(launch.command_of(stage, folder))}", flush=True)
        else:
            print(f"    {stage.name}: {time.perf_counter() - began:.0f} s", flush=True)
    if reason:
        failures[cell.name] = reason
        print(f"    not made: {reason}", flush=True)
    else:
        outcome = cell.outcome(folder / "runs", plan.content["measure"])
        print(f"    {said(outcome)}, paper {printed(cell.paper)}", flush=True)


def draw_figure(plan: Plan, folder: Path, failures: dict[str, str], signals: StopSignals) -> None:
    """Draw the figure of all finished cells, where the plan has one."""
    stage = figure_of(plan, folder / "runs")
    if stage is None:
        return
    if stage.results(folder / "runs") is None and launch.run_stage(stage, folder, signals):
        reason = f"{launch.last_words(stage, folder)} (whole log: {launch.log_of(stage, folder)})"
        failures["the figure"] = reason
        print(f"the figure could not be drawn: {reason}")
