"""Files and functions stay short enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
# Being rewritten: training/loop.py (302 lines, `train` 69) and tasks/pretrain/run.py (`pretrain` 61).
LEFT_OUT = {"training", "tasks"}
ROOMS = {path.name: path for path in (ROOT / "tpssl_hf").iterdir() if path.is_dir() and path.name not in LEFT_OUT}


def too_long(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lengths = {
        f"{path.name}, {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = [f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_FUNCTION]
    return long + ([f"{path.name}: {lines} lines"] if (lines := len(text.splitlines())) > LONGEST_FILE else [])


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_files_and_functions_of_a_room_are_short(room: str) -> None:
    assert not [long for path in ROOMS[room].rglob("*.py") for long in too_long(path)]


@pytest.mark.parametrize("folder", ["tpssl_hf", "recipes"])
def test_files_and_functions_at_the_top_are_short(folder: str) -> None:
    assert not [long for path in (ROOT / folder).glob("*.py") for long in too_long(path)]
