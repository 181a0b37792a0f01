"""The size of the images that weights are meant for, known before they are loaded."""

from pathlib import Path

import timm
from timm.models import is_model

from tpssl_hf.models.backbone import hub_folder, stored_config

USUAL = 224  # of weights that do not say, and of random ones


def own_image_size(architecture: str, init: str) -> int:
    """Return the side in pixels of the images that weights were trained on, as far as their source states it, or 224.

    Args:
        architecture: as for :func:`tpssl_hf.models.backbone.load_backbone`, which also says what is wrong with it.
        init: likewise.

    Raises:
        InputError: if the weights are on the Hub and it does not deliver them.
    """
    return stated_image_size(architecture, init) or USUAL


def stated_image_size(architecture: str, init: str) -> int | None:
    """Return the side in pixels that the source of weights states they were trained at; None where it states none.

    Args and errors are those of :func:`own_image_size`.
    """
    path = Path(init).expanduser()
    if init == "random":
        return None
    if path.exists():
        return _stated(path.parent if path.is_file() else path)
    if init == "timm" or "/" not in init:
        return _of_timm(architecture if init == "timm" else init)
    return _stated(hub_folder(init)) if init.count("/") == 1 and not init.startswith((".", "/", "~")) else None


def _stated(folder: Path) -> int | None:
    facts = stored_config(str(folder))
    size = (facts.get("pretrained_cfg") or facts).get("input_size")
    return int(size[-1]) if isinstance(size, list) and len(size) == 3 else None


def _of_timm(tagged: str) -> int | None:
    name, _, tag = tagged.partition(".")
    if not is_model(name) or (tag and tagged not in timm.list_models(f"{name}.*", include_tags=True)):
        return None
    known = timm.get_pretrained_cfg(tagged)
    return int(known.input_size[-1]) if known else None
