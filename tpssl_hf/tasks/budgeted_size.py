"""The size images are shown at where a time budget decides: on a CPU the largest at which enough is learned."""

from dataclasses import replace

import timm
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tpssl_hf.config.shared import DataConfig
from tpssl_hf.models.own_size import own_image_size
from tpssl_hf.tasks.machine import TrainingArgs, seconds_per_image
from tpssl_hf.tasks.time_budget import kept_plan, parse_duration

SIDES = (64, 96, 128, 160, 192)  # tried below the weights' own
SHARE = 0.6  # of a budget, that steps have at least: the rest is for start, probes, evaluation and reserve


def budgeted_data(args: TrainingArgs, accelerator: Accelerator, images: float) -> DataConfig:
    """Return ``args.data`` with the size of the images put in where no key gives it and there is a budget.

    That is the size of the weights, or on a CPU the largest of a few below it at which ``images`` are learned from
    within the budget: large images are worth points, but not if hardly any step is made with them. A run that has
    begun keeps its own. Networks of one fixed size (vision transformers) keep that of their weights.

    Args:
        args: of the run.
        accelerator: devices and processes.
        images: that are enough, each counted as often as it goes forward and backward through the backbone.

    Raises:
        InputError: if the budget is no duration, or the backbone cannot be made.
    """
    data: DataConfig = args.data
    model, budget = args.model, args.time.budget
    if not budget or data.image_size:
        return data
    if former := kept_plan(args.run.output_dir, budget).get("image_size"):
        return replace(data, image_size=former)
    own = own_image_size(model.backbone, model.init)
    known = timm.get_pretrained_cfg(model.backbone, allow_unregistered=True)
    if accelerator.device.type != "cpu" or own <= SIDES[0] or (known and known.fixed_input_size):
        return replace(data, image_size=own)
    found = [0.0]
    if accelerator.is_main_process:
        found = [seconds_per_image(data, model, SIDES[0], accelerator.num_processes)]
    affordable = SHARE * parse_duration(budget) * accelerator.num_processes / images  # seconds of an image
    seconds = broadcast_object_list(found)[0]
    sides = [side for side in (*SIDES, own) if side <= own and seconds * (side / SIDES[0]) ** 2 <= affordable]
    side = max(sides, default=SIDES[0])
    if side < own:
        accelerator.print(
            f"images of {side} px: the {own} px of the weights would leave a budget of {budget} too few steps; "
            "--image_size decides otherwise"
        )
    return replace(data, image_size=side)
