"""Did adapting help? Compare adapted weights with what they were adapted from, on your images and your few labels.

    tpssl-hf verdict                                       # the digits of the default target pretraining
    tpssl-hf verdict --base timm --adapted outputs/mine --dataset path/to/images --labels labels.csv
    tpssl-hf verdict --base random --adapted outputs/one,outputs/two --dataset cifar10 --image_size 64

`python recipes/verdict.py` is the same command. Features stay frozen; only linear probes are trained. All weights
predict the same images with the same label seeds, and what is judged is the difference, with an interval that
covers both which labels were drawn and which images were predicted. The base is shown a second time with nothing but
re-estimated BatchNorm statistics, which is worth points on its own; the teacher of a distillation, frozen, is one more
row. Only images of the training split are used; without labels the measures that need none are shown, and how little
they say.

Keys: defaults < --config file < command line; --help lists them. The folder --output_dir
then holds verdict.md, verdict.png, verdict.json, config.yaml, scan.json, results.json and, where that is the advice,
statistics_only/ with the base's weights and re-estimated statistics. Features are kept on disk, so that another
verdict with other labels or draws takes seconds.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from tpssl_hf.analysis.common import open_split
from tpssl_hf.commands.one_process import open_device
from tpssl_hf.config.digits import DIGITS_RUN, digits_run
from tpssl_hf.config.image_size import with_image_size
from tpssl_hf.config.parser import as_command_line, asks_for_help, carry_out_keys, config_files, flat, parse_args
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.feature_cache import features_of, open_backbone
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.timm_export import save_timm_folder
from tpssl_hf.process import values_of
from tpssl_hf.training.accelerator import describe
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.run_dir import RESULTS, RunDir
from tpssl_hf.verdicts.config import VerdictArgs
from tpssl_hf.verdicts.decision import BASE, STATISTICS, TEACHER, Row, judge, score
from tpssl_hf.verdicts.probe_set import ProbeSet, choose_probe_set
from tpssl_hf.verdicts.report import BN_ONLY, REPORT, Verdict, save_report
from tpssl_hf.verdicts.weights import NO_TEACHER, Weights, find_weights, remarks, teacher_of

DIGITS = {"base": "random", "image_size": 32, "output_dir": "outputs/digits_verdict"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, that of the process by default; returns the exit code."""
    compare(read_args(sys.argv[1:] if arguments is None else arguments))
    return 0


def verdict(**keys: Any) -> Verdict:
    """Compare adapted weights with what they were adapted from, on images with few labels.

    Args:
        **keys: the keys of ``tpssl-hf verdict`` (``tpssl-hf verdict --help`` lists them), with the same defaults.
            ``base`` may also be a run, and ``adapted`` a run or a list of runs or paths.

    Returns:
        The verdict; ``print(found.sentence)`` says what to do.

    Raises:
        InputError: for a key that does not exist (with the nearest one that does), and for weights, images or labels
            that cannot be used.

    Example:
        >>> tpssl_hf.verdict(base="timm", adapted=[run], dataset="photos", labels="labels.csv").sentence
    """
    return compare(read_args({name: _locations(value) for name, value in keys.items()}))


def _locations(weights: Any) -> Any:
    """Write runs, or a list of runs and paths, as the paths that the keys take."""
    if isinstance(weights, list | tuple):
        return [_locations(each) for each in weights]
    return getattr(weights, "path", weights)


def read_args(arguments: Sequence[str] | Mapping[str, Any]) -> VerdictArgs:
    """Parse and resolve every key; the embedded digits are the default where neither a data set nor a file is given.

    Raises:
        InputError: if the default is wanted and the digits have not been adapted yet, or a key cannot be used.
    """
    given = as_command_line(arguments)
    digits = not config_files(given) and not values_of("--dataset", given)
    named = values_of("--adapted", given)
    former = digits_run(Path(named[-1]) if named else DIGITS_RUN) if digits and not asks_for_help(given) else {}
    of_run = {"base": former["init"], "image_size": former["image_size"]} if former else {}
    args = parse_args(VerdictArgs, given, description=__doc__ or "", defaults={**DIGITS, **of_run} if digits else {})
    if digits and not named:
        if not former:
            raise InputError(
                f"{DIGITS_RUN} is not there, and no --adapted is given; make it in a few minutes with "
                "`tpssl-hf pretrain` (or `accelerate launch recipes/target_pretrain.py`), or name weights of yours."
            )
        args = replace(args, task=replace(args.task, adapted=str(DIGITS_RUN)))
    if args.data.streaming or args.data.split == "test":
        raise InputError(
            "a verdict is taken on training images that can be read by number: no streaming, no split test."
        )
    return args


def compare(args: VerdictArgs) -> Verdict:
    """Score all weights on the same images, judge, write the report; a finished verdict is read instead."""
    accelerator = open_device("verdict", args.run.output_dir, args.run.cpu_threads)
    base, adapted = find_weights(args.task)
    teacher = teacher_of(args.task, adapted)
    teachers = [teacher] if teacher else []
    args = replace(args, data=with_image_size(args.data, adapted[0].architecture, adapted[0].init))
    began = time.perf_counter()
    with RunDir(Path(args.run.output_dir), flat(args), ignore=carry_out_keys(VerdictArgs)) as run:
        if run.finished and not outdated(run.path, [base, *adapted, *teachers]):
            found = Verdict.read(run.path)
            print(f"{run.path} holds the verdict of these settings:\n\n{found.sentence}\n\n  in {run.path / REPORT}")
            return found
        print(describe(accelerator))
        source, store = open_split(args.data, accelerator, run)
        probe_set = choose_probe_set(args.task, store, source, seed=args.run.seed)
        print(f"{len(probe_set.indices):,} of {len(store):,} images; {probe_set.chosen}")
        for note in probe_set.notes:
            print(f"  {note}")
        rows, origins = scored_rows(base, [*adapted, *teachers], store, probe_set, args, accelerator)
        decision = judge(rows, overlap=probe_set.overlap, seed=args.run.seed)
        if decision.recommendation == "statistics":
            save_bn_only(run.path / BN_ONLY, base, store, args, accelerator)
        widths = {row.name: row.width for row in rows}
        notes = remarks(base, adapted, origins, widths, args.run.seed, args.data.image_size) + [*probe_set.notes]
        seconds = time.perf_counter() - began
        print(save_report(run, args, decision, probe_set, store, notes=notes, origins=origins, seconds=seconds))
        return Verdict.read(run.path)


def outdated(folder: Path, all_weights: Sequence[Weights]) -> bool:
    """Whether weights have changed since the verdict in ``folder``."""
    made = (folder / RESULTS).stat().st_mtime
    return any(weights.file is not None and weights.file.stat().st_mtime > made for weights in all_weights)


def scored_rows(
    base: Weights,
    others: Sequence[Weights],
    store: ImageCache,
    probe_set: ProbeSet,
    args: VerdictArgs,
    accelerator: Accelerator,
) -> tuple[list[Row], dict[str, WeightsSource]]:
    """Extract or read the features of the base and others, one after the other, and score them on the same queries.

    Returns:
        The scores, and where each of the weights was loaded from, by name.
    """
    start, rows, origins = None, [], {}
    for name, weights in ((BASE, base), (STATISTICS, base), *((weights.name, weights) for weights in others)):
        began = time.perf_counter()
        try:
            found = features_of(
                store,
                probe_set.indices,
                backbone=weights.architecture,
                init=weights.init,
                image_size=weights.image_size or args.data.image_size,
                device=accelerator.device,
                statistics=store if name == STATISTICS else None,
                seed=args.run.seed,
                cache_dir=Path(args.run.feature_dir) if args.run.feature_dir else None,
            )
        except InputError as error:
            if name != TEACHER:
                raise
            raise InputError(f"teacher: {error} --teacher {NO_TEACHER} leaves it out.") from error
        origins[name] = found.origin
        if start is not None and name == STATISTICS and (found.values == start).all():
            print(f"  {name}: no BatchNorm in this backbone, so nothing to tell apart from the base")
            continue
        rows.append(score(name, found.values, probe_set.labels, probe_set.trials, base_features=start))
        start = found.values if start is None else start
        kept = ", features from disk" if found.cached else ""
        seconds = time.perf_counter() - began
        print(f"  {name}: {found.origin.kind} weights ({found.origin.name}), {seconds:.1f} s{kept}")
    return rows, origins


def save_bn_only(folder: Path, base: Weights, store: ImageCache, args: VerdictArgs, accelerator: Accelerator) -> None:
    """Write the base's weights with BatchNorm statistics of these images, which plain timm loads."""
    device, size, seed = accelerator.device, args.data.image_size, args.run.seed
    network, views, origin = open_backbone(
        base.architecture, init=base.init, image_size=size, device=device, seed=seed
    )
    network = with_reestimated_batchnorm(network, sample_for_statistics(store), views, device)
    save_timm_folder(
        network,
        folder,
        preprocessing=views.preprocessing,
        provenance=run_facts(recipe="verdict", method="re-estimated BatchNorm statistics", init=origin.as_dict()),
        license=origin.license,
    )
