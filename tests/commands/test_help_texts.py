"""The kept texts of ``--help`` are what the parsers say."""

from pathlib import Path

import pytest
from help_texts import WITHOUT, made

from tpssl_hf.cli import COMMANDS, HELP, run


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {WITHOUT}))
def test_a_kept_text_is_what_the_parser_says(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of_the_digits = tmp_path / "outputs" / "digits"
    (run_of_the_digits / "model").mkdir(parents=True)
    (run_of_the_digits / "config.yaml").write_text("init: some/weights\nimage_size: 48\n")
    monkeypatch.chdir(tmp_path)
    assert run([command, "--help"]) == 0
    kept = capsys.readouterr().out
    assert kept.startswith(f"usage: tpssl-hf {command} [")
    assert kept == made(command), "a key has changed: python tests/help_texts.py"


def test_there_is_no_text_of_a_command_that_is_gone() -> None:
    assert {file.stem for file in HELP.iterdir()} == set(COMMANDS) - {WITHOUT}
