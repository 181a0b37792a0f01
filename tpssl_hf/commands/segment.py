"""Finetune a segmenter with few masks and many images (paper §III-A, Eq. 4; Tables II, III, IV).

    tpssl-hf segment                                             # CutMix, 100 masks of the embedded digit scenes
    tpssl-hf segment --dataset path/to/folder --labels 5% --init outputs/mine/model
    accelerate launch recipes/ssl_segment.py --config recipes/configs/ssl_segment/voc_1pct_cutmix_paper.yaml

Keys: defaults < --config file < command line; --help lists them. Without --config and
--dataset the embedded digit scenes are learned. The folder --output_dir then holds config.yaml, labels.json,
augmentations.png, metrics.jsonl, curves.png, predictions.png, checkpoints/, model/ (loads in transformers after
`import tpssl_hf`) and results.json. Started again with the same keys, an unfinished run continues where it was.
--label_seeds 1,2,3 makes a run for each label seed in a folder of its own, and a results.json over all of them.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpssl_hf.commands.finished_run import FinishedRun, finish, keywords
from tpssl_hf.config.shared import LEFT_TO_BUDGET
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.tasks.finetuning import FinetuningTask, finetune
from tpssl_hf.tasks.machine import Shown, for_this_machine
from tpssl_hf.tasks.segment.budget import ON_A_CPU, apply_time_budget
from tpssl_hf.tasks.segment.config import SegmentArgs, parse_segment
from tpssl_hf.tasks.segment.report import save_results
from tpssl_hf.tasks.segment.run import prepare
from tpssl_hf.training.accelerator import make_accelerator

SEGMENTATION = FinetuningTask(prepare, save_results, "mean_iou")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, those of the process when not given; returns the exit code."""
    return run(parse_segment(sys.argv[1:] if arguments is None else arguments, __doc__ or ""))


def finetune_segmenter(**keys: Any) -> FinishedRun:
    """Finetune a segmenter with few masks (paper §III-A, Eq. 4), as ``tpssl-hf segment`` does.

    Args:
        keys: the keys that ``tpssl-hf segment --help`` lists, ``config`` among them; ``init`` may be a finished run.

    Returns:
        The finished run in ``output_dir``; of several label seeds, the folder that holds them all.

    Raises:
        InputError: for keys, images, masks or weights that do not fit, in a sentence that says how to mend it.
        KeyboardInterrupt: if it was interrupted; its state is saved.
    """
    args = parse_segment(keywords(keys))
    return finish(run(args), args.run)


def run(args: SegmentArgs) -> int:
    """Finetune, and publish if asked to; returns the exit code."""
    accelerator = make_accelerator(args.run)
    push = validate_push(args, accelerator)
    crop = args.task.crop_height, args.task.crop_width
    if LEFT_TO_BUDGET in crop:
        crop = ON_A_CPU["crop_height"], ON_A_CPU["crop_width"]
    together = args.optim.batch_size * (1 + args.optim.unlabeled_ratio)
    chosen, accelerator = for_this_machine(args, Shown(crop, together), accelerator)
    args = replace(args, run=chosen)
    if args.time.budget:
        args = apply_time_budget(args, accelerator)
        if args.time.plan:
            return 0
    return finetune(args, accelerator, SEGMENTATION) or push_finished(push, accelerator)
