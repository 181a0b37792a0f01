"""The weights that a verdict compares: where they are, of which architecture, and what a reader must know of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.models import is_model

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WEIGHTS_FILE, WeightsSource, stored_config
from tpssl_hf.models.own_size import own_image_size
from tpssl_hf.models.teacher import find_teacher
from tpssl_hf.training.recorded_start import recorded_keys, recorded_start, same_start, timm_start
from tpssl_hf.verdicts.config import VerdictConfig
from tpssl_hf.verdicts.decision import BASE, NOT_ADAPTED, TEACHER

ANOTHER_BASE = "ANOTHER BASE:"  # begins the remark that the base is not what was adapted
NO_TEACHER = "none"  # what leaves its row out
FINETUNING = ("ssl_classify", "ssl_segment")  # recipes that train with labels


@dataclass(frozen=True)
class Weights:
    """One set of weights.

    Attributes:
        name: short name for tables.
        init: what :func:`tpssl_hf.models.backbone.load_backbone` loads.
        architecture: timm model they are of.
        facts: their ``config.json``, empty where there is none at hand.
        image_size: side of the images they are shown; 0: that of the verdict.
    """

    name: str
    init: str
    architecture: str
    facts: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0

    @property
    def start(self) -> dict[str, Any]:
        """What they were adapted from, see :func:`tpssl_hf.training.recorded_start.recorded_start`."""
        return recorded_start(self.init)

    @property
    def file(self) -> Path | None:
        """The weight file, if it is on this machine under the name that was given."""
        path = Path(self.init).expanduser()
        return path / WEIGHTS_FILE if path.is_dir() else path if path.is_file() else None


def find_weights(config: VerdictConfig) -> tuple[Weights, list[Weights]]:
    """Find base and adapted weights before anything is computed.

    Raises:
        InputError: for weights that are not there, an unfinished run, a finetuned classifier, or none at all.
    """
    named = [part.strip() for part in config.adapted.split(",") if part.strip()]
    if not named:
        raise InputError("adapted names no weights: give --adapted RUN, or several with commas: RUN1,RUN2.")
    if len(set(named)) < len(named):
        raise InputError(f"adapted {config.adapted!r} names the same weights twice; name each once.")
    locations = [_location(text, "adapted") for text in named]
    facts = [stored_config(location) for location in locations]
    for location, known in zip(locations, facts, strict=True):
        recipe = known.get("tpssl_hf", {}).get("recipe")
        if recipe in FINETUNING:
            raise InputError(
                f"adapted {location} was made by {recipe}, with labels, and a verdict predicts labeled images that "
                "it may have been trained on; give the model/ of a target pretraining."
            )
    named_by_run = timm_start(locations, config.backbone) if config.base == "timm" else None
    base_location = config.base if config.base in ("random", "timm") else _location(config.base, "base")
    base_facts = stored_config(base_location)
    found = [str(known["architecture"]) for known in facts if "architecture" in known]
    own = config.base if is_model(config.base.partition(".")[0]) and not Path(config.base).exists() else None
    architecture = (
        named_by_run or config.backbone or base_facts.get("architecture") or own or (found or ["resnet18"])[0]
    )
    base = Weights(BASE, base_location, str(architecture), base_facts)
    other = config.adapted_backbone or base.architecture.partition(".")[0]
    names = _names(locations)
    adapted = [
        Weights(name, location, str(known.get("architecture", other)), known)
        for name, location, known in zip(names, locations, facts, strict=True)
    ]
    return base, adapted


def teacher_of(config: VerdictConfig, adapted: Sequence[Weights]) -> Weights | None:
    """Return the teacher that adapted weights followed, as ``teacher`` says or else a run's record; None without one.

    Raises:
        InputError: for a teacher that is not there.
    """
    if config.teacher == NO_TEACHER:
        return None
    recorded = next((keys for weights in adapted if (keys := recorded_keys(weights.init)).get("teacher")), {})
    name = config.teacher or recorded.get("teacher")
    if not name:
        return None
    known = recorded if name == recorded.get("teacher") else {}
    try:
        architecture, init = find_teacher(name, known.get("teacher_backbone"))
        own = known.get("teacher_image_size") or own_image_size(architecture, init)
    except InputError as error:
        raise InputError(f"{error} --teacher {NO_TEACHER} leaves it out.") from error
    return Weights(TEACHER, init, architecture, stored_config(init), config.teacher_image_size or own)


def _location(text: str, key: str) -> str:
    """What to load for ``text``: a run's folder stands for the model/ in it."""
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / WEIGHTS_FILE).is_file():
            return str(path)
        if (path / "model" / WEIGHTS_FILE).is_file():
            return str(path / "model")
        state = "is a run that has not finished" if (path / "checkpoints").is_dir() else f"holds no {WEIGHTS_FILE}"
        raise InputError(
            f"{key} {text!r} {state}; give a folder that holds model/ or {WEIGHTS_FILE}, or start the run again until "
            "it is done."
        )
    is_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
    if path.is_file() or is_hub_id or (key == "base" and is_model(text.partition(".")[0])):
        return text
    raise InputError(
        f"{key} {text!r} is not there; give a run's folder, its model/, a .safetensors file or a Hub id "
        f"owner/name{', random or timm' if key == 'base' else ''}."
    )


def _names(locations: list[str]) -> list[str]:
    """Short and different names of weights."""
    names: list[str] = []
    for location in locations:
        path = Path(location)
        short = path.resolve().parent.name if path.name == "model" else path.name.removesuffix(".safetensors")
        short = f"{short} (adapted)" if short in NOT_ADAPTED else short
        alike = sum(name == short or name.startswith(f"{short} (") for name in names)
        names.append(f"{short} ({alike + 1})" if alike else short)
    return names


def remarks(
    base: Weights,
    adapted: list[Weights],
    origins: dict[str, WeightsSource],
    widths: dict[str, int],
    seed: int,
    size: int,
) -> list[str]:
    """Return what a reader must know about the weights: unexpected starts, widths or sizes; a sentence each.

    Args:
        base: the base.
        adapted: the weights compared with it.
        origins: where each was really loaded from, by name.
        widths: number of features of each, by name.
        seed: of random weights.
        size: side of the images, in pixels.
    """
    found = [
        f"{ANOTHER_BASE} {weights.name} was adapted from {weights.start['kind']} weights ({weights.start['name']}), "
        f"this base is {origins[BASE].kind} weights ({origins[BASE].name}): the difference is not what adapting did."
        for weights in adapted
        if same_start(weights.start, origins[BASE], seed) is False
    ]
    for weights in adapted:
        if widths[weights.name] != widths[BASE]:
            found.append(
                f"{weights.name} ({weights.architecture}) has {widths[weights.name]} features, the base "
                f"({base.architecture}) {widths[BASE]}: part of any difference may be the architecture's."
            )
        own = (weights.facts.get("pretrained_cfg", {}).get("input_size") or [0, size])[1]
        if own != size:
            found.append(f"{weights.name} was adapted at {own} px and is compared at {size} px: see --image_size.")
        if same_start(weights.start, origins[BASE], seed) is None:
            known = f" ({weights.start['kind']} weights: {weights.start['name']})" if weights.start else ""
            found.append(f"{weights.name} does not tell whether it was adapted from this base{known}.")
    if note := origins[BASE].size_note(size):
        found.append(f"Of the base, {note}.")
    if base.init == "random":
        found.append("The random base is one draw of random weights; another --seed gives another.")
    return found
