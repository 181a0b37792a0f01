"""Publish the demo as a Space: its files, this package's sources beside them, and a demo.yaml of published models."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, SpaceCard

import tpssl_hf
from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import Delivery, check_target, deliver, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import CARD, PRIVATE_KEYS, Package
from tpssl_hf.hub.publish import push_command
from tpssl_hf.hub.redaction import publishable, without_paths, without_secrets

APP, READER, DEMO_YAML, EXAMPLES = "app.py", "demo_config.py", "demo.yaml", "examples"
SOURCES, DATA = "tpssl_hf", "data"
OWN_FOLDERS = (f"{SOURCES}/", f"{DATA}/", f"{EXAMPLES}/")  # what a former push left there goes
LEFT_OUT = (SOURCES, DATA, "outputs", DEMO_YAML)  # of the folder, at its top
MODELS = {"classifiers": ("base", "adapted"), "segmenters": ("model",)}  # keys of demo.yaml that name models,
PLACES = {"classifiers": ("neighbors",), "changes": ("tsne", "drift", "verdict")}  # and files
VERDICT_FILES = ("results.json", "verdict.md", "verdict.png")
PUBLISHED_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def publish_space(
    folder: Path,
    demo_config: Path,
    repo: str,
    choices: PublishConfig | None = None,
    *,
    api: HfApi | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Publish a folder like spaces/demo as a Space, in one commit, with everything it needs to run.

    Args:
        folder: with app.py, demo_config.py, README.md, requirements.txt and what they need.
        demo_config: the demo.yaml to publish; its models are Hub ids, and the files it names go along.
        repo: Hub id ``owner/name``; made if it is missing.
        choices: how to publish.
        api: client of the Hub; the usual one, with the token of ``hf auth login`` or HF_TOKEN, when not given.
        say: where progress goes.

    Returns:
        Address of the commit or pull request, or the folder of a dry run.

    Raises:
        PushError: if the Hub did not take it, with the reason and the command to push again.
        InputError: for a folder that is no such Space, a demo.yaml that its own reader refuses, models that are not
            on the Hub, files that are missing, and an access token in any file; then nothing was sent.
    """
    choices = choices or PublishConfig()
    known = known_secrets(api)
    with discreet(known):
        check_target(repo, choices)
        files = _prepared(folder, demo_config, known)
    again = push_command(["--space", str(folder), "--demo_config", str(demo_config)], repo, choices)
    delivery = Delivery(
        repo,
        files,
        replaced=lambda name: name.startswith(OWN_FOLDERS),
        message="Publish a demo of tpssl_hf",
        again=f"Nothing has changed here; push it again with\n  {again}",
        kind="space",
        sdk="gradio",
    )
    if any(name.endswith(".npz") for name in files):
        say("note: the `neighbors` are small copies of training images, for all to see; leave private ones out")
    return deliver(delivery, choices, api=api, say=say)


def refuse_secrets(files: Package, known: list[str]) -> None:
    """Refuse texts with a token in them: taken out of a program, it might not run any more.

    Raises:
        InputError: naming the file.
    """
    for name, content in files.items():
        try:
            text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
        except UnicodeDecodeError:  # images and arrays
            continue
        if without_secrets(text, known) != text:
            raise InputError(
                f"{name} holds an access token, or an address with a password in it; take it out. A Space's own "
                "tokens belong into the secrets of its settings."
            )


def space_card(path: Path) -> SpaceCard:
    """Read the README.md of a Space, with its front matter.

    Raises:
        InputError: if it is missing, or its front matter names no ``sdk``.
    """
    try:
        card = SpaceCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); a Space needs one.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} has no front matter that is YAML: {' '.join(str(error).split())}") from error
    if not card.data.get("sdk"):
        raise InputError(f"{path} names no `sdk` in its front matter, without which a Space does not run; add it.")
    return card


def _prepared(folder: Path, demo_config: Path, known: list[str]) -> Package:
    """Check everything that can be checked without the Hub, and collect the files."""
    for name in (APP, READER, "requirements.txt"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no {name}, so it is no demo; give spaces/demo, or a copy of it.")
    card = space_card(folder / CARD)
    if card.data.get("sdk") != "gradio":
        raise InputError(f"{folder / CARD} names the sdk {card.data.get('sdk')!r}; the demo runs on gradio.")
    _check_config(folder / READER, demo_config)
    content: dict[str, Any] = yaml.safe_load(demo_config.read_text(encoding="utf-8"))
    models = sorted({model.partition("@")[0] for model in _models(content, demo_config)})
    files: Package = dict(_files_of(folder, LEFT_OUT))
    sources = _files_of(Path(tpssl_hf.__file__).parent)
    files |= {f"{SOURCES}/{name}": path for name, path in sources if path.suffix in (".py", ".md")}
    carried = _carried(content, demo_config, folder, known)
    card.data["models"] = models or None  # an empty list is left out
    files[CARD] = str(card).encode()
    refuse_secrets(files, known)
    shown = yaml.safe_dump(publishable(content, known), sort_keys=False, allow_unicode=True)
    return files | carried | {DEMO_YAML: shown.encode()}


def _check_config(reader: Path, demo_config: Path) -> None:
    """Read demo.yaml by the demo's own reader: as strict as it will be there."""
    spec = importlib.util.spec_from_file_location(reader.stem, reader)
    assert spec is not None and spec.loader is not None
    module, known = importlib.util.module_from_spec(spec), sys.modules.get(reader.stem)
    sys.modules[reader.stem] = module  # the parser looks for its classes there
    try:
        spec.loader.exec_module(module)
        module.read_demo_config(demo_config)
    finally:
        del sys.modules[reader.stem]
        if known is not None:
            sys.modules[reader.stem] = known


def _files_of(folder: Path, left_out: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Give the files below ``folder``, without hidden and compiled ones and what is ``left_out`` at its top."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and parts[0] not in left_out:
            yield "/".join(parts), path


def _models(content: dict[str, Any], demo_config: Path) -> Iterator[str]:
    """Give the models that demo.yaml names, all of which must be on the Hub."""
    for group, keys in MODELS.items():
        for entry in content.get(group, []):
            for key in keys:
                location = entry[key]
                local = any((start / location).expanduser().exists() for start in (Path(), demo_config.parent))
                if local or not PUBLISHED_MODEL.fullmatch(location):
                    raise InputError(
                        f"{demo_config.name}, {group}, {entry['name']!r}: {key} {location} is a path, which a Space "
                        "does not have; publish the model first, `tpssl-hf publish RUN --repo owner/name`, and "
                        "give `owner/name`."
                    )
                yield location


def _carried(content: dict[str, Any], demo_config: Path, folder: Path, known: list[str]) -> Package:
    """Collect the files that ``content`` names, and put their locations in the Space into it."""
    files: Package = {}
    for group, keys in PLACES.items():
        for number, entry in enumerate(content.get(group, []), 1):
            for key in keys:
                if entry.get(key) is None:
                    continue
                what = f"{demo_config.name}, {group}, {entry['name']!r}: {key}"
                path, location = _found(entry[key], what, demo_config.parent), f"{DATA}/{group}_{number}/{key}"
                if key == "verdict":
                    files |= {f"{location}/{name}": text for name, text in _verdict(path, what, known).items()}
                else:
                    location += path.suffix
                    files[location] = _file(path, what)
                entry[key] = location
    for group in MODELS:
        for number, entry in enumerate(content.get(group, []), 1):
            locations = entry.get("examples") or []
            for place, name in enumerate(locations):
                what = f"{demo_config.name}, {group}, {entry['name']!r}: examples"
                path = _file(_found(name, what, demo_config.parent, folder), what)
                own = (folder / EXAMPLES).resolve()
                if path.resolve().is_relative_to(own):  # they go along anyway
                    locations[place] = f"{EXAMPLES}/{path.resolve().relative_to(own).as_posix()}"
                else:
                    locations[place] = f"{DATA}/{group}_{number}/example_{place + 1}{path.suffix}"
                    files[locations[place]] = path
    return files


def _found(location: str, what: str, *starts: Path) -> Path:
    """Return what ``location`` names from the working directory or else from ``starts``, the first that has it."""
    for start in (Path(), *starts):
        if (path := start / Path(location).expanduser()).exists():
            return path
    raise InputError(f"{what} {location} is not there; make it first, or leave it out.")


def _file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise InputError(f"{what} {path} is no file; give one.")
    return path


def _verdict(folder: Path, what: str, known: list[str]) -> Package:
    """Return what a Space shows of a verdict, without tokens and paths."""
    missing = [name for name in VERDICT_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{what} {folder} holds no {missing[0]}; give the folder of `tpssl-hf verdict`.")
    numbers, report, image = (folder / name for name in VERDICT_FILES)
    try:
        results = publishable(json.loads(numbers.read_text(encoding="utf-8")), known)
    except ValueError as error:
        raise InputError(f"{what} {numbers} is damaged; make the verdict again.") from error
    if isinstance(results, dict) and isinstance(results.get("config"), dict):
        results["config"] = {name: value for name, value in results["config"].items() if name not in PRIVATE_KEYS}
    text = without_paths(without_secrets(report.read_text(encoding="utf-8"), known))
    contents: tuple[bytes | Path, ...] = (json.dumps(results, indent=2).encode() + b"\n", text.encode(), image)
    return dict(zip(VERDICT_FILES, contents, strict=True))
