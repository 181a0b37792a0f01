"""What a finetuning is made of, the same for classification and segmentation: streams, optimizer, BatchNorm."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator

from tpssl_hf.data.class_stream import ClassStream
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.streams import EndlessStream
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.segment.config import SegmentArgs
from tpssl_hf.training.accelerator import per_device_batch_size
from tpssl_hf.training.optim import build_optimizer


def finetuning_optimizer(
    args: ClassifyArgs | SegmentArgs, method: Method, heads: Sequence[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimizer of a learner; ``heads`` are the weights that were not pretrained."""
    optim, multiplier = args.optim, args.optim.head_lr_multiplier
    assert optim.optimizer is not None and multiplier is not None  # they were resolved
    return build_optimizer(
        optim.optimizer,
        method,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        decay_norm_and_bias=optim.decay_norm_and_bias,
        nesterov=optim.nesterov,
        heads=heads,
        head_lr_multiplier=multiplier,
    )


def keeps_statistics(asked: str, origin: WeightsSource) -> bool:
    """Whether the backbone's BatchNorm keeps its running statistics: with ``auto``, unless weights are random.

    A few labeled images a step say little of statistics, and a head fitted to features wants them as they were.
    """
    return asked == "frozen" or (asked == "auto" and origin.kind != "random")


def open_streams(
    args: ClassifyArgs | SegmentArgs,
    accelerator: Accelerator,
    labeled: tuple[ImageCache, np.ndarray],
    unlabeled: tuple[ImageCache, np.ndarray | None] | None,
    *,
    classes: np.ndarray | None = None,
) -> dict[str, EndlessStream]:
    """Open the labeled and the unlabeled stream of this process.

    Args:
        args: of the run.
        accelerator: which process of how many this is.
        labeled: images, and which of them have labels.
        unlabeled: images, and which of them are learned from without labels (None: all); None for a learner that
            needs none.
        classes: (N,) int64 of the labeled images, where each class is to come equally often.

    Raises:
        InputError: if the batch cannot be divided among the processes, or has no unlabeled images.
    """
    world = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    batch_size, ratio = (
        per_device_batch_size(args.optim.batch_size, accelerator.num_processes, 1),
        args.optim.unlabeled_ratio,
    )
    store, indices = labeled
    how = {"batch_size": batch_size, "seed": args.run.seed, "indices": indices, **world}
    labeled_stream = EndlessStream(store, **how) if classes is None else ClassStream(store, labels=classes, **how)
    streams = {"labeled": labeled_stream}
    if unlabeled is not None:
        if ratio < 1:
            raise InputError(f"unlabeled_ratio is {ratio}; {args.task.method} needs 1 or more.")
        store, chosen = unlabeled
        streams["unlabeled"] = EndlessStream(
            store, batch_size=batch_size * ratio, seed=args.run.seed, indices=chosen, **world
        )
    return streams
