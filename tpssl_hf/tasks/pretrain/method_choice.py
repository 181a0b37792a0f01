"""The method of a target pretraining where nobody names one: labels say whether the weights can teach themselves."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.config.parser import read_config_file
from tpssl_hf.config.shared import OptimConfig
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.models.backbone import load_backbone
from tpssl_hf.models.own_size import stated_image_size
from tpssl_hf.models.teacher import Teacher, load_teacher
from tpssl_hf.models.timm_export import preprocessing_of
from tpssl_hf.tasks.pretrain.config import AUTO, KEYS, OF_SMALL_IMAGES, USUAL_METHOD, PretrainArgs, own_teacher
from tpssl_hf.tasks.pretrain.helped import in_points
from tpssl_hf.tasks.pretrain.selection import choosing_and_judging, query_difference
from tpssl_hf.tasks.pretrain.shown_images import ShownImages
from tpssl_hf.training.open_data import open_image_cache, open_source
from tpssl_hf.training.run_dir import CONFIG

IMAGES = 1000  # labeled ones, of which two fifths are looked at
OVERRULES = "--method decides otherwise"


def named_method(args: PretrainArgs, accelerator: Accelerator) -> PretrainArgs:
    """Name the method where it is ``auto``; a run that has begun keeps its own.

    Weights that see images smaller than those they were trained at often have most to learn from what they say
    themselves of the same images enlarged (docs/evidence.md), but not always: where labels of training images do not
    say that they see enlarged images worse, beyond doubt, they become their own teacher, because that takes fewer
    steps than the usual method. Else, and without labels, it is that.

    Args:
        args: of the run, with the size of its images.
        accelerator: devices and processes.

    Raises:
        InputError: if images or weights cannot be had.
    """
    if args.task.method != AUTO:
        return args
    own = self_taught(args)
    if own is None:
        return of_usual_method(args)
    begun = Path(args.run.output_dir) / CONFIG
    if begun.exists():
        former = read_config_file(begun).get("method")
        return own if former == OF_SMALL_IMAGES else of_usual_method(args)
    teaches, sentence = ask_labels(args, accelerator)
    accelerator.print(f"method {OF_SMALL_IMAGES if teaches else USUAL_METHOD}: {sentence}; {OVERRULES}")
    return own if teaches else of_usual_method(args)


def of_usual_method(args: PretrainArgs) -> PretrainArgs:
    """Return the arguments with the usual method, whose keys they have."""
    return replace(args, task=replace(args.task, method=USUAL_METHOD))


def self_taught(args: PretrainArgs) -> PretrainArgs | None:
    """Return the arguments of weights that are their own teacher; None where they cannot be, or keys speak for others.

    What the keys of optimization have from the usual method they get from this one; the batch size only where a budget
    chooses it, because it may have been asked for.
    """
    model, data = args.model, args.data
    if model.init == "random" or data.streaming or args.method != PRETRAIN[USUAL_METHOD].config():
        return None
    size = stated_image_size(model.backbone, model.init)
    if size is None or size <= data.image_size:
        return None
    keys = replace(PRETRAIN[OF_SMALL_IMAGES].config(), **own_teacher(model))
    usual, new = (asdict(replace(OptimConfig(), **KEYS[name][1])) for name in (USUAL_METHOD, OF_SMALL_IMAGES))
    own = [name for name in usual if name != "batch_size" or args.time.budget]
    optim = replace(args.optim, **{name: new[name] for name in own if getattr(args.optim, name) == usual[name]})
    return replace(args, task=replace(args.task, method=OF_SMALL_IMAGES), optim=optim, method=keys)


def ask_labels(args: PretrainArgs, accelerator: Accelerator) -> tuple[bool, str]:
    """Return what :func:`sees_enlarged` does of the weights and the run's images, in every process."""
    data, model = args.data, args.model
    crop_scale = PRETRAIN[OF_SMALL_IMAGES].crop_scale
    store = open_image_cache(open_source(data), data, accelerator, None, crop_scale=crop_scale)
    found: list[Any] = [None]
    if accelerator.is_main_process:
        network, _ = load_backbone(model.backbone, init=model.init, image_size=data.image_size)
        shown = preprocessing_of(network)
        teacher = load_teacher(str(own_teacher(model)["teacher"]), model.backbone, 0, shown)
        views = ViewSettings.of(shown, args.run.seed, horizontal_flip=False)
        found = [sees_enlarged(network, teacher, ShownImages(store, views, accelerator.device))]
    decided: tuple[bool, str] = broadcast_object_list(found)[0]
    return decided


def sees_enlarged(network: nn.Module, teacher: Teacher, images: ShownImages) -> tuple[bool, str]:
    """Return whether labels of stored images let the teacher see them as well as the network or better, and how much.

    It does unless the interval of the difference lies below 0.
    """
    labels = images.store.labels
    split = None if labels is None else choosing_and_judging(labels, IMAGES)[0]
    if split is None:
        return False, "no labels, or too few of some class, to say whether the weights can teach themselves"
    gain = query_difference(*(images.answers(one.eval(), split) for one in (network, Enlarging(teacher))))
    return gain["high"] > 0, (
        f"shown {teacher.image_size} px in place of {images.views.image_size}, the weights as they are answer "
        f"{in_points(gain)} more of {len(split.queries)} training images rightly"
    )


class Enlarging(nn.Module):
    """A teacher as a backbone: images (B, 3, S, S), normalized for another network, to its features (B, D)."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's features."""
        return self.teacher.features(images)
