"""Files and functions stay short enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
ROOMS = {path.name: path for path in (ROOT / "tpssl_hf").iterdir() if path.is_dir()}
LONGEST_RECIPE = 80


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


def test_recipes_only_hand_on_to_commands() -> None:
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "recipes").glob("*.py")
    }
    assert lengths and not {name: lines for name, lines in lengths.items() if lines > LONGEST_RECIPE}


def test_no_settings_travel_in_a_bag() -> None:
    files = [*(ROOT / "tpssl_hf").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert not [path for path in files if "settings[" in path.read_text(encoding="utf-8")]
