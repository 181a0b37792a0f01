"""A disk that refuses a call ends a run with a sentence, and the next start makes what an undisturbed one makes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_runs import Fault, Runs
from small_runs import Outcome, assert_same

from tpssl_hf.training.checkpoint import load_latest

SHORT = {"max_steps": 6, "save_every": 2}
Smallest = Callable[..., list[str]]


@pytest.fixture(scope="module")
def whole(runs: Runs, smallest: Smallest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[str]]:
    """What a run makes, and what each of its writing calls is about."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    log = folder.with_suffix(".log")
    assert runs.run(smallest(folder, **SHORT), log, Fault("disk", 0, "EIO", str(folder))) == 0, log.read_text()
    return Outcome(folder, 6), log.with_suffix(".calls").read_text().replace(str(folder), "").splitlines()


def moment(calls: list[str], pattern: str) -> int:
    """Return the number of the last call that is about this."""
    return max(number for number, call in enumerate(calls, 1) if re.search(pattern, call))


@pytest.mark.parametrize(
    ("error", "about"),
    [
        ("EIO", "^write .*metrics.jsonl"),
        ("EIO", "^fsync .*MANIFEST"),
        ("EROFS", "^open .*optimizer.safetensors"),
        ("EROFS", "^write .*results.json"),
        ("EACCES", "^replace .*step_2"),
        ("EACCES", "^open .*model-.*config.json"),
    ],
)
def test_a_refusal_is_a_sentence_and_nothing_is_lost(
    error: str, about: str, runs: Runs, smallest: Smallest, whole: tuple[Outcome, list[str]], tmp_path: Path
) -> None:
    outcome, calls = whole
    folder, log = tmp_path / "run", tmp_path / "log"
    fault = Fault("disk", moment(calls, about), error, str(folder))
    assert runs.run(smallest(folder, **SHORT), log, fault) == 2
    said = log.read_text()
    assert "Traceback" not in said and re.search(r"\nerror: .*(Input/output error|Read-only|denied).*\n", said), said
    found = load_latest(folder / "checkpoints")
    assert found is not None and found.step in (2, 4, 6)
    assert runs.run(smallest(folder, **SHORT), log) == 0, log.read_text()
    assert_same(Outcome(folder, 6), outcome)
