"""Flat keys from the command line, YAML or keywords to typed arguments: defaults < YAML file < given keys.

The arguments of a task are one frozen dataclass whose fields are frozen dataclasses of keys: ``args.data.image_size``.
Keys are flat only at the edge: on the command line, in YAML, in ``config.yaml`` and as keywords of the public
functions. Where a task has methods, its arguments have a field ``method`` that holds the method's own keys.
"""

import difflib
import itertools
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
)

from tpssl_hf.config.allowed import FROM_0, Numbers, in_a_sentence, refuse_numbers
from tpssl_hf.config.lists import WRITTEN, normalize_lists
from tpssl_hf.errors import InputError
from tpssl_hf.process import values_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ArgsType = TypeVar("ArgsType")
METHOD = "method"
ACCESS_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{30,}")  # as the Hub makes them


def key(
    default: Any, help_text: str, *, several: bool = False, carry_out: bool = False, within: Numbers = FROM_0
) -> Any:
    """Declare one key.

    Args:
        default: its value where none is given.
        help_text: the sentence ``--help`` shows for it.
        several: whether it may be a list.
        carry_out: whether it changes only how a run is carried out and not what comes out of it, so that a resumed
            run may have another value.
        within: numbers it may have.
    """
    metadata = {"help": help_text, "several": several, "carry_out": carry_out, "within": within}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Methods:
    """The methods of a task, as the parser needs them.

    Attributes:
        specs: name -> (dataclass of the method's own keys, its values for shared keys).
        default: the method where none is named.
    """

    specs: Mapping[str, tuple[type, Mapping[str, Any]]]
    default: str

    def get(self, name: str) -> tuple[type, Mapping[str, Any]]:
        """Return dataclass and defaults of a method.

        Raises:
            InputError: for an unknown method.
        """
        if name not in self.specs:
            raise InputError(f"method {name!r} is not one of {', '.join(sorted(self.specs))}.")
        return self.specs[name]


def parse_args(
    args_type: type[ArgsType],
    arguments: Sequence[str] | Mapping[str, Any],
    *,
    description: str = "",
    methods: Methods | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> ArgsType:
    """Parse every key of ``args_type``: defaults < ``--config`` file < what is given.

    Args:
        args_type: dataclass of dataclasses of keys.
        arguments: a command line without the program's name, or keywords, of which ``config`` names a YAML file.
        description: text above ``--help``.
        methods: of the task, if it has any.
        defaults: values that replace the defaults of dataclasses and method.

    Raises:
        InputError: for an unknown key (naming the nearest known one), a wrong type, a number that the key does not
            allow, a file that cannot be read, or an access token.
    """
    given = as_command_line(arguments)
    _refuse_tokens(given)
    groups, replaced, method_type = list(_groups(args_type).values()), dict(defaults or {}), None
    if methods is not None:
        name = method_named(given, methods.default)
        method_type, of_method = methods.get(name)
        groups.append(method_type)
        replaced = {METHOD: name, **of_method, **replaced}
    values = _parse(groups, given, description, replaced)
    return from_flat(args_type, values, method_type)


def from_flat(args_type: type[ArgsType], values: Mapping[str, Any], method_type: type | None = None) -> ArgsType:
    """Build arguments from flat keys; ``method_type`` is the dataclass of the method's own."""
    groups = dict(_groups(args_type))
    if method_type is not None:
        groups[METHOD] = method_type
    built = {name: group(**{item.name: values[item.name] for item in fields(group)}) for name, group in groups.items()}
    return args_type(**built)


def flat(args: "DataclassInstance") -> dict[str, Any]:
    """Return the keys of ``args`` with their values, as ``config.yaml`` and ``results.json`` hold them."""
    parts = [getattr(args, item.name) for item in fields(args)]
    return {name: value for part in parts for name, value in asdict(part).items()}


def carry_out_keys(args_type: type) -> frozenset[str]:
    """Return the keys that change how a run is carried out and not what comes out of it."""
    return frozenset(
        item.name for group in _groups(args_type).values() for item in fields(group) if item.metadata.get("carry_out")
    )


def _groups(args_type: type) -> dict[str, Any]:
    """Field name -> dataclass of its keys, in order; without that of a method, which is found by name."""
    assert is_dataclass(args_type)
    hints = get_type_hints(args_type)
    return {item.name: hints[item.name] for item in fields(args_type) if is_dataclass(hints[item.name])}


def as_command_line(arguments: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Write keywords as the command line that means the same; None stands for the default."""
    if not isinstance(arguments, Mapping):
        return list(arguments)
    config = arguments.get("config")
    first = [] if config is None else ["--config", str(config)]
    given = {name: value for name, value in arguments.items() if name != "config" and value is not None}
    return first + [f"--{name}={_as_text(value)}" for name, value in given.items()]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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


def _parse(
    groups: Sequence[Any], arguments: Sequence[str], description: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return key -> value, in the order of the dataclasses."""
    parser = build_parser(groups, description, defaults)
    known = [item.name for group in groups for item in fields(group)]
    _refuse_unknown(given_keys(arguments), known)
    try:
        namespace = parser.parse_args(list(arguments))
    except Exception as error:  # jsonargparse raises several kinds; every one is about what the user gave
        raise InputError(in_a_sentence(groups, str(error)) or _first_sentence(str(error))) from error
    values = normalize_lists(groups, {name: getattr(namespace, name) for name in known})
    refuse_numbers(groups, values)
    return values


def words_as_keys(arguments: Sequence[str], keys: Sequence[str], wanted: str) -> list[str]:
    """Return a command line with its first words, at most one for each of ``keys``, as those keys.

    Args:
        arguments: as the user gave them.
        keys: what the words are, in order.
        wanted: the same for people.

    Raises:
        InputError: for more words than keys.
    """
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    if len(words) > len(keys):
        raise InputError(f"{words[len(keys)]!r} is one word too many; give {wanted}, and --KEY VALUE.")
    return [*(f"--{key}={word}" for key, word in zip(keys, words, strict=False)), *arguments[len(words) :]]


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line only asks for its keys, whose defaults are then those of a machine without any run."""
    return bool({"--help", "-h"} & set(arguments))


def given_keys(arguments: Sequence[str]) -> list[str]:
    """Return the keys that a command line gives, itself or in its ``--config`` files."""
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
        raise InputError(f"--config {path} must hold `key: value` lines, one per key.")
    return content


def _refuse_tokens(arguments: Sequence[str]) -> None:
    """Refuse an access token: keys are written down, told to trackers and published."""
    files = [path for path in config_files(arguments) if path.is_file()]
    texts = [*arguments, *(path.read_text(encoding="utf-8", errors="replace") for path in files)]
    if any(ACCESS_TOKEN.search(text) for text in texts):
        raise InputError(
            "one of the keys holds what looks like an access token, and a run writes its keys down; take it out, and "
            "log in with `hf auth login`, or set HF_TOKEN."
        )


def _refuse_unknown(given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"the nearest known one is {near[0]!r}" if near else "--help lists the known ones"
            raise InputError(f"unknown key {name!r}; {hint}.")


def _first_sentence(text: str) -> str:
    plain = re.sub(r"Problem with given class_path '[^']*': ", "", " ".join(text.split()))
    plain = re.sub(r"<class '([^']*)'>", r"\1", plain)
    return plain.removeprefix("error: ") + " (--help lists every key)"


def method_named(arguments: Sequence[str], default: str) -> str:
    """Return the method that a command line asks for, itself or in its ``--config`` files, else ``default``."""
    name = default
    for path in config_files(arguments):
        name = str(read_config_file(path).get(METHOD, name))
    return ([name] + values_of(f"--{METHOD}", arguments))[-1]
