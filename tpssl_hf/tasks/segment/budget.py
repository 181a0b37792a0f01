"""What a time budget chooses from for a segmentation, and what such a run costs beside its steps."""

import time
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from tpssl_hf.config.shared import LEFT_TO_BUDGET
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.tasks import finetuning_budget
from tpssl_hf.tasks.finetuning_budget import BudgetedTask, Costs, own_batch
from tpssl_hf.tasks.finetuning_plan import StepBatch, step_batches
from tpssl_hf.tasks.published_path import IMAGES
from tpssl_hf.tasks.segment.config import (
    AUTO,
    OF_SHORT_RUNS,
    SIZE_KEYS,
    USUAL_METHOD,
    SegmentArgs,
    SegmentConfig,
    SegmentOptimConfig,
    of_method,
    resolve,
)
from tpssl_hf.tasks.segment.data import EvaluationImages
from tpssl_hf.tasks.segment.report import DRAWN
from tpssl_hf.tasks.segment.run import SCORED_TOGETHER, SegmentRun, predicted, prepare
from tpssl_hf.tasks.time_budget import kept_plan

SIZES, LEAST_RATIO = (4, 8), 2  # below the paper's 20 images with masks; every learner has its own ratio, at most 2
ENOUGH_FOR_UNLABELED = 40_000  # crops with masks; measured up to 12,000 (RESULTS.md), and 800,000 in the paper
ON_A_CPU = {"crop_height": 128, "crop_width": 128, "decoder_width": 64}


def apply_time_budget(args: SegmentArgs, accelerator: Accelerator) -> SegmentArgs:
    """Put in crops, batch and length that fit the budget, and a method where none is named.

    See :func:`finetuning_budget.apply_time_budget`.
    """
    args = with_sizes(args, accelerator.device)
    choice = args.task
    accelerator.print(
        f"crops of {choice.crop_height} x {choice.crop_width} pixels, a decoder {choice.decoder_width} wide"
    )
    if choice.method != AUTO:
        return finetuning_budget.apply_time_budget(args, accelerator, TASK)
    former = kept_plan(args.run.output_dir, args.time.budget)
    method = former.get("method", USUAL_METHOD)
    planned = finetuning_budget.apply_time_budget(of_method(args, method), accelerator, TASK)
    seen = planned.optim.max_steps * planned.optim.batch_size
    if former or seen >= ENOUGH_FOR_UNLABELED or not keys_fit(args):
        return planned
    accelerator.print(
        f"method {OF_SHORT_RUNS}: {USUAL_METHOD} would see {seen:,} images with masks in that time, and until "
        f"{ENOUGH_FOR_UNLABELED:,} more steps are worth more than images without; --method decides otherwise"
    )
    return finetuning_budget.apply_time_budget(of_method(args, OF_SHORT_RUNS), accelerator, TASK)


def keys_fit(args: SegmentArgs) -> bool:
    """Return whether no key was given that the method of short runs would not have."""
    return args.method == SEGMENT[USUAL_METHOD].config() and args.optim.unlabeled_ratio == LEFT_TO_BUDGET


def with_sizes(args: SegmentArgs, device: torch.device) -> SegmentArgs:
    """Put in crops and decoder where no key gives them: the paper's, or on a CPU small ones, which take more steps.

    There a step with crops of 321 pixels and a decoder of 256 channels takes seconds, mostly in the decoder.
    """
    sizes = ON_A_CPU if device.type == "cpu" else {name: getattr(SegmentConfig(), name) for name in SIZE_KEYS}
    left: dict[str, Any] = {name: size for name, size in sizes.items() if getattr(args.task, name) == LEFT_TO_BUDGET}
    return replace(args, task=replace(args.task, **left))


def batches(args: SegmentArgs, num_processes: int) -> list[StepBatch]:
    """Return what is chosen from: 4, 8 or the learner's own number of images with masks, with its own ratio."""
    own = own_batch(SEGMENT[args.task.method], SegmentOptimConfig())
    asked = StepBatch(args.optim.batch_size, args.optim.unlabeled_ratio)
    return step_batches(SIZES, LEAST_RATIO, own=own, asked=asked, num_processes=num_processes)


def costs(run: SegmentRun) -> Costs:
    """Time the deployed network on some images, and count those it will be shown."""
    data, test = run.data, run.data.test
    asked = test or EvaluationImages(data.store, data.labeled.indices)
    some = asked.indices[:SCORED_TOGETHER]
    for _ in range(2):  # the first pass is a warm-up
        began = time.perf_counter()
        for _ in predicted(run, asked, some):
            pass
    seconds = (time.perf_counter() - began) / len(some)
    scored = len(test.indices) + DRAWN if test else 0
    compared = 2 * min(IMAGES, len(asked.indices))  # by the network, and by transformers' pipeline
    return Costs(
        overhead_seconds=seconds * (scored + compared),
        beside_a_step=lambda batch: 0.0,
        most_steps=lambda batch: SegmentOptimConfig().max_steps,
    )


TASK: BudgetedTask[SegmentArgs, SegmentRun] = BudgetedTask(prepare, batches, costs, resolve)
