"""What a verdict compares: weights that were named, and questions with draws of labels to answer them from."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from timm.models import is_model

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.label_splits import Labeled, choose_labels, draw_labels
from tpssl_hf.data.label_values import few
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.probes import ProbeSplit
from tpssl_hf.models.backbone import WEIGHTS_FILE, WeightsSource, stored_config
from tpssl_hf.training.recorded_start import recorded_start, same_start, timm_start
from tpssl_hf.verdict.config import VerdictConfig
from tpssl_hf.verdict.decision import BASE, STATISTICS

LEAST_DRAWS = 5
ANOTHER_BASE = "ANOTHER BASE:"  # begins the remark that the base is not what was adapted
FINETUNING = ("ssl_classify", "ssl_segment")  # recipes that train with labels
SEEDS_APART = 1000  # between the seeds of draws of two seeds of the run


@dataclass(frozen=True)
class Weights:
    """Weights to look at.

    Attributes:
        name: short name for tables.
        init: what :func:`tpssl_hf.models.backbone.load_backbone` loads.
        architecture: timm model they are of.
        facts: their ``config.json``, empty where there is none at hand.
    """

    name: str
    init: str
    architecture: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> dict[str, Any]:
        """What they were adapted from, see :func:`tpssl_hf.training.recorded_start.recorded_start`."""
        return recorded_start(self.init)

    @property
    def file(self) -> Path | None:
        """The weight file, if it is on this machine under the name that was given."""
        path = Path(self.init).expanduser()
        return path / WEIGHTS_FILE if path.is_dir() else path if path.is_file() else None


@dataclass(frozen=True)
class ProbeSet:
    """Images to look at, and what is asked about them.

    Attributes:
        indices: (N,) int64, numbers of the images in the store, ascending.
        labels: (N,) int64, -1 for none.
        class_names: names in the order of the class numbers.
        trials: one for each draw of labels, their numbers counting in ``indices``; none without labels.
        overlap: of the draws, see :func:`tpssl_hf.verdict.paired_bootstrap.paired_difference`.
        shared: whether all draws have the same questions; else each asks about the labels that it does not use.
        chosen: how all this was settled, in a sentence.
        notes: what is to be known about a file of labels, a sentence each.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    trials: tuple[ProbeSplit, ...]
    overlap: float
    shared: bool
    chosen: str
    notes: tuple[str, ...] = ()


def find_weights(config: VerdictConfig) -> tuple[Weights, list[Weights]]:
    """Settle base and adapted weights before anything is computed.

    Raises:
        InputError: for weights that are not there, an unfinished run, a finetuned classifier, or none at all.
    """
    named = [part.strip() for part in config.adapted.split(",") if part.strip()]
    if not named:
        raise InputError("adapted names no weights: give --adapted RUN, or several with commas: RUN1,RUN2.")
    if len(set(named)) < len(named):
        raise InputError(f"adapted {config.adapted!r} names the same weights twice; name each once.")
    places = [_place(text, "adapted") for text in named]
    facts = [stored_config(place) for place in places]
    for place, known in zip(places, facts, strict=True):
        recipe = known.get("tpssl_hf", {}).get("recipe")
        if recipe in FINETUNING:
            raise InputError(
                f"adapted {place} was made by {recipe}, with labels, and a verdict asks about labeled images that "
                "it may have been trained on; give the model/ of a target pretraining."
            )
    named_by_run = timm_start(places, config.backbone) if config.base == "timm" else None
    base_place = config.base if config.base in ("random", "timm") else _place(config.base, "base")
    base_facts = stored_config(base_place)
    found = [str(known["architecture"]) for known in facts if "architecture" in known]
    own = config.base if is_model(config.base.partition(".")[0]) and not Path(config.base).exists() else None
    architecture = (
        named_by_run or config.backbone or base_facts.get("architecture") or own or (found or ["resnet18"])[0]
    )
    base = Weights(BASE, base_place, str(architecture), base_facts)
    other = config.adapted_backbone or base.architecture.partition(".")[0]
    names = _names(places)
    adapted = [
        Weights(name, place, str(known.get("architecture", other)), known)
        for name, place, known in zip(names, places, facts, strict=True)
    ]
    return base, adapted


def _place(text: str, key: str) -> str:
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


def _names(places: list[str]) -> list[str]:
    """Short and different names of weights."""
    names: list[str] = []
    for place in places:
        path = Path(place)
        short = path.resolve().parent.name if path.name == "model" else path.name.removesuffix(".safetensors")
        short = f"{short} (adapted)" if short in (BASE, STATISTICS) else short
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
    """What a reader must know about the weights: other starts, widths or sizes than expected; a sentence each.

    Args:
        base: the base.
        adapted: what is held against it.
        origins: where each was really loaded from, by name.
        widths: features of each by name.
        seed: of random weights.
        size: side of the images looked at, in pixels.
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
            found.append(f"{weights.name} was adapted at {own} px and is asked at {size}: see --image_size.")
        if same_start(weights.start, origins[BASE], seed) is None:
            known = f" ({weights.start['kind']} weights: {weights.start['name']})" if weights.start else ""
            found.append(f"{weights.name} does not tell whether it was adapted from this base{known}.")
    if note := origins[BASE].size_note(size):
        found.append(f"Of the base, {note}.")
    if base.init == "random":
        found.append("The random base is one draw of random weights; another --seed gives another.")
    return found


def choose_probe_set(config: VerdictConfig, store: ImageCache, source: Source, *, seed: int) -> ProbeSet:
    """Settle images, questions and draws of labels; the same for all weights.

    Where there are four times as many labeled images as a draw needs, or more, half of them, ``queries`` at most,
    are asked about and the draws are taken from the rest. Else each draw asks about the labels it does not use, a
    quarter of them or more.

    Raises:
        InputError: for labels that do not suit the classes or the images, or fewer than 5 draws.
    """
    if config.draws < LEAST_DRAWS:
        raise InputError(f"draws {config.draws} are too few to see how much a draw matters; give 5 or more.")
    known, names, budget, notes = _known_labels(config, store, source, seed)
    random, most = np.random.default_rng(0), max(config.images, 4 * (budget or 0))
    labeled = random.permutation(np.flatnonzero(known != UNLABELED))[:most]
    others = random.permutation(np.flatnonzero(known == UNLABELED))[: most - len(labeled)]
    indices = np.sort(np.concatenate([labeled, others]))
    labels = known[indices]
    if not names:
        return ProbeSet(indices, labels, names, (), 0.0, False, "no labels")
    if budget and len(labeled) >= 4 * budget:
        return _shared_questions(config, indices, labels, names, budget, seed)
    return replace(_own_questions(config, indices, labels, names, budget, seed), notes=notes)


def _known_labels(
    config: VerdictConfig, store: ImageCache, source: Source, seed: int
) -> tuple[np.ndarray, tuple[str, ...], int | None, tuple[str, ...]]:
    """Labels of all images, -1 for none; class names, none without labels; budget, None for all there are; notes."""
    known, wanted = np.full(len(store), UNLABELED, dtype=np.int64), str(config.labels)
    is_file = Path(wanted).suffix.lower() in (".json", ".csv")
    if wanted == "none" or (not is_file and (store.labels is None or (store.labels == UNLABELED).all())):
        return known, (), None, ()
    labeled: Labeled = choose_labels(wanted, store, source, mode=config.label_mode, seed=1 + SEEDS_APART * seed)
    if is_file and source.class_names and len(source.class_names) != len(labeled.class_names):
        raise InputError(
            f"labels file {wanted} names {len(labeled.class_names)} classes and the data set {source.name!r} has "
            f"{len(source.class_names)}; give labels of its classes, or a data set without a label column."
        )
    if wanted.isdecimal() and store.labels is not None:
        return store.labels, labeled.class_names, int(wanted), ()
    known[labeled.indices] = labeled.labels
    return known, labeled.class_names, None, (f"labels: {labeled.counts(len(store))}", *labeled.notes)


def _shared_questions(
    config: VerdictConfig, indices: np.ndarray, labels: np.ndarray, names: tuple[str, ...], budget: int, seed: int
) -> ProbeSet:
    available, classes = int((labels != UNLABELED).sum()), len(names)
    if config.queries < classes:
        raise InputError(f"queries {config.queries} are fewer than the {classes} classes; give --queries {classes}.")
    count = min(config.queries, available // 2)
    asked = draw_labels(labels, count, classes, mode="proportional", seed=SEEDS_APART * seed)
    rest = labels.copy()
    rest[asked] = UNLABELED
    shown = np.bincount(rest[rest != UNLABELED], minlength=classes)[labels[asked]] > 0
    asked, unshown = asked[shown], [names[number] for number in np.unique(labels[asked[~shown]]).tolist()]
    trials = []
    for draw in range(1, config.draws + 1):
        try:
            bank = draw_labels(rest, budget, classes, mode=config.label_mode, seed=draw + SEEDS_APART * seed)
        except InputError as error:
            raise InputError(f"{error} Images asked about do not count; see --queries and --images.") from error
        trials.append(ProbeSplit(bank, asked, labels[bank], labels[asked]))
    pool = available - count
    chosen = (
        f"{config.draws} draws of {budget} labels out of {pool:,} labeled images; all were asked about the same "
        f"{len(asked):,} other ones"
    )
    if unshown:  # where labels are drawn in proportion; a balanced draw would be refused
        chosen += f"; not asked about, as no label is left to learn them from: {few(unshown)}"
    return ProbeSet(indices, labels, names, tuple(trials), budget / (pool - budget), True, chosen)


def _own_questions(
    config: VerdictConfig,
    indices: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    budget: int | None,
    seed: int,
) -> ProbeSet:
    counts = np.bincount(labels[labels != UNLABELED], minlength=len(names))
    if (single := np.flatnonzero(counts < 2)).size:
        raise InputError(
            f"class {names[single[0]]} has {counts[single[0]]} labeled images, and each class needs one to learn "
            "from and one to ask about; label 2 or more of each."
        )
    total = int(counts.sum())
    size = min(budget or total, 3 * total // 4)
    trials = []
    for draw in range(1, config.draws + 1):
        # a draw by shares favors the first of equal classes: which is first changes with every draw
        number = np.random.default_rng([seed, draw]).permutation(len(names))
        shuffled = np.where(labels == UNLABELED, UNLABELED, number[labels])
        bank = draw_labels(shuffled, size, len(names), mode="proportional", seed=draw + SEEDS_APART * seed)
        asked = np.setdiff1d(np.flatnonzero(labels != UNLABELED), bank)
        trials.append(ProbeSplit(bank, asked, labels[bank], labels[asked]))
    chosen = (
        f"{config.draws} splits of {total:,} labeled images into {size:,} to learn from and only {total - size:,} "
        "to ask about"
    )
    return ProbeSet(indices, labels, names, tuple(trials), (total - size) / size, False, chosen)
