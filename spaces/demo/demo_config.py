"""What the demo may show: titles, models and images, from one YAML file; and how it is served."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import config_files, key, parse_args
from tpssl_hf.errors import InputError


@dataclass(frozen=True)
class ClassifierPair:
    """Two classifiers that differ in the weights they were finetuned from.

    Attributes:
        name: what visitors choose.
        base: folder or Hub id of the one finetuned from the base weights.
        adapted: likewise, from the adapted weights.
        neighbors: file of training images and their features by ``adapted``, as demo_build.py makes it.
        examples: images to click on.
        about: one sentence for visitors.
    """

    name: str
    base: str
    adapted: str
    neighbors: str | None = None
    examples: list[str] = field(default_factory=list)
    about: str = ""


@dataclass(frozen=True)
class SegmenterChoice:
    """One segmenter.

    Attributes:
        name: what visitors choose.
        model: folder or Hub id.
        shorter_side: pixels to which the shorter side of larger images is shrunk for the model, as in training.
        examples: images to click on.
        about: one sentence for visitors.
    """

    name: str
    model: str
    shorter_side: int = 512
    examples: list[str] = field(default_factory=list)
    about: str = ""


@dataclass(frozen=True)
class Changes:
    """What target pretraining has changed, as ``tpssl-hf analyze`` and ``tpssl-hf verdict`` have drawn it.

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
class ShownConfig:
    """What the demo shows, from demo.yaml; a visitor can choose nothing else."""

    title: str = key("", "Title of the page.")
    sentence: str = key("", "Sentence below the title.")
    classifiers: list[ClassifierPair] = key((), "First tab: pairs of classifiers, a list of mappings.")
    segmenters: list[SegmenterChoice] = key((), "Second tab: segmenters, likewise.")
    changes: list[Changes] = key((), "Third tab: what target pretraining has changed, likewise.")


@dataclass(frozen=True)
class ServerConfig:
    """Server."""

    build: bool = key(False, "First make the small models of the shipped demo.yaml, in outputs/demo.")
    steps: int | None = key(None, "With build: length of every training run, to try things out.")
    host: str | None = key(None, "Address to listen on; 0.0.0.0 for all, this machine only when not given.")
    port: int | None = key(None, "Port to listen on; the first free one from 7860 when not given.")


@dataclass(frozen=True)
class ShownArgs:
    """Every key that demo.yaml of a Space may have."""

    shown: ShownConfig


@dataclass(frozen=True)
class DemoArgs:
    """Every key of the demo."""

    shown: ShownConfig
    server: ServerConfig


@dataclass(frozen=True)
class DemoConfig(ShownConfig):
    """What the demo shows, checked.

    Attributes:
        folder: where paths start that are not found from the working directory; that of demo.yaml.
    """

    folder: Path = Path()

    def find(self, location: str) -> Path:
        """Return the path that ``location`` names from the working directory, or else from the file's folder."""
        path = Path(location).expanduser()
        beside = self.folder / path
        return beside if beside.exists() and not path.exists() else path


def read_demo_config(path: Path) -> DemoConfig:
    """Read the file that says what the demo shows.

    Raises:
        InputError: for a file that cannot be read, and unknown, missing or wrong keys.
    """
    return _checked(parse_args(ShownArgs, ["--config", str(path)]).shown, path)


def parse_demo(arguments: Sequence[str], default: Path, description: str) -> tuple[DemoConfig, ServerConfig]:
    """Parse a command line.

    Args:
        arguments: without the program's name.
        default: the demo.yaml that is read where ``--config`` names none.
        description: text above ``--help``.

    Raises:
        InputError: as :func:`read_demo_config` does.
    """
    given = list(arguments) if config_files(arguments) else ["--config", str(default), *arguments]
    args = parse_args(DemoArgs, given, description=description)
    return _checked(args.shown, config_files(given)[-1]), args.server


def _checked(shown: ShownConfig, path: Path) -> DemoConfig:
    """Give every entry its type, and refuse what the parser does not know to be wrong."""
    for name in ("title", "sentence"):
        if not getattr(shown, name):
            raise InputError(f"{path.name}: key {name!r} is missing; it is a text.")
    config = DemoConfig(
        title=shown.title,
        sentence=shown.sentence,
        classifiers=_entries("classifiers", shown.classifiers, ClassifierPair, path),
        segmenters=_entries("segmenters", shown.segmenters, SegmenterChoice, path),
        changes=_entries("changes", shown.changes, Changes, path),
        folder=path.resolve().parent,
    )
    for entry in config.segmenters:
        if entry.shorter_side < 1:
            raise InputError(
                f"{path.name}, segmenters, {entry.name!r}: shorter_side is {entry.shorter_side}; give a whole number "
                "from 1."
            )
    return config


def _entries(group: str, found: Sequence[Any] | None, kind: Any, path: Path) -> list[Any]:
    """Return the entries of a list of demo.yaml, whose names must differ."""
    entries = [_built(kind, entry) for entry in found or ()]
    names = [entry.name for entry in entries]
    if repeated := sorted({one for one in names if names.count(one) > 1}):
        raise InputError(f"{path.name}, {group}: {repeated[0]!r} stands there twice; give each a name of its own.")
    return entries


def _built(kind: Any, content: Any) -> Any:
    """Return a dataclass from what the parser has made of its mapping, attributes of the same names."""
    return kind(**{item.name: getattr(content, item.name) for item in fields(kind)})
