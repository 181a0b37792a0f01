"""Finetune a classifier with few labels and many images (paper §III-A, Eq. 4; Tables I, V, VI).

    tpssl-hf classify                                            # FixMatch, 40 labels of the embedded digits
    tpssl-hf classify --dataset path/to/images --labels labels.csv --init outputs/mine/model
    accelerate launch recipes/ssl_classify.py --config recipes/configs/ssl_classify/cifar10_40_fixmatch.yaml

Keys: defaults < --config file < command line; --help lists them. Without --config and
--dataset the embedded digits are learned, from the weights of the default target pretraining where they are there. The
folder --output_dir then holds config.yaml, labels.json, augmentations.png, metrics.jsonl, curves.png,
pseudo_labels.png, checkpoints/, model/ (loads in timm and transformers) and results.json; model_last/ as well where a
baseline is better than what was finetuned (--select). Started again with the same
keys, an unfinished run continues where it was. --label_seeds 1,2,3 makes a run for each label seed in a folder of
its own, and a results.json over all of them.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tpssl_hf.commands.finished_run import FinishedRun, finish, keywords
from tpssl_hf.convert.starter import starter
from tpssl_hf.data.wanted_labels import refuse_unreadable
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.tasks.budgeted_size import budgeted_data
from tpssl_hf.tasks.classify.budget import apply_time_budget, images_to_learn
from tpssl_hf.tasks.classify.config import ClassifyArgs, parse_classify
from tpssl_hf.tasks.classify.folds import train_folds
from tpssl_hf.tasks.classify.report import save_results
from tpssl_hf.tasks.classify.run import prepare
from tpssl_hf.tasks.finetuning import FinetuningTask, finetune
from tpssl_hf.tasks.machine import Shown, for_this_machine
from tpssl_hf.training.accelerator import make_accelerator

CLASSIFICATION = FinetuningTask(prepare, save_results, "accuracy", train_folds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, those of the process when not given; returns the exit code."""
    return run(parse_classify(sys.argv[1:] if arguments is None else arguments, __doc__ or "", starter))


def finetune_classifier(**keys: Any) -> FinishedRun:
    """Finetune a classifier with few labels (paper §III-A, Eq. 4), as ``tpssl-hf classify`` does.

    Args:
        keys: the keys that ``tpssl-hf classify --help`` lists, ``config`` among them; ``init`` may be a finished run.

    Returns:
        The finished run in ``output_dir``; of several label seeds, the folder that holds them all.

    Raises:
        InputError: for keys, images, labels or weights that do not fit, in a sentence that says how to mend it.
        KeyboardInterrupt: if it was interrupted; its state is saved.
    """
    args = parse_classify(keywords(keys), starter=starter)
    return finish(run(args), args.run)


def run(args: ClassifyArgs) -> int:
    """Finetune, and publish if asked to; returns the exit code."""
    accelerator = make_accelerator(args.run)
    push = validate_push(args, accelerator)
    trainings = 2 if args.task.select == "best" else 1  # folds take as long as the run itself, at most
    args = replace(args, data=budgeted_data(args, accelerator, images_to_learn(args, trainings)))
    side, together = args.data.image_size, args.optim.batch_size * (1 + args.optim.unlabeled_ratio)
    shown = Shown((side, side), together, learns=CLASSIFY[args.task.method].fit_labels is None)
    labels = partial(refuse_unreadable, str(args.task.labels))
    chosen, accelerator = for_this_machine(args, shown, accelerator, before=labels)
    args = replace(args, run=chosen)
    if args.time.budget:
        args = apply_time_budget(args, accelerator, trainings=trainings)
        if args.time.plan:
            return 0
    return finetune(args, accelerator, CLASSIFICATION) or push_finished(push, accelerator)
