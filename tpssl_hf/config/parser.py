"""Flat keys from the command line and YAML: defaults < YAML file < command line."""

import difflib
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)

from tpssl_hf.config.lists import WRITTEN, settle_lists
from tpssl_hf.errors import InputError
from tpssl_hf.process import values_of


def key(default: Any, help_text: str, *, several: bool = False) -> Any:
    """Declare one configuration key: its default, the sentence ``--help`` shows for it, whether it may be a list."""
    return field(default=default, metadata={"help": help_text, "several": several})


ConfigType = TypeVar("ConfigType")


class _PlainDescription(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help whose description keeps its lines, so that commands in it can be copied."""


def build_parser(groups: Sequence[type], description: str, defaults: Mapping[str, Any]) -> ArgumentParser:
    """Make a parser with one flat key per field of ``groups``, grouped in ``--help`` by dataclass.

    Raises:
        ValueError: if two dataclasses declare the same key.
    """
    parser = ArgumentParser(
        description=description,
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        formatter_class=_PlainDescription,
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of keys; the command line beats it.")
    seen: set[str] = set()
    for group_type in groups:
        title = (group_type.__doc__ or group_type.__name__).strip().splitlines()[0].rstrip(".")
        group = parser.add_argument_group(title)
        hints = get_type_hints(group_type)
        for item in fields(group_type):
            if item.name in seen:
                raise ValueError(f"two configuration classes declare the key {item.name!r}")
            seen.add(item.name)
            default = defaults.get(item.name, None if item.default is MISSING else item.default)
            switch: dict[str, Any] = {"nargs": "?", "const": True} if hints[item.name] in (bool, bool | None) else {}
            hint = WRITTEN if item.metadata.get("several") else hints[item.name]
            text = item.metadata.get("help", "")
            group.add_argument(f"--{item.name}", type=hint, default=default, help=text, **switch)
    return parser


def parse_config(
    groups: Sequence[type],
    arguments: Sequence[str],
    *,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Resolve all keys of ``groups`` from ``arguments``: defaults < ``--config`` file < command line.

    Args:
        groups: dataclasses whose fields are the keys.
        arguments: the command line without the program's name.
        description: text above ``--help``.
        defaults: values that replace the dataclasses' defaults (a method's preset, say).

    Returns:
        Key to value, in the order of the dataclasses.

    Raises:
        InputError: for an unknown key (naming the nearest known one), a wrong type, or a file that cannot be read.
    """
    parser = build_parser(groups, description, defaults or {})
    known = [item.name for group in groups for item in fields(group)]
    _refuse_unknown(_given_keys(arguments), known)
    try:
        namespace: Namespace = parser.parse_args(list(arguments))
    except Exception as error:  # jsonargparse raises several kinds; every one is about what the user gave
        raise InputError(_first_sentence(str(error))) from error
    return settle_lists(groups, {name: getattr(namespace, name) for name in known})


def _given_keys(arguments: Sequence[str]) -> list[str]:
    keys = [a[2:].partition("=")[0] for a in arguments if a.startswith("--") and len(a) > 2]
    for path in config_files(arguments):
        keys += list(read_config_file(path))
    return [name for name in keys if name not in ("config", "help", "print_config")]


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the files named by ``--config`` on a command line."""
    return [Path(value) for value in values_of("--config", arguments)]


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one flat YAML file of keys.

    Raises:
        InputError: if the file is missing, is not YAML or is not a flat mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--config {path} cannot be read ({error.strerror}); give the path of a YAML file."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path} must hold `key: value` lines, one per setting.")
    return content


def _refuse_unknown(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"the nearest known one is {near[0]!r}" if near else "--help lists the known ones"
            raise InputError(f"unknown setting {name!r}; {hint}.")


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).removeprefix("error: ") + " (--help lists every setting)"


def take(config_type: type[ConfigType], values: Mapping[str, Any]) -> ConfigType:
    """Build one dataclass from the resolved values it declares."""
    assert is_dataclass(config_type)
    return config_type(**{item.name: values[item.name] for item in fields(config_type)})


def as_plain(*configs: Any) -> dict[str, Any]:
    """Merge dataclasses into one flat dictionary, for ``config.yaml`` and ``results.json``."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged.update(asdict(config))
    return merged


def method_named(arguments: Sequence[str], default: str = "byol") -> str:
    """Return the method that a command line asks for, itself or in its ``--config`` files, else ``default``."""
    name = default
    for path in config_files(arguments):
        name = str(read_config_file(path).get("method", name))
    return ([name] + values_of("--method", arguments))[-1]


def parse_with_method(
    arguments: Sequence[str],
    groups: Sequence[type],
    methods: Mapping[str, tuple[type, Mapping[str, Any]]],
    *,
    description: str,
    default: str = "byol",
) -> tuple[dict[str, Any], Any]:
    """Resolve all keys of a recipe whose ``method`` brings keys and defaults of its own.

    Args:
        arguments: the command line without the program's name.
        groups: dataclasses shared by all methods; one of them declares ``method``.
        methods: method name -> (dataclass of its keys, its values for shared keys).
        description: text above ``--help``.
        default: method where none is named.

    Returns:
        Every key with its value, and the method's own dataclass.

    Raises:
        InputError: for an unknown method, and as :func:`parse_config` does.
    """
    name = method_named(arguments, default)
    if name not in methods:
        raise InputError(f"method {name!r} is not one of {', '.join(sorted(methods))}.")
    config_type, defaults = methods[name]
    values = parse_config([*groups, config_type], arguments, description=description, defaults=defaults)
    return values, take(config_type, values)
