"""Adapt a backbone to your own images, without labels: Φ_pre → target pretraining → Φ_T (paper §III-B, Eq. 3).

    tpssl-hf pretrain                                            # the embedded digits: minutes on a laptop
    tpssl-hf pretrain --dataset path/to/images --init timm --backbone resnet18.tv_in1k
    accelerate launch recipes/target_pretrain.py --config recipes/configs/target_pretrain/cifar10_byol_paper.yaml

Keys: defaults < --config file < command line; --help lists them. Without --config and
--dataset the embedded digits are adapted to, with keys of their own. The folder --output_dir then holds
config.yaml, scan.json, augmentations.png, metrics.jsonl, curves.png, checkpoints/, model/ (loads in timm and
transformers) and results.json. Started again with the same keys, an unfinished run continues where it was.
--push_to_hub --hub_model_id me/mine publishes it with a model card; what would stop that is said before the training.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from tpssl_hf.commands.finished_run import FinishedRun, finish, keywords
from tpssl_hf.convert.starter import starter
from tpssl_hf.hub.push_after_training import push_finished, validate_push
from tpssl_hf.tasks.budgeted_size import budgeted_data
from tpssl_hf.tasks.machine import Shown, for_this_machine
from tpssl_hf.tasks.pretrain.budget import IMAGES_TO_ADAPT, apply_time_budget
from tpssl_hf.tasks.pretrain.config import PretrainArgs, check_own_teacher, parse_pretrain
from tpssl_hf.tasks.pretrain.method_choice import named_method
from tpssl_hf.tasks.pretrain.prepare import cautions, prepare, teacher_note
from tpssl_hf.tasks.pretrain.report import save_results
from tpssl_hf.tasks.pretrain.run import train
from tpssl_hf.training.accelerator import describe, make_accelerator
from tpssl_hf.training.checkpoint_manager import open_run_dir
from tpssl_hf.training.run_dir import StopSignals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, those of the process when not given; returns the exit code."""
    return run(parse_pretrain(sys.argv[1:] if arguments is None else arguments, __doc__ or "", starter))


def pretrain(**keys: Any) -> FinishedRun:
    """Adapt a backbone to unlabeled images (paper §III-B, Eq. 3), as ``tpssl-hf pretrain`` does.

    Args:
        keys: the keys that ``tpssl-hf pretrain --help`` lists, ``config`` among them; ``init`` may be a finished run.

    Returns:
        The finished run in ``output_dir``. A run of the same keys that is finished already is not made again, and one
        that was interrupted goes on where it was.

    Raises:
        InputError: for keys, images or weights that do not fit, in a sentence that says how to mend it.
        KeyboardInterrupt: if it was interrupted; its state is saved.
    """
    args = parse_pretrain(keywords(keys), starter=starter)
    return finish(run(args), args.run)


def run(args: PretrainArgs) -> int:
    """Adapt, and publish if asked to; returns the exit code."""
    accelerator = make_accelerator(args.run)
    push = validate_push(args, accelerator)
    args = named_method(replace(args, data=budgeted_data(args, accelerator, IMAGES_TO_ADAPT)), accelerator)
    check_own_teacher(args)
    side, together = args.data.image_size, args.optim.batch_size // args.optim.gradient_accumulation_steps
    chosen, accelerator = for_this_machine(args, Shown((side, side), together), accelerator)
    args = replace(args, run=chosen)
    if args.time.budget:
        args = apply_time_budget(args, accelerator)
        if args.time.plan:
            return 0
    return run_once(args, accelerator) or push_finished(push, accelerator)


def run_once(args: PretrainArgs, accelerator: Accelerator) -> int:
    """Make, or finish, the run; returns the exit code."""
    with ExitStack() as stack:
        run_dir, finished = open_run_dir(stack, args, accelerator)
        if finished:
            return 0
        signals = stack.enter_context(StopSignals())
        accelerator.print(describe(accelerator))
        prepared = prepare(args, accelerator, run_dir)
        sizes = prepared.origin.size_note(prepared.views.image_size)
        for line in (sizes, prepared.batchnorm.sentence(), teacher_note(prepared), *cautions(prepared)):
            if line:
                accelerator.print(line)
        done, progress = train(prepared, run_dir, signals)
        if done < prepared.max_steps and not progress.stop_reason:
            accelerator.print(
                f"stopped after step {done} of {prepared.max_steps}; the same command continues from there"
            )
            return signals.exit_code or 143  # or another process of the run was told
        if run_dir:
            accelerator.print(save_results(prepared, run_dir, done, progress))
    accelerator.end_training()
    return 0
