"""The cards in model_cards/ say what their records say, and the index names each of them."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from jinja2 import Environment, meta
from scripts import load_script

from tpssl_hf.hub.snippets import TEMPLATES

CARDS = Path(__file__).parents[2] / "model_cards"
RECORDS = sorted(CARDS.glob("*.json"))


@pytest.fixture(scope="module")
def script() -> Any:
    """model_cards/record.py as a module."""
    return load_script("model_cards/record.py")


def test_there_are_cards() -> None:
    assert RECORDS


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_card_is_what_its_record_renders_to(record: Path, script: Any) -> None:
    text = record.with_suffix(".md").read_text(encoding="utf-8")
    assert text == script.card_of(json.loads(record.read_text(encoding="utf-8"))), "render it: record.py --again"
    assert f"({record.stem}.md)" in (CARDS / "README.md").read_text(encoding="utf-8"), "the index does not name it"


def test_a_run_is_recorded_and_rendered(
    script: Any, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr("sys.argv", ["record.py", str(runs["adapted"]), "--repo", "me/mine", "--license", "mit"])
    assert script.main() == 0
    card = (tmp_path / "mine.md").read_text()
    assert "license: mit" in card and 'hf-hub:me/mine"' in card and str(runs["adapted"]) not in card
    (tmp_path / "mine.md").unlink()
    monkeypatch.setattr("sys.argv", ["record.py", "--again"])
    assert script.main() == 0 and (tmp_path / "mine.md").read_text() == card


def test_a_card_asks_nobody_and_gives_its_template_every_name(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a card is rendered without network")

    given: set[str] = set()
    from_template = ModelCard.from_template

    def noted(*arguments: Any, **values: Any) -> ModelCard:
        given.update(values)
        return from_template(*arguments, **values)

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(ModelCard, "validate", refuse)
    monkeypatch.setattr(ModelCard, "from_template", noted)
    assert script.card_of(json.loads(RECORDS[0].read_text(encoding="utf-8")))
    needed = meta.find_undeclared_variables(Environment().parse(TEMPLATES.joinpath("card.md").read_text("utf-8")))
    assert needed - given == {"card_data"}  # jinja would write nothing for a name that is missing
