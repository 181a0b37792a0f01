"""Analyze what target pretraining has changed (paper §IV-E; Tables VI and VII, Fig. 3, 4, 5).

    tpssl-hf analyze                                           # the default target pretraining of the digits
    tpssl-hf analyze --adapted outputs/mine                    # clusters, t-SNE and drift of a run of yours
    tpssl-hf analyze --analysis steps --run outputs/mine       # accuracy of each kept checkpoint
    tpssl-hf analyze --analysis transfer --runs 'outputs/finetuned/*'
    tpssl-hf analyze --analysis convergence --runs outputs/one,outputs/two

`python recipes/analyze.py` is the same command.

clustering    accuracy of k-means on the features of each split (Table VII; Eq. 8, 9), over several starts
tsne          the same random test images before and after in one plane (Fig. 5): tsne.png and tsne.csv
drift         how far each stage has moved, in its weights and in its features (linear CKA): drift.png
steps         accuracy over steps of target pretraining (Fig. 3): with --run, probes of frozen features of its
              snapshots, a cheap stand-in; with --runs, of finetunings that started from those snapshots: steps.png
transfer      test accuracy of finished finetunings by start and data set (Table VI), and the commands still to run
convergence   test accuracy of finished finetunings along the way (Fig. 4; --evaluate_every): convergence.png

Keys: defaults < --config file < command line; --help lists them. Images, backbone, base and
seed are those of the run that --run, or else the first of --adapted, is the folder of, unless they are given. Each
analysis leaves a .json file in --output_dir with every value, its seed, the commit and every key.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tpssl_hf.analysis.common import AnalysisResult, located
from tpssl_hf.analysis.config import AnalyzeArgs
from tpssl_hf.analysis.features import clustering, drift, tsne
from tpssl_hf.analysis.runs import convergence, steps, transfer
from tpssl_hf.commands.one_process import open_device
from tpssl_hf.config.digits import DIGITS_RUN, digits_run
from tpssl_hf.config.image_size import with_image_size
from tpssl_hf.config.parser import as_command_line, asks_for_help, config_files, flat, parse_args, read_config_file
from tpssl_hf.errors import InputError
from tpssl_hf.process import values_of
from tpssl_hf.training.accelerator import describe
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import CONFIG, RunDir

ANALYSES: dict[str, Callable[[AnalyzeArgs, Accelerator, RunDir], AnalysisResult]] = {
    "clustering": clustering,
    "tsne": tsne,
    "drift": drift,
    "steps": steps,
    "transfer": transfer,
    "convergence": convergence,
}
FROM_RUN = ("dataset", "split", "dataset_config", "image_column", "label_column", "limit_images", "image_size")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make each analysis in turn and write a file for each; returns the exit code."""
    args = read_args(sys.argv[1:] if arguments is None else arguments)
    names = [name.strip() for name in args.task.analysis.split(",")]
    if unknown := [name for name in names if name not in ANALYSES]:
        raise InputError(f"analysis {unknown[0]!r} is not one of {', '.join(ANALYSES)}.")
    accelerator = open_device("analyze", args.task.output_dir, args.task.cpu_threads)
    with RunDir(Path(args.task.output_dir), flat(args)) as run:
        print(describe(accelerator))
        for name in names:
            began = time.perf_counter()
            found = ANALYSES[name](args, accelerator, run)
            seconds = time.perf_counter() - began
            facts = {"analysis": name, "table": found.table, **found.facts, "seconds": seconds}
            run.write_json(f"{name}.json", run_facts(recipe="analyze", **facts, config=flat(args)))
            print("\n".join(["", *found.lines, "", f"  every value    {run.path / name}.json ({seconds:.0f} s)"]))
    return 0


def read_args(arguments: Sequence[str] | Mapping[str, Any]) -> AnalyzeArgs:
    """Parse and resolve every key; the keys of the run that is analyzed are the defaults."""
    given = as_command_line(arguments)
    runs = values_of("--run", given) + [part.split(",")[0] for part in values_of("--adapted", given)]
    for path in config_files(given):
        content = read_config_file(path)
        runs += [_first(content[name]) for name in ("run", "adapted") if content.get(name)]
    defaults: dict[str, Any] = {}
    if not runs and not asks_for_help(given) and digits_run():
        runs, defaults = [str(DIGITS_RUN)], {"adapted": str(DIGITS_RUN)}
    if runs:
        defaults |= _keys_of_run(Path(runs[0]).expanduser())
    args = parse_args(AnalyzeArgs, given, description=__doc__ or "", defaults=defaults)
    init, backbone = located(args.task.adapted.partition(",")[0] or args.task.base, args.task.backbone)
    return replace(args, data=with_image_size(args.data, backbone, init))


def _first(written: Any) -> str:
    """Return the first of several values, written as a list or with commas."""
    return str(written[0] if isinstance(written, list) else written).split(",")[0]


def _keys_of_run(folder: Path) -> dict[str, Any]:
    """Return what a run of the package, or the ``model`` folder of one, was made with, as far as it matters here."""
    config = (folder.parent if folder.name == "model" else folder) / CONFIG
    former = read_config_file(config) if config.is_file() else {}
    found = {name: former[name] for name in (*FROM_RUN, "backbone", "seed") if name in former}
    return found | ({"base": former["init"]} if "init" in former else {})
