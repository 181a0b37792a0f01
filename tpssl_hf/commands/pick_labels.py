r"""Choose which images to label next, by the features of an adapted backbone and the doubts of a classifier.

    tpssl-hf pick-labels                              # 40 of the embedded digits
    tpssl-hf pick-labels --dataset path/to/images --init outputs/mine --count 40
    tpssl-hf pick-labels --config outputs/to_label/config.yaml --init outputs/my_classifier \
        --labeled outputs/to_label/to_label.csv --output_dir outputs/to_label_next    # the next 40

`python recipes/label_picker.py` is the same command. Labels of the data set are not read. The folder --output_dir
then holds contact_sheet.png, and to_label.csv and to_label.json: fill in the empty labels of either (names or
numbers from 0), and give it to `tpssl-hf classify` as --labels. Entries left empty are skipped. With --labeled, such
as the labels.csv of `tpssl-hf review`, the files hold those labels as well, and none of their images is asked for
again. Where --init is a finished classifier that had four labels a class, the images it doubts are asked for, else
typical ones (--strategy). A folder that holds a finished list is never written to again.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from tpssl_hf.active_learning.config import PickLabelsArgs, Strategy
from tpssl_hf.active_learning.doubt import classifier_head, doubts
from tpssl_hf.active_learning.strategies import NONE_KNOWN, Known, choose_images
from tpssl_hf.active_learning.to_label import TO_LABEL, names_of, write_contact_sheet, write_lists
from tpssl_hf.analysis.common import located, open_split
from tpssl_hf.commands.finished_run import keywords
from tpssl_hf.commands.one_process import open_device
from tpssl_hf.config.digits import DIGITS_RUN, DIGITS_SIZE, digits_run
from tpssl_hf.config.image_size import with_image_size
from tpssl_hf.config.parser import as_command_line, asks_for_help, carry_out_keys, config_files, flat, parse_args
from tpssl_hf.convert.starter import starter
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import read_labels
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.feature_cache import Features, features_of
from tpssl_hf.process import values_of
from tpssl_hf.training.accelerator import describe
from tpssl_hf.training.provenance import run_facts
from tpssl_hf.training.recorded_start import recorded_keys
from tpssl_hf.training.run_dir import RESULTS, RunDir

RANDOM_SIZE = 32  # pixels at which the digits are shown to random weights
ENOUGH = 4  # labels a class; with fewer, typical images are as good (benchmarks/RESULTS.md)


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose images, write list and contact sheet; returns the exit code."""
    choose(read_args(sys.argv[1:] if arguments is None else arguments))
    return 0


def pick_labels(**keys: Any) -> Path:
    """Choose which images to label next, as ``tpssl-hf pick-labels`` does.

    Args:
        keys: the keys that ``tpssl-hf pick-labels --help`` lists; ``init`` may be a finished run.

    Returns:
        The list ``to_label.csv`` in ``output_dir``: to be filled in, and given to ``finetune_classifier``.

    Raises:
        InputError: for keys, images, labels or weights that do not fit, in a sentence that says how to mend it.
    """
    args = read_args(keywords(keys))
    choose(args)
    return Path(args.task.output_dir) / TO_LABEL


def choose(args: PickLabelsArgs) -> None:
    """Choose images, write list and contact sheet; a finished list is left as it is."""
    accelerator = open_device("pick-labels", args.task.output_dir, args.task.cpu_threads)
    with RunDir(Path(args.task.output_dir), flat(args), ignore=carry_out_keys(PickLabelsArgs)) as run:
        if run.finished:
            print(f"{run.path} holds the finished list of these settings; it is left as it is.")
            return
        print(describe(accelerator))
        print(pick(args, accelerator, run))


def read_args(arguments: Sequence[str] | Mapping[str, Any]) -> PickLabelsArgs:
    """Parse every key; the embedded digits are the default where neither a data set nor a file is given."""
    given = as_command_line(arguments)
    defaults: dict[str, Any] = {}
    if not config_files(given) and not values_of("--dataset", given):
        own = {} if values_of("--init", given) or asks_for_help(given) else digits_weights()
        defaults = {"dataset": "digits", **own}
    args = parse_args(PickLabelsArgs, given, description=__doc__ or "", defaults=defaults)
    init, backbone = located(args.task.init, args.task.backbone)
    return replace(args, data=with_image_size(args.data, backbone, init))


def digits_weights() -> dict[str, Any]:
    """Return the keys of the weights that the embedded digits are shown to: adapted ones, the starter's, or random."""
    if adapted := digits_run():
        return {"init": str(DIGITS_RUN), "image_size": adapted.get("image_size", RANDOM_SIZE)}
    found = starter()
    return {**found, "image_size": DIGITS_SIZE} if found else {"init": "random", "image_size": RANDOM_SIZE}


def pick(args: PickLabelsArgs, accelerator: Accelerator, run: RunDir) -> str:
    """Choose the images and write every file; returns the summary to print."""
    config, began = args.task, time.perf_counter()
    source, store = open_split(args.data, accelerator, run)
    # Not choose_labels: it refuses labels that leave a class without any, which more images are wanted for.
    labeled = read_labels(Path(config.labeled), store, source) if config.labeled else None
    for note in (f"labels so far: {labeled.counts(len(store))}", *labeled.notes) if labeled else ():
        print(f"  {note}")
    known = Known(labeled.indices, labeled.labels, len(labeled.class_names)) if labeled else NONE_KNOWN
    head = classifier_head(located(config.init, config.backbone)[0])
    config = replace(config, strategy=strategy_for(config.strategy, head, known))
    features, origin, doubt = np.zeros((len(store), 1), dtype=np.float32), None, None
    if config.strategy != "random":
        found = extracted(args, store, accelerator)
        features, origin = found.values, found.origin
        if note := origin.size_note(args.data.image_size):
            print(note)
    if head is not None and config.strategy == "doubtful":
        doubt = doubts(head, features)
    chosen = choose_images(
        features, config.count, strategy=config.strategy, seed=config.seed, known=known, doubt=doubt
    )
    write_lists(run.path, config, source, store, chosen, labeled)
    write_contact_sheet(run.path / "contact_sheet.png", store, chosen, names_of(source, store, chosen))
    results = run_facts(
        recipe="label_picker",
        strategy=config.strategy,
        dataset={"name": source.name, "fingerprint": store.fingerprint, "images": len(store)},
        labeled_before=len(known.indices),
        rows=store.rows[chosen].tolist(),
        init=origin.as_dict() if origin else None,
        seed=config.seed,
        seconds=time.perf_counter() - began,
        config=flat(args),
    )
    run.write_json(RESULTS, results)
    return summary(run.path, args, results)


def strategy_for(asked: Strategy, head: nn.Linear | None, known: Known) -> Strategy:
    """Return how to choose.

    Raises:
        InputError: for doubts that nobody has.
    """
    if asked == "doubtful" and head is None:
        raise InputError(
            "strategy doubtful takes the doubts of a classifier: give --init the folder of a finished `tpssl-hf "
            "classify`, or another --strategy."
        )
    if asked == "auto":
        return "doubtful" if head is not None and len(known.indices) >= ENOUGH * head.out_features else "typical"
    return asked


def extracted(args: PickLabelsArgs, store: ImageCache, accelerator: Accelerator) -> Features:
    """Return the features (N, D) of every image, kept on disk."""
    init, backbone = located(args.task.init, args.task.backbone)
    return features_of(
        store,
        np.arange(len(store)),
        backbone=backbone,
        init=init,
        image_size=args.data.image_size,
        device=accelerator.device,
        seed=args.task.seed,
        cache_dir=Path(args.data.cache_dir) / "features" if args.data.cache_dir else None,
    )


def summary(folder: Path, args: PickLabelsArgs, results: Mapping[str, Any]) -> str:
    """Say in a few lines what was chosen and what to type next."""
    init, backbone = located(args.task.init, args.task.backbone)
    prior = f" beside the {results['labeled_before']} labeled already" if results["labeled_before"] else ""
    following = ["tpssl-hf", "classify", "--dataset", args.data.dataset, "--labels", str(folder / TO_LABEL)]
    if classifier_head(init) is not None:  # its features know the labels, which the comparison at the end holds out
        keys = recorded_keys(init)
        init, backbone = keys.get("init", init), keys.get("backbone", backbone)
    following += ["--init", init, "--backbone", backbone, "--image_size", str(args.data.image_size)]
    return "\n".join(
        [
            f"\n{len(results['rows'])} of {results['dataset']['images']:,} images of {results['dataset']['name']} to "
            f"label{prior} ({results['strategy']}), in {results['seconds']:.0f} s",
            f"  look at       {folder / 'contact_sheet.png'}",
            f"  fill in       the column label of {folder / TO_LABEL} (the number is the one on the sheet)",
            f"  next          {shlex.join(following)}",
        ]
    )
