"""Load Φ: a timm backbone from random weights, timm's own, a folder, a file or the Hub."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models import is_model
from torch import Tensor, nn

from tpssl_hf.errors import InputError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Origin:
    """Where the weights of a backbone come from; it travels with every model made from them.

    Attributes:
        kind: random | timm | folder | file | hub.
        name: the architecture, weight tag, folder name or Hub id; never a private absolute path.
        revision: commit of a Hub repository, if one was read.
        licence: licence of the weights as far as their source states it.
        sha256: digest of the weight file, for folders, files and the Hub.
    """

    kind: str
    name: str
    revision: str | None = None
    licence: str | None = None
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON types."""
        return asdict(self)


def load_backbone(architecture: str, *, init: str, image_size: int | None = None) -> tuple[nn.Module, Origin]:
    """Build Φ without a classifier, images (B, 3, H, W) to features (B, D); only this function may download weights.

    Args:
        architecture: a timm model name, with or without a weight tag (``resnet18``, ``resnet18.tv_in1k``).
        init: ``random`` (timm's own initialisation), ``timm`` (its pretrained weights for ``architecture``), a timm
            weight tag, a folder in the layout of :func:`tpssl_hf.models.layout.save_timm_folder`, a ``.safetensors``
            file, or a Hub id with an optional ``@revision``.
        image_size: side of the images, for models built for one size (a ViT); their position embedding is resampled.

    Raises:
        InputError: for an unknown architecture, weights that cannot be had, and missing or unexpected backbone keys.
    """
    name, _, tag = architecture.partition(".")
    if not is_model(name):
        raise InputError(f"backbone {architecture!r} is no timm model; {_near(name)}")
    fixed = image_size is not None and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    model_arguments = {"img_size": image_size} if fixed else {}
    if init == "random":
        return _build(name, model_arguments), Origin("random", name)
    if init == "timm" or (is_model(init.partition(".")[0]) and "/" not in init and not Path(init).exists()):
        return _from_timm(architecture if init == "timm" else init, name, model_arguments)
    path = Path(init).expanduser()
    if path.is_dir():
        return _from_folder(path, Origin("folder", _public_name(path)), name, model_arguments)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"init {init!r} is not a .safetensors file; recipes/convert.py makes a folder of it.")
        return _from_file(path, Origin("file", path.name), name, model_arguments)
    if init.count("/") == 1 and not init.startswith((".", "/", "~")):
        return _from_hub(init, name, model_arguments)
    raise InputError(f"init {init!r} is not random, timm, a timm weight tag, an existing folder or file, or a Hub id.")


def stored_config(place: str) -> dict[str, Any]:
    """Return the ``config.json`` in a folder of weights; empty if there is none, or a damaged one: loading says so."""
    try:
        content = json.loads((Path(place).expanduser() / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _near(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` names them."


def _build(name: str, model_arguments: dict[str, Any]) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **model_arguments)
    return model


def _from_timm(tagged: str, name: str, model_arguments: dict[str, Any]) -> tuple[nn.Module, Origin]:
    if tagged.partition(".")[0] != name:
        raise InputError(f"init {tagged!r} holds weights of another architecture than backbone {name!r}.")
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm has no pretrained weights for {name!r}; use init random, a folder or a Hub id.")
    try:
        model: nn.Module = timm.create_model(tagged, pretrained=True, num_classes=0, **model_arguments)
    except (OSError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"timm's weights {tagged!r} could not be loaded, offline or unknown tag ({reason})."
        ) from error
    facts: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return model, Origin("timm", f"{name}.{facts.get('tag') or 'default'}", licence=facts.get("license"))


def _from_folder(folder: Path, origin: Origin, name: str, model_arguments: dict[str, Any]) -> tuple[nn.Module, Origin]:
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    if not weights.is_file():
        hint = f"; did you mean {folder / 'model'}?" if (folder / "model" / WEIGHTS_FILE).is_file() else ""
        raise InputError(f"init folder {folder} holds no {WEIGHTS_FILE}{hint or '; give a folder that does.'}")
    licence = None
    if config.is_file():
        try:
            facts = json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{config} is not readable JSON ({error}); the folder is damaged, copy it again."
            ) from error
        stored = facts.get("architecture", name)
        if stored != name:
            raise InputError(f"init folder {folder} holds a {stored}, not a {name}; say --backbone {stored}.")
        licence = facts.get("pretrained_cfg", {}).get("license")
    origin = Origin(origin.kind, origin.name, origin.revision, licence)
    return _from_file(weights, origin, name, model_arguments)


def _from_file(path: Path, origin: Origin, name: str, model_arguments: dict[str, Any]) -> tuple[nn.Module, Origin]:
    import hashlib

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); copy or download it again.") from error
    model = _build(name, model_arguments)
    load_backbone_tensors(model, tensors, str(path))
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return model, Origin(origin.kind, origin.name, origin.revision, origin.licence, digest)


def _from_hub(repository: str, name: str, model_arguments: dict[str, Any]) -> tuple[nn.Module, Origin]:
    from huggingface_hub import snapshot_download

    repo_id, _, revision = repository.partition("@")
    try:
        folder = Path(
            snapshot_download(repo_id, revision=revision or None, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE])
        )
    except Exception as error:  # the client lets through what its HTTP library raises, whichever that is
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"init {repository!r}: no such folder here, and the Hub did not deliver it ({reason})."
        ) from error
    return _from_folder(folder, Origin("hub", repo_id, folder.name), name, model_arguments)


def _public_name(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "model" else folder.name


def load_backbone_tensors(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy ``tensors`` into ``model``; a classifier among them is left out, anything else must match exactly.

    Raises:
        InputError: naming missing, unexpected or differently shaped keys.
    """
    facts: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classifiers = facts.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    own = model.state_dict()
    if "pos_embed" in own and "pos_embed" in tensors and own["pos_embed"].shape != tensors["pos_embed"].shape:
        grid: list[int] = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        tensors = {
            **tensors,
            "pos_embed": resample_abs_pos_embed(tensors["pos_embed"], grid, num_prefix_tokens=prefix),
        }
    tensors = {k: v for k, v in tensors.items() if k in own or not k.startswith(tuple(f"{head}." for head in heads))}
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    differing = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if keys
    ]
    if problems:
        raise InputError(
            f"{where} does not fit this backbone: keys {'; '.join(problems)}. Is it another architecture?"
        )
    model.load_state_dict(tensors)
