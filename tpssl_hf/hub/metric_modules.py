"""Publish a metric's module as a Space, from where ``evaluate.load`` takes it by its name."""

import ast
import html
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import Delivery, check_target, deliver, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import CARD, Package
from tpssl_hf.hub.publish import push_command
from tpssl_hf.hub.spaces import refuse_secrets, space_card

PAGE = "index.html"


def publish_metric(
    folder: Path,
    repo: str,
    choices: PublishConfig | None = None,
    *,
    api: HfApi | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Publish a metric's module, what it imports from its folder, and its README.md, in one commit.

    In the README.md, ``owner/NAME`` becomes the repository's id.

    Args:
        folder: NAME, with NAME.py and README.md in it.
        repo: Hub id ``owner/NAME``; made if it is missing.
        choices: how to publish.
        api: client of the Hub; the usual one, with the token of ``hf auth login`` or HF_TOKEN, when not given.
        say: where progress goes.

    Returns:
        Address of the commit or pull request, or the folder of a dry run.

    Raises:
        PushError: if the Hub did not take it, with the reason and the command to push again.
        InputError: for a folder that is no such metric, another name of the repository, and what ``evaluate`` would
            not load; then nothing was sent.
    """
    choices = choices or PublishConfig()
    known = known_secrets(api)
    with discreet(known):
        check_target(repo, choices)
        files = _prepared(folder.resolve(), repo, known)
    again = push_command(["--metric", str(folder)], repo, choices)
    delivery = Delivery(
        repo,
        files,
        replaced=lambda name: False,
        message="Publish a metric of tpssl_hf",
        again=f"Nothing has changed here; push it again with\n  {again}",
        kind="space",
        sdk="static",  # a page that needs no machine
    )
    return deliver(delivery, choices, api=api, say=say)


def _prepared(folder: Path, repo: str, known: list[str]) -> Package:
    """Check everything that can be checked without the Hub, and collect the files."""
    name, module = folder.name, f"{folder.name}.py"
    if not (folder / module).is_file():
        raise InputError(f"{folder} holds no {module}, which `evaluate` would look for; give a metric's folder.")
    owner, _, given = repo.partition("/")
    if given != name:
        raise InputError(f"`evaluate` looks for {given}.py in {repo}; name the repository {owner}/{name}.")
    card = space_card(folder / CARD)
    if card.data.get("sdk") != "static":
        raise InputError(f"{folder / CARD} names the sdk {card.data.get('sdk')!r}; a metric's page is `sdk: static`.")
    files: Package = {module: folder / module}
    for helper in _helpers(folder / module):
        if not (folder / helper).is_file():
            raise InputError(f"{module} imports .{Path(helper).stem}, but {folder} holds no {helper}.")
        if _helpers(folder / helper):
            raise InputError(
                f"{helper} imports from its folder too, which `evaluate` does not follow; join the files."
            )
        files[helper] = folder / helper
    card.text = card.text.replace(f"owner/{name}", repo)
    text = html.escape(card.text.strip())
    page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n<pre>{text}</pre>\n'
    files |= {CARD: str(card).encode(), PAGE: page.encode()}
    refuse_secrets(files, known)
    return files


def _helpers(path: Path) -> list[str]:
    """Return the files that a module imports from its folder, as ``evaluate`` finds them: at the top, one level deep.

    Raises:
        InputError: for imports that ``evaluate`` misreads or overlooks, and for a file that is no Python.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a SyntaxError is none
        raise InputError(f"{path} is no text; give a Python module.") from error
    except SyntaxError as error:
        raise InputError(f"{path} is no valid Python, see its line {error.lineno}; mend it.") from error
    helpers = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            plain = node.level == 1 and node.module is not None and "." not in node.module and node.col_offset == 0
            helpers.append(f"{node.module}.py")
        else:
            plain = not isinstance(node, ast.Import) or len(node.names) == 1
        if not plain:
            raise InputError(
                f"{path.name} has {ast.unparse(node)!r}, which `evaluate` misreads; write one import on each line, "
                "and those from the folder at the top as `from .helper import name`."
            )
    return helpers
