"""What a time budget chooses from for a classification, and what such a run costs beside its steps."""

import time

import numpy as np
from accelerate import Accelerator

from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.label_spreading import MOST_IMAGES
from tpssl_hf.tasks import finetuning_budget
from tpssl_hf.tasks.classify.config import ClassifyArgs, FinetuneConfig, resolve
from tpssl_hf.tasks.classify.run import ClassifyRun, prepare, steps_per_epoch
from tpssl_hf.tasks.finetuning_budget import BudgetedTask, Costs, own_batch
from tpssl_hf.tasks.finetuning_plan import StepBatch, step_batches
from tpssl_hf.tasks.published_path import IMAGES

SIZES, LEAST_RATIO = (16, 32), 4  # below FixMatch's 64 labeled images with seven unlabeled ones each
WORTHWHILE_STEPS = 75  # see images_to_learn
SEEN = 0.8  # of an unlabeled image's forward and backward passes, as weak views have no gradient
PUBLISHED_PATHS = 2  # transformers' pipeline and timm, asked about some images at the end


def apply_time_budget(args: ClassifyArgs, accelerator: Accelerator, *, trainings: int = 1) -> ClassifyArgs:
    """Put in batch, length and learning rate that fit the budget, see :func:`finetuning_budget.apply_time_budget`.

    Raises:
        InputError: as it does, and for a learner that makes no steps.
    """
    if CLASSIFY[args.task.method].fit_labels is not None:
        raise InputError(f"method {args.task.method} makes no steps and takes seconds; leave --budget out.")
    return finetuning_budget.apply_time_budget(args, accelerator, TASK, trainings=trainings)


def batches(args: ClassifyArgs, num_processes: int) -> list[StepBatch]:
    """Return what is chosen from: 16 + 64 images a step, 32 + 224 and FixMatch's 64 + 448, or the learner's own."""
    own = own_batch(CLASSIFY[args.task.method], FinetuneConfig())
    asked = StepBatch(args.optim.batch_size, args.optim.unlabeled_ratio)
    return step_batches(SIZES, LEAST_RATIO, own=own, asked=asked, num_processes=num_processes)


def images_to_learn(args: ClassifyArgs, trainings: int) -> float:
    """Return how many images must be learned from before larger ones are worth more than more steps with them.

    Args:
        args: of the run.
        trainings: how many trainings a run makes.
    """
    batch, seeds = batches(args, 1)[0], len(args.task.label_seeds or [0])
    return trainings * seeds * WORTHWHILE_STEPS * batch.batch_size * (1 + SEEN * batch.unlabeled_ratio)


def costs(run: ClassifyRun) -> Costs:
    """Time the deployed network on some images, and count those it will be shown."""
    data, task = run.data, run.args.task
    some = np.arange(min(IMAGES, len(data.unlabeled)))
    for _ in range(2):  # the first pass is a warm-up
        began = time.perf_counter()
        extract_features(run.method.deployed, data.unlabeled, some, run.views, run.accelerator.device)
    seconds = (time.perf_counter() - began) / len(some)
    scored = sum(len(split.indices) for split in (data.test, data.validation) if split is not None)
    fitted = len(data.labeled.indices) if task.head_init == "probe" else 0
    if task.select == "best":  # labels spread over images that were seen, and baselines are scored as well
        fitted += min(len(data.unlabeled), MOST_IMAGES) + scored

    def beside_a_step(batch: StepBatch) -> float:
        every = round(task.evaluate_every * steps_per_epoch(data, batch.batch_size))
        return seconds * scored / max(1, every) if task.evaluate_every > 0 else 0.0

    return Costs(
        overhead_seconds=seconds * (scored + fitted + PUBLISHED_PATHS * IMAGES),
        beside_a_step=beside_a_step,
        most_steps=lambda batch: max(1, round(run.args.optim.epochs * steps_per_epoch(data, batch.batch_size))),
    )


TASK = BudgetedTask(prepare, batches, costs, resolve)
