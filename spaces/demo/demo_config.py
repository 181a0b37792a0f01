"""What the demo may show: titles, models and images, read strictly from one YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml

from tpssl_hf.errors import InputError


@dataclass(frozen=True)
class ClassifierPair:
    """Two classifiers that differ in the weights they were finetuned from.

    Attributes:
        name: what visitors choose.
        base: folder or Hub id of the one finetuned from the base weights.
        adapted: likewise, from the adapted weights.
        neighbors: file of training images and their features by ``adapted``, as demo_build.py makes it.
        about: one sentence for visitors.
    """

    name: str
    base: str
    adapted: str
    neighbors: str | None = None
    about: str = ""


@dataclass(frozen=True)
class SegmenterChoice:
    """One segmenter.

    Attributes:
        name: what visitors choose.
        model: folder or Hub id.
        shorter_side: pixels to which the shorter side of larger images is shrunk for the model, as in training.
        about: one sentence for visitors.
    """

    name: str
    model: str
    shorter_side: int = 512
    about: str = ""


@dataclass(frozen=True)
class Changes:
    """What target pretraining has changed, as recipes/analyze.py and recipes/verdict.py have drawn it.

    Attributes:
        name: what visitors choose.
        tsne: image of the features before and after.
        drift: image of how far the weights have moved.
        verdict: folder with ``results.json``, ``verdict.png`` and ``verdict.md``.
    """

    name: str
    tsne: str | None = None
    drift: str | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Examples:
    """Images to click on, by tab."""

    classification: list[str] = field(default_factory=list)
    segmentation: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DemoConfig:
    """Everything the demo shows; a visitor can choose nothing else.

    Attributes:
        title: of the page.
        sentence: below it.
        classifiers: of the first tab.
        segmenters: of the second.
        changes: of the third.
        examples: images to click on.
        folder: where paths start that are not found from the working directory; that of the file.
    """

    title: str
    sentence: str
    classifiers: list[ClassifierPair] = field(default_factory=list)
    segmenters: list[SegmenterChoice] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    examples: Examples = field(default_factory=Examples)
    folder: Path = Path()

    def find(self, place: str) -> Path:
        """Return the path that ``place`` names from the working directory, or else from the file's folder."""
        path = Path(place).expanduser()
        beside = self.folder / path
        return beside if beside.exists() and not path.exists() else path


def read_demo_config(path: Path) -> DemoConfig:
    """Read the file that says what the demo shows.

    Raises:
        InputError: for a file that cannot be read, and unknown, missing or wrong keys, each by name.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read ({error.strerror}); give a YAML file.") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    values = _checked(content, DemoConfig, path.name, leave_out=("folder",))
    values["examples"] = Examples(**_checked(values.get("examples", {}), Examples, f"{path.name}, examples"))
    for name, kind in (("classifiers", ClassifierPair), ("segmenters", SegmenterChoice), ("changes", Changes)):
        entries = values.get(name, [])
        values[name] = [kind(**_checked(entry, kind, f"{path.name}, {name}")) for entry in entries]
        names = [entry.name for entry in values[name]]
        if repeated := sorted({one for one in names if names.count(one) > 1}):
            raise InputError(f"{path.name}, {name}: {repeated[0]!r} stands there twice; give each a name of its own.")
    return DemoConfig(**values, folder=path.resolve().parent)


def _checked(content: Any, kind: Any, where: str, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a mapping whose keys are those of a dataclass, with values of the right kind."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where} holds {content!r}; it must hold `key: value` lines.")
    known = {item.name: item for item in fields(kind) if item.name not in leave_out}
    if unknown := [key for key in content if key not in known]:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}.")
    values = dict(content)
    for name, hint in get_type_hints(kind).items():
        if name not in known:
            continue
        if name in values:
            _check_kind(values[name], hint, f"{where}: key {name!r}")
        elif hint is str and name != "about":
            raise InputError(f"{where}: key {name!r} is missing; it is a text.")
    return values


def _check_kind(value: Any, hint: Any, where: str) -> None:
    """Refuse a value of another kind than text, number, text or nothing, list of texts, or list of entries."""
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if hint is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{where} is {value!r}; give a whole number from 1.")
    if str in allowed and not (isinstance(value, str) or (value is None and type(None) in allowed)):
        raise InputError(f"{where} is {value!r}; give a text, in quotes if need be.")
    if str(hint).startswith("list") and (
        not isinstance(value, list) or (hint == list[str] and not all(isinstance(part, str) for part in value))
    ):
        raise InputError(f"{where} is {value!r}; give a list, each entry after a dash.")
