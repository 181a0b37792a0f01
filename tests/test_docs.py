"""What README and docs tell people to type exists."""

import ast
import re
import shlex
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from tpssl_hf.active_learning.config import PickLabelsArgs
from tpssl_hf.analysis.config import AnalyzeArgs
from tpssl_hf.cli import COMMANDS
from tpssl_hf.convert.config import ConvertArgs
from tpssl_hf.hub.config import PublishArgs
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.paper.config import ReproduceArgs
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.predict.config import EmbedArgs, PredictArgs
from tpssl_hf.tasks.pretrain.config import PretrainArgs
from tpssl_hf.tasks.review.config import ReviewArgs
from tpssl_hf.tasks.segment.config import SegmentArgs
from tpssl_hf.training.watch import WatchArgs
from tpssl_hf.verdicts.config import VerdictArgs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPECS = {"pretrain": PRETRAIN, "classify": CLASSIFY, "segment": SEGMENT}
ARGS = {
    "pretrain": PretrainArgs,
    "classify": ClassifyArgs,
    "segment": SegmentArgs,
    "watch": WatchArgs,
    "predict": PredictArgs,
    "review": ReviewArgs,
    "embed": EmbedArgs,
    "verdict": VerdictArgs,
    "pick-labels": PickLabelsArgs,
    "analyze": AnalyzeArgs,
    "reproduce": ReproduceArgs,
    "convert": ConvertArgs,
    "publish": PublishArgs,
}
FUNCTIONS = {"finetune_classifier": "classify", "finetune_segmenter": "segment", "pick_labels": "pick-labels"}


def keys(command: str) -> set[str]:
    groups = [hint for hint in get_type_hints(ARGS[command]).values() if is_dataclass(hint)]
    groups += [spec.config for spec in SPECS.get(command, {}).values()]
    return {"config", "num_processes", *(item.name for group in groups for item in fields(group))}


def blocks(page: Path, language: str) -> list[str]:
    return [found[3] for found in BLOCK.finditer(page.read_text(encoding="utf-8")) if found[2] == language]


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("tpssl-hf ")]


def calls(page: Path) -> list[tuple[str, set[str]]]:
    trees = [ast.parse(textwrap.dedent(block)) for block in blocks(page, "python")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        (node.func.attr, {keyword.arg or "" for keyword in node.keywords})
        for node in nodes
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "tpssl_hf"
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    unknown = []
    for _, command, *words in commands(page):
        assert command in COMMANDS
        named = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        unknown += [(command, name) for name in named - keys(command)] if command in ARGS else []
    for function, named in calls(page):
        command = FUNCTIONS.get(function, function)
        unknown += [(function, name) for name in named - keys(command)]
    assert not unknown


def test_there_is_something_to_check() -> None:
    assert {words[1] for page in PAGES for words in commands(page)} >= set(ARGS)
    assert {function for page in PAGES for function, _ in calls(page)} >= {"pretrain", "predict", "embed", "verdict"}


def test_every_page_is_in_the_navigation() -> None:
    content = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w/]+\.md", str(content["nav"])))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", ["architecture.md", "paper_map.md", "add_a_method.md", "add_a_learner.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = [
        path
        for quoted in re.findall(r"`([^`\n]+)`", text)
        for path in re.findall(r"[\w./*{},-]+\.(?:py|md)\b", quoted)
    ]
    assert named
    assert not [path for path in named if "/" in path and "<" not in path and not found(path)]


def found(path: str) -> bool:
    choice = re.search(r"\{([^}]*)\}", path)
    if choice:
        return all(found(path.replace(choice[0], part)) for part in choice[1].split(","))
    return any(list(ROOT.glob(f"{folder}{path}")) for folder in ("", "tpssl_hf/", "recipes/", "docs/"))
