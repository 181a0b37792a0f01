"""Look into what target pretraining has changed (paper §IV-E; Tables VI and VII, Fig. 3, 4, 5).

    python recipes/analyze.py                                           # the default target pretraining of the digits
    python recipes/analyze.py --adapted outputs/mine                    # clusters, t-SNE and drift of a run of yours
    python recipes/analyze.py --analysis steps --run outputs/mine       # what each kept checkpoint is worth
    python recipes/analyze.py --analysis transfer --runs 'outputs/finetuned/*'
    python recipes/analyze.py --analysis convergence --runs outputs/one,outputs/two

clustering    accuracy of k-means on the features of each split (Table VII; Eq. 8, 9), over several starts
tsne          the same random test images before and after in one plane (Fig. 5): tsne.png and tsne.csv
drift         how far each stage has moved, in its weights and in its features (linear CKA): drift.png
steps         accuracy over steps of target pretraining (Fig. 3): with --run, probes of frozen features of its
              snapshots, a cheap stand-in; with --runs, of finetunings that started from those snapshots: steps.png
transfer      test accuracy of finished finetunings by start and data set (Table VI), and the commands still to run
convergence   test accuracy of finished finetunings along the way (Fig. 4; --evaluate_every): convergence.png

Every setting is one flat key: defaults < --config file < command line; --help lists them. Images, backbone, base and
seed are those of the run that --run, or else the first of --adapted, is the folder of, unless they are given. Each
analysis leaves a .json file in --output_dir with every value, its seed, the commit and all settings.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tpssl_hf.analysis.common import AnalysisResult
from tpssl_hf.analysis.config import AnalyzeConfig
from tpssl_hf.analysis.features import clustering, drift, tsne
from tpssl_hf.analysis.runs import convergence, steps, transfer
from tpssl_hf.config.parser import config_files, parse_config, read_config_file
from tpssl_hf.config.shared import DataConfig, RunConfig
from tpssl_hf.errors import InputError
from tpssl_hf.process import values_of
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import CONFIG, RunDir

ANALYSES: dict[str, Callable[[dict[str, Any], Accelerator, RunDir], AnalysisResult]] = {
    "clustering": clustering,
    "tsne": tsne,
    "drift": drift,
    "steps": steps,
    "transfer": transfer,
    "convergence": convergence,
}
GROUPS: list[type] = [AnalyzeConfig, DataConfig]
DIGITS_RUN = Path("outputs/digits_byol")  # where the default target pretraining leaves its weights
FROM_RUN = ("dataset", "split", "dataset_config", "image_column", "label_column", "limit_images", "image_size")


def main() -> int:
    """Settle the settings, make each analysis in turn, leave a file for each; returns the exit code."""
    settings = read_settings(sys.argv[1:])
    asked = [name.strip() for name in settings["analysis"].split(",")]
    if unknown := [name for name in asked if name not in ANALYSES]:
        raise InputError(f"analysis {unknown[0]!r} is not one of {', '.join(ANALYSES)}.")
    accelerator = make_accelerator(RunConfig(output_dir=settings["output_dir"], precision="fp32"))
    with RunDir(Path(settings["output_dir"]), settings) as run:
        print(describe(accelerator, THREADS))
        for name in asked:
            began = time.perf_counter()
            found = ANALYSES[name](settings, accelerator, run)
            seconds = time.perf_counter() - began
            facts = {"analysis": name, "table": found.table, **found.facts, "seconds": seconds}
            run.write_json(f"{name}.json", run_facts(recipe="analyze", **facts, config=settings))
            print("\n".join(["", *found.lines, "", f"  every value    {run.path / name}.json ({seconds:.0f} s)"]))
    return 0


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Resolve every key; what a run of the package was made with is the default for looking at it."""
    given = values_of("--run", arguments) + [part.split(",")[0] for part in values_of("--adapted", arguments)]
    for path in config_files(arguments):
        content = read_config_file(path)
        given += [str(content[name]).split(",")[0] for name in ("run", "adapted") if content.get(name)]
    defaults: dict[str, Any] = {}
    if not given and (DIGITS_RUN / "model").is_dir():
        given, defaults = [str(DIGITS_RUN)], {"adapted": str(DIGITS_RUN)}
    if given:
        folder = Path(given[0]).expanduser()
        config = (folder.parent if folder.name == "model" else folder) / CONFIG
        former = read_config_file(config) if config.is_file() else {}
        defaults |= {name: former[name] for name in (*FROM_RUN, "backbone", "seed") if name in former}
        defaults |= {"base": former["init"]} if "init" in former else {}
    return parse_config(GROUPS, arguments, description=__doc__ or "", defaults=defaults)


if __name__ == "__main__":
    run_cli(main)
