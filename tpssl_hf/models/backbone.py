"""Load Φ: a timm backbone from random weights, timm's own, a folder, a file or the Hub."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.data import resolve_data_config
from timm.models import is_model
from torch import nn

from tpssl_hf.errors import InputError
from tpssl_hf.files.json_file import read_json
from tpssl_hf.models.hub_download import NotDeliveredError, hub_snapshot, why_not_delivered
from tpssl_hf.models.sealed import CONFIG_FILE as CONFIG_FILE
from tpssl_hf.models.sealed import WEIGHTS_FILE as WEIGHTS_FILE
from tpssl_hf.models.sealed import check_seals, read_sealed_weights
from tpssl_hf.models.sealed import weights_digest as weights_digest
from tpssl_hf.models.sizes import built, check_image_size, size_arguments
from tpssl_hf.models.tensors import load_backbone_tensors
from tpssl_hf.models.timm_network import timm_network
from tpssl_hf.models.weights_config import read_weights_config


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a backbone come from; it travels with every model made from them.

    Attributes:
        kind: random | timm | folder | file | hub.
        name: the architecture, its name with the weight tag, a folder's name or Hub id; never a private absolute path.
        revision: commit of a Hub repository, if one was read.
        license: license of the weights as far as their source states it.
        sha256: digest of the weight file, for folders, files and the Hub.
        weights: digest of the loaded tensors, the same wherever they were read from; none for random ones.
        image_size: side of the images the weights are meant for, as far as their source states it.
        source: what they were converted from, if `tpssl-hf convert` made them; it outlives the folder it was read in.
    """

    kind: str
    name: str
    revision: str | None = None
    license: str | None = None
    sha256: str | None = None
    weights: str | None = None
    image_size: int | None = None
    source: str | None = None

    def size_note(self, image_size: int) -> str:
        """Say in a line that the weights are meant for another size than ``image_size``; empty if they are not."""
        if self.image_size in (None, image_size):
            return ""
        return f"the weights ({self.name}) are meant for {self.image_size} px, this run shows them {image_size} px"

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON types; ``source`` only if there is one."""
        facts = asdict(self)
        return facts if self.source is not None else {name: facts[name] for name in facts if name != "source"}


def load_backbone(architecture: str, *, init: str, image_size: int | None = None) -> tuple[nn.Module, WeightsSource]:
    """Build Φ without a classifier, images (B, 3, H, W) to features (B, D); only this function may download weights.

    Its ``pretrained_cfg`` is that of the weights, not of the architecture: their own mean, standard deviation,
    interpolation and crop, with ``image_size`` for their own size where it is given
    (:func:`tpssl_hf.models.timm_export.preprocessing_of` reads it).

    Args:
        architecture: a timm model name, with or without a weight tag (``resnet18``, ``resnet18.tv_in1k``).
        init: ``random`` (timm's own initialization), ``timm`` (its pretrained weights for ``architecture``), a timm
            weight tag, a folder in the layout of :func:`tpssl_hf.models.timm_export.save_timm_folder`, a
            ``.safetensors`` file, or a Hub id with an optional ``@revision``. A file's preprocessing is in the
            ``config.json`` beside it, else that of the tag in ``architecture``.
        image_size: side of the images; a network built for one size (a ViT) is built for it, its position embedding
            resampled, and one that cannot take it is refused.

    Raises:
        InputError: for an unknown architecture or tag, weights that cannot be had, missing or unexpected backbone
            keys, and an image size that the network does not take.
    """
    name, _, tag = architecture.partition(".")
    if not is_model(name):
        raise InputError(f"backbone {architecture!r} is no timm model; {_near(name)}")
    if tag and tag not in (tags := _tags(name)):
        raise InputError(f"backbone {architecture!r}: timm has no tag {tag!r} of {name}; it has {', '.join(tags)}.")
    model, origin = _load(architecture, init, image_size)
    facts = dict(timm_network(model).pretrained_cfg)
    if origin.kind == "random":  # weights that have seen nothing are shown whole images
        facts |= {"crop_pct": 1.0, "crop_mode": "center"}
    else:
        origin = replace(origin, weights=weights_digest(model.state_dict(), any_size=True))
    if image_size is not None:
        if tuple(facts["input_size"][1:]) != (image_size, image_size):
            facts |= {"input_size": (3, image_size, image_size), "pool_size": None}
        check_image_size(model, name, image_size)
    timm_network(model).pretrained_cfg = facts
    return model, origin


def _load(architecture: str, init: str, image_size: int | None) -> tuple[nn.Module, WeightsSource]:
    """Find out what ``init`` is, and load it."""
    name, kind, path = architecture.partition(".")[0], kind_of(init), Path(init).expanduser()
    if kind == "random":
        return built(architecture, image_size), WeightsSource("random", name)
    if kind == "timm":
        return _from_timm(architecture if init == "timm" else init, architecture, image_size)
    if kind == "folder":
        return _from_folder(path, WeightsSource("folder", _public_name(path)), architecture, image_size)
    if kind == "file":
        if path.suffix != ".safetensors":
            raise InputError(
                f"init {init!r} is not a .safetensors file, and pickled weights are not read here; "
                f"`tpssl-hf convert {init} --backbone {name} --output_dir FOLDER` makes a folder of it."
            )
        facts = read_weights_config(path.with_name(CONFIG_FILE), name)
        return _from_file(path, WeightsSource("file", path.name), architecture, image_size, facts)
    return _from_hub(init, architecture, image_size)


def kind_of(init: str) -> Literal["random", "timm", "folder", "file", "hub"]:
    """Return what ``init`` names, without opening it.

    Raises:
        InputError: if it is none of these.
    """
    path = Path(init).expanduser()
    if init == "random":
        return "random"
    if init == "timm" or (is_model(init.partition(".")[0]) and "/" not in init and not Path(init).exists()):
        return "timm"
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "file"
    if init.count("/") == 1 and not init.startswith((".", "/", "~")):
        return "hub"
    raise InputError(f"init {init!r} is not random, timm, a timm weight tag, an existing folder or file, or a Hub id.")


def stored_config(place: str) -> dict[str, Any]:
    """Return the ``config.json`` in a folder of weights; empty if there is none, or a damaged one: loading says so."""
    try:
        content = read_json(Path(place).expanduser() / CONFIG_FILE)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def converted_from(provenance: Any) -> str | None:
    """Say what weights were converted from, given what ``tpssl-hf convert`` wrote of them; None for any others."""
    if not isinstance(provenance, dict) or provenance.get("recipe") != "convert":
        return None
    source = provenance["source"]
    family = f" ({source['family']})" if source["family"] else ""
    return f"{source['file']}, SHA-256 `{source['sha256']}`, converted{family}"


def _near(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` names them."


def _tags(name: str) -> list[str]:
    """Return the weight tags that timm has of a model."""
    return [found.partition(".")[2] for found in timm.list_models(f"{name}.*", include_tags=True)]


def _from_timm(tagged: str, architecture: str, image_size: int | None) -> tuple[nn.Module, WeightsSource]:
    name, _, tag = architecture.partition(".")
    if tagged.partition(".")[0] != name:
        raise InputError(f"init {tagged!r} holds weights of another architecture than backbone {name!r}.")
    if tag and tagged != architecture:
        raise InputError(f"init {tagged!r} and backbone {architecture!r} name different weights; leave one tag out.")
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no pretrained weights for {name!r}; use init random, a folder or a Hub id.")
    size = {} if image_size is None else size_arguments(name, image_size)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built(name, image_size)  # an image size is refused as such, not as a download that failed
    try:
        model: nn.Module = timm.create_model(tagged, pretrained=True, num_classes=0, **size)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"timm's weights {tagged!r} could not be loaded, offline or unknown tag ({why_not_delivered(error)})."
        ) from None  # the client's own words may repeat a token
    facts = timm_network(model).pretrained_cfg
    tagged = f"{name}.{facts.get('tag') or 'default'}"
    return model, WeightsSource("timm", tagged, license=facts.get("license"), image_size=facts["input_size"][-1])


def _from_folder(
    folder: Path, origin: WeightsSource, architecture: str, image_size: int | None
) -> tuple[nn.Module, WeightsSource]:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        hint = f"; did you mean {folder / 'model'}?" if (folder / "model" / WEIGHTS_FILE).is_file() else ""
        raise InputError(f"init folder {folder} holds no {WEIGHTS_FILE}{hint or '; give a folder that does.'}")
    facts = read_weights_config(folder / CONFIG_FILE, architecture.partition(".")[0])
    origin = replace(origin, source=converted_from(stored_config(str(folder)).get("tpssl_hf")))
    return _from_file(weights, origin, architecture, image_size, facts)


def _from_file(
    path: Path, origin: WeightsSource, architecture: str, image_size: int | None, facts: dict[str, Any]
) -> tuple[nn.Module, WeightsSource]:
    """Load a file; ``facts`` are those of the weights, empty where nothing is known of them."""
    tensors = read_sealed_weights(path)
    model = built(architecture, image_size)
    load_backbone_tensors(model, tensors, path)
    if path.name == WEIGHTS_FILE:
        check_seals(path.parent)
    if any(key in facts for key in ("mean", "std", "input_size")):
        # as plain timm reads them: what is missing is timm's general default, not the architecture's
        network = timm_network(model)
        network.pretrained_cfg = {**network.pretrained_cfg, **resolve_data_config(pretrained_cfg=facts)}
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    own_size = facts["input_size"][-1] if "input_size" in facts else None
    return model, replace(origin, license=facts.get("license"), sha256=digest, image_size=own_size)


def hub_folder(repository: str) -> Path:
    """Download weights and their config from a Hub id with an optional ``@revision``; returns the folder, a commit's.

    Raises:
        InputError: if the Hub does not deliver them.
    """
    try:
        return hub_snapshot(repository, (WEIGHTS_FILE, CONFIG_FILE))
    except NotDeliveredError as error:
        raise InputError(
            f"init {repository!r}: no such folder here, and the Hub did not deliver it ({error})."
        ) from None


def _from_hub(repository: str, architecture: str, image_size: int | None) -> tuple[nn.Module, WeightsSource]:
    folder = hub_folder(repository)
    return _from_folder(
        folder, WeightsSource("hub", repository.partition("@")[0], folder.name), architecture, image_size
    )


def _public_name(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "model" else folder.name
