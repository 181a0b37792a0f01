"""Did adapting help? Hold adapted weights against what they were adapted from, on your images and your few labels.

    python recipes/verdict.py                                       # the digits of the default target pretraining
    python recipes/verdict.py --base timm --adapted outputs/mine --dataset path/to/images --labels labels.csv
    python recipes/verdict.py --base random --adapted outputs/one,outputs/two --dataset cifar10 --image_size 64

Features stay frozen; nothing is trained but linear probes. Every set of weights answers the same questions after the
same draws of labels, and what is judged is the difference, with an interval that covers both which labels were drawn
and what was asked. The base is shown a second time with nothing but BatchNorm statistics measured anew, which is
worth points on its own. Only images of the training split are looked at; without labels the measures that need
none are shown, and how little they say.

Every setting is one flat key: defaults < --config file < command line; --help lists them. The folder --output_dir
then holds verdict.md, verdict.png, verdict.json, config.yaml, scan.json, results.json and, where that is the advice,
statistics_only/ with the base's weights and new statistics. Features are kept on disk, so that asking again, with
other labels or draws, takes seconds.
"""

from tpssl_hf.process import prepare_process, run_cli

THREADS = prepare_process()  # before torch is imported: OpenMP reads its settings once

import json
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tpssl_hf.analysis.common import open_split
from tpssl_hf.config.parser import config_files, parse_config, take
from tpssl_hf.config.shared import CARRY_OUT_KEYS, DataConfig, RunConfig
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.feature_cache import features_of, open_backbone
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir
from tpssl_hf.verdict.config import VerdictConfig, VerdictRunConfig
from tpssl_hf.verdict.decision import BASE, STATISTICS, Row, Verdict, judge, score
from tpssl_hf.verdict.inputs import ANOTHER_BASE, ProbeSet, Weights, choose_probe_set, find_weights, remarks
from tpssl_hf.verdict.report import draw_verdict, ranking, sentence, table

GROUPS: list[type] = [VerdictConfig, DataConfig, VerdictRunConfig]
ADAPTED_DIGITS = Path("outputs/digits_byol")  # where the default target pretraining leaves its run
DIGITS = {"base": "random", "image_size": 32, "output_dir": "outputs/digits_verdict"}
UNIMPORTANT = CARRY_OUT_KEYS | {"feature_dir", "cpu_threads"}
REPORT, NUMBERS, IMAGE, NEW_STATISTICS = "verdict.md", "verdict.json", "verdict.png", "statistics_only"


def main() -> int:
    """Settle what is compared, score it, judge, leave the report; returns the exit code."""
    settings = read_settings(sys.argv[1:])
    config, data = take(VerdictConfig, settings), take(DataConfig, settings)
    if data.streaming or data.split == "test":
        raise InputError(
            "a verdict is taken on training images that can be read by number: no streaming, no split test."
        )
    accelerator = make_accelerator(RunConfig(output_dir=settings["output_dir"], precision="fp32"))
    if accelerator.num_processes > 1:
        raise InputError("a verdict needs one process only: start it with `python recipes/verdict.py`.")
    base, adapted = find_weights(config)
    began = time.perf_counter()
    with ExitStack() as stack:
        run = stack.enter_context(RunDir(Path(settings["output_dir"]), settings, ignore=UNIMPORTANT))
        if run.finished and not outdated(run.path, [base, *adapted]):
            found = json.loads((run.path / RESULTS).read_text(encoding="utf-8"))
            print(
                f"{run.path} holds the verdict of these settings:\n\n{found['sentence']}\n\n  in {run.path / REPORT}"
            )
            return 0
        print(describe(accelerator, THREADS))
        source, store = open_split(settings, data.split, accelerator, run)
        questions = choose_probe_set(config, store, source, seed=settings["seed"])
        print(f"{len(questions.indices):,} of {len(store):,} images; {questions.chosen}")
        for note in questions.notes:
            print(f"  {note}")
        rows, origins = scored_rows(base, adapted, store, questions, settings, accelerator)
        verdict = judge(rows, overlap=questions.overlap, seed=settings["seed"])
        if verdict.recommendation == "statistics":
            save_new_statistics(run.path / NEW_STATISTICS, base, store, settings, accelerator)
        widths = {row.name: row.width for row in rows}
        notes = remarks(base, adapted, origins, widths, settings["seed"], data.image_size)
        notes += questions.notes
        print(save_results(run, verdict, questions, store, settings, notes, origins, time.perf_counter() - began))
    return 0


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Resolve every key; the embedded digits are the default where neither a data set nor a file is given."""
    given = [argument.partition("=")[0] for argument in arguments]
    digits = not config_files(arguments) and "--dataset" not in given
    settings = parse_config(GROUPS, arguments, description=__doc__ or "", defaults=DIGITS if digits else {})
    if digits and not settings["adapted"]:
        if not ADAPTED_DIGITS.is_dir():
            raise InputError(
                f"{ADAPTED_DIGITS} is not there, and no --adapted is given; make it in a few minutes with `accelerate "
                "launch recipes/target_pretrain.py`, or name weights of yours."
            )
        settings["adapted"] = str(ADAPTED_DIGITS)
    return settings


def outdated(folder: Path, all_weights: list[Weights]) -> bool:
    """Whether weights have changed since the verdict in ``folder``."""
    made = (folder / RESULTS).stat().st_mtime
    return any(weights.file is not None and weights.file.stat().st_mtime > made for weights in all_weights)


def scored_rows(
    base: Weights,
    adapted: list[Weights],
    store: ImageCache,
    questions: ProbeSet,
    settings: dict[str, Any],
    accelerator: Accelerator,
) -> tuple[list[Row], dict[str, WeightsSource]]:
    """Extract or read the features of all weights, one after the other, and score them on the same questions.

    Returns:
        The scores, and where each of the weights was loaded from, by name.
    """
    start, rows, origins = None, [], {}
    for name, weights in ((BASE, base), (STATISTICS, base), *((weights.name, weights) for weights in adapted)):
        began = time.perf_counter()
        found = features_of(
            store,
            questions.indices,
            backbone=weights.architecture,
            init=weights.init,
            image_size=settings["image_size"],
            device=accelerator.device,
            statistics=store if name == STATISTICS else None,
            seed=settings["seed"],
            cache_dir=Path(settings["feature_dir"]) if settings["feature_dir"] else None,
        )
        origins[name] = found.origin
        if start is not None and name == STATISTICS and (found.values == start).all():
            print(f"  {name}: no BatchNorm in this backbone, so nothing to tell apart from the base")
            continue
        rows.append(score(name, found.values, questions.labels, questions.trials, base_features=start))
        start = found.values if start is None else start
        kept = ", features from disk" if found.cached else ""
        print(
            f"  {name}: {found.origin.kind} weights ({found.origin.name}), {time.perf_counter() - began:.1f} s{kept}"
        )
    return rows, origins


def save_new_statistics(
    folder: Path, base: Weights, store: ImageCache, settings: dict[str, Any], accelerator: Accelerator
) -> None:
    """Write the base's weights with BatchNorm statistics of these images, which plain timm loads."""
    device, size, seed = accelerator.device, settings["image_size"], settings["seed"]
    network, views, origin = open_backbone(
        base.architecture, init=base.init, image_size=size, device=device, seed=seed
    )
    network = with_reestimated_batchnorm(network, sample_for_statistics(store), views, device)
    save_timm_folder(
        network,
        folder,
        preprocessing=views.preprocessing,
        provenance=run_facts(recipe="verdict", method="BatchNorm statistics measured anew", init=origin.as_dict()),
        license=origin.license,
    )


def save_results(
    run: RunDir,
    verdict: Verdict,
    questions: ProbeSet,
    store: ImageCache,
    settings: dict[str, Any],
    notes: list[str],
    origins: dict[str, WeightsSource],
    seconds: float,
) -> str:
    """Write verdict.json, verdict.png, verdict.md and results.json; returns the summary for people."""
    labels = len(questions.trials[0].bank) if questions.trials else 0
    warnings = [note for note in notes if note.startswith(ANOTHER_BASE)]  # beside the sentence that they qualify
    said = "\n\n".join([sentence(verdict, labels=labels, shared=questions.shared), *warnings])
    dataset = {"name": store.source_name, "fingerprint": store.fingerprint, "images": len(store)}
    facts = run_facts(
        recipe="verdict",
        recommendation=verdict.recommendation,
        reason=verdict.reason,
        sentence=said,
        notes=notes,
        weights={name: origin.as_dict() for name, origin in origins.items()},
        dataset=dataset,
        questions={
            "chosen": questions.chosen,
            "images_looked_at": len(questions.indices),
            "labels_per_draw": labels,
            "draws": len(questions.trials),
            "asked_per_draw": len(questions.trials[0].queries) if questions.trials else 0,
            "same_for_all_draws": questions.shared,
            "class_names": list(questions.class_names),
        },
        seconds=seconds,
        config=settings,
    )
    settlement = verdict.settlement and {"draws": verdict.settlement.draws, "questions": verdict.settlement.questions}
    numbers = {
        "rows": [row.as_dict() for row in verdict.rows],
        "comparisons": [entry.as_dict() for entry in verdict.comparisons],
        "required_sample_size": settlement,
    }
    run.write_json(NUMBERS, {**facts, **numbers})
    files = [run.path / REPORT, run.path / NUMBERS]
    if questions.trials:
        asked = f"{store.source_name}, {len(questions.trials)} draws of {labels} labels"
        title = f"Did adapting help? {said.partition(':')[0]}; {asked}"
        draw_verdict(run.path / IMAGE, verdict, labels=labels, title=title)
        files.append(run.path / IMAGE)
    if verdict.recommendation == "statistics":
        notes = [*notes, f"The base's weights with new statistics are in {run.path / NEW_STATISTICS}."]
    notes = [note for note in notes if note not in warnings]
    notes = [ranking(verdict), *notes] if ranking(verdict) else notes
    (run.path / REPORT).write_text(report(verdict, said, questions, dataset, notes), encoding="utf-8")
    run.write_json(RESULTS, facts)
    lines = [f"\n{said}\n", table(verdict), "", *notes, f"  {seconds:.0f} s; in {', '.join(map(str, files))}"]
    return "\n".join(lines)


def report(verdict: Verdict, said: str, questions: ProbeSet, dataset: dict[str, Any], notes: list[str]) -> str:
    """Return verdict.md."""
    parts = ["# Did adapting help?", said, table(verdict)]
    if questions.trials:
        level = 100 * verdict.comparisons[0].probe.level
        together = ", so that those against one control all hold together at 95 %" if level > 95 else ""
        parts.append(
            "Linear probe and kNN: mean ± standard deviation over draws of labels; clusters: k-means, best pairing "
            "with the classes, over its seeds. Differences of the linear probe are paired, with "
            f"{level:.3g} % intervals over draws and questions{together}. Adapting may have seen these "
            "images, never their labels."
        )
        parts.append(f"![each draw, and the differences]({IMAGE})")
    parts += notes
    where = f"{dataset['name']} (training images, fingerprint {dataset['fingerprint']})"
    parts.append(f"What was done: {where}; {len(questions.indices):,} images looked at; {questions.chosen}.")
    parts.append(f"    python {shlex.join(sys.argv)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    run_cli(main)
