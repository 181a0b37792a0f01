"""Whether a step of target pretraining fits in memory."""

from accelerate import Accelerator
from torch import nn

from tpssl_hf.tasks.pretrain.config import PretrainArgs
from tpssl_hf.training.memory_need import too_large


def too_large_step(args: PretrainArgs, backbone: nn.Module, batch_size: int, accelerator: Accelerator) -> str:
    """Say that a step of so many images does not fit in memory; nothing where it does or they are recomputed."""
    if args.model.gradient_checkpointing:
        return ""
    side, together = args.data.image_size, batch_size // args.optim.gradient_accumulation_steps
    return too_large(backbone, (side, side), together, accelerator)
