"""A frozen network whose features another one follows."""

from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models import is_model
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WEIGHTS_FILE, WeightsSource, hub_folder, load_backbone, stored_config
from tpssl_hf.models.own_size import own_image_size
from tpssl_hf.models.sizes import feature_width
from tpssl_hf.models.timm_export import Preprocessing, preprocessing_of


class Teacher:
    """A frozen backbone that is shown the views of another network, in its own normalization and size.

    It is no module, and so in no state dict, no optimizer and no copy of a method: like the images it is read from
    its source again when a run goes on, and the digest in ``source`` tells whether it still is the same.

    Attributes:
        source: where its weights come from.
        width: D, number of its features.
        image_size: side of the images it sees, in pixels.

    Args:
        network: images (B, 3, H, W) to features (B, D); put into evaluation mode and left there.
        source: where its weights come from.
        shown: how the images are normalized that :meth:`features` is given.
    """

    def __init__(self, network: nn.Module, source: WeightsSource, shown: Preprocessing) -> None:
        self.network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.source, self.width = source, feature_width(network)
        own = preprocessing_of(network)
        self.image_size = own.image_size
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(1, 3, 1, 1) for values in (shown.mean, shown.std, own.mean, own.std)
        )
        self._scale, self._offset = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features (B, D) in float32 of images (B, 3, S, S) that are normalized for the other network."""
        self.network.to(images.device)  # nothing where it is there already
        found: Tensor = self.network(self.seen(images))
        return found.float()

    def seen(self, images: Tensor) -> Tensor:
        """Return images as the teacher sees them: its own mean and standard deviation, resized to its own size."""
        images = images * self._scale.to(images.device) + self._offset.to(images.device)
        size = self.image_size, self.image_size
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size, mode="bilinear", antialias=True)  # which changes nothing where it enlarges


def find_teacher(teacher: str, architecture: str | None) -> tuple[str, str]:
    """Return the timm architecture of a teacher and what ``load_backbone`` loads.

    Args:
        teacher: a timm model with or without a tag of its weights, the folder of a run or of weights in timm's
            layout, a ``.safetensors`` file, or a Hub id with an optional ``@revision``.
        architecture: timm model, for weights that do not say it.

    Raises:
        InputError: if it is none of these, or does not say its architecture.
    """
    path = Path(teacher).expanduser()
    on_hub = not path.exists() and teacher.count("/") == 1 and not teacher.startswith((".", "/", "~"))
    if path.exists():
        path = path / "model" if (path / "model" / WEIGHTS_FILE).is_file() else path
        teacher, folder = str(path), path if path.is_dir() else path.parent
    elif on_hub:
        folder = hub_folder(teacher)
    elif is_model(teacher.partition(".")[0]):
        return architecture or teacher, teacher
    else:
        raise InputError(
            f"teacher {teacher!r} is no timm model, existing folder or file, or Hub id; "
            "vit_small_patch14_dinov2.lvd142m is one of timm's."
        )
    found = architecture or stored_config(str(folder)).get("architecture")
    if not found:
        raise InputError(
            f"teacher {teacher!r} does not say which network it is of; give the timm model's name as "
            "--teacher_backbone."
        )
    return str(found), teacher


def load_teacher(teacher: str, architecture: str | None, image_size: int, shown: Preprocessing) -> Teacher:
    """Load a teacher; ``teacher`` and ``architecture`` as for :func:`find_teacher`.

    Args:
        teacher: what to load.
        architecture: its timm model, for weights that do not say it.
        image_size: side of the images it sees; 0: of those its weights were trained on.
        shown: how the images are normalized that it is given.

    Raises:
        InputError: for weights that cannot be had, and a size that the network does not take.
    """
    found, init = find_teacher(teacher, architecture)
    try:
        size = image_size or own_image_size(found, init)
        network, source = load_backbone(found, init=init, image_size=size)
    except InputError as error:
        raise InputError(f"teacher: {error}") from error
    return Teacher(network, source, shown)
