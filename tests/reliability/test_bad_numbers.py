"""NaN and infinities at many places of a training leave it as it was, or end it with checkpoints to go on from."""

import json
import math
from pathlib import Path

import pytest
import torch
from bad_numbers import LASTING, PASSING, Case, Training, all_cases, ended_by, skipped, trouble_of
from forked_runs import Forks, worlds

from tpssl_hf.training.checkpoint import load_latest
from tpssl_hf.training.run_dir import RunDir


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


def test_the_cases_of_the_torture_are_every_place_at_every_step() -> None:
    cases = all_cases()
    assert len(set(cases)) == len(cases) > 800
    assert {case.place for case in cases} == {*PASSING, *LASTING}
    assert {case.method for case in cases if case.place == "teacher"} == {"byol", "moco", "fixmatch", "cutmix"}


@pytest.mark.parametrize("bad", ["statistics", "teacher"])
def test_a_segmentation_keeps_its_state_as_well(
    bad: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trouble_of(Case(bad, "cutmix", "adamw"), tmp_path, place, monkeypatch.setattr) is None


@pytest.mark.parametrize("bad", PASSING + LASTING)
def test_a_number_that_is_not_finite_is_kept_out_of_all_state(
    bad: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(
        bad, "moco" if bad == "queue" else "fixmatch", "adamw", math.inf, parts=2 if bad.endswith("half") else 1
    )
    assert trouble_of(case, tmp_path, place, monkeypatch.setattr) is None


@pytest.mark.parametrize("bad", ["weights", "teacher"])
def test_a_training_that_saves_late_says_what_is_spoilt(
    bad: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bad steps in a row, or the last one, end it before anything is saved."""
    case = Case(bad, "moco", step=0, save_every=100)
    assert trouble_of(case, tmp_path, place, monkeypatch.setattr) is None


def one_of_two(rank: int, folder: str, places: list[str]) -> None:
    """Train together with another process, in which numbers are bad, and write what became of this one."""
    for place in places:
        training = Training(Case(place, "moco", rank=1), Path(folder) / place)
        if rank == 1:
            ended = ended_by(training, None)
        else:
            with RunDir(training.folder, {}) as run:
                ended = ended_by(training, run)
        finite = all(bool(tensor.isfinite().all()) for tensor in training.states[-1].values())
        trace = skipped(training.states, 1) if place in PASSING else None
        (Path(folder) / f"{place}-{rank}.json").write_text(json.dumps([ended, trace, finite]))
    torch.distributed.destroy_process_group()


PASSING_OF_TWO = ["augmentation", "loss", "gradient", "statistics"]
LASTING_OF_TWO = ["kept statistics", "teacher", "queue", "optimizer state", "weights"]


def test_what_is_bad_in_one_process_stays_out_of_the_state_of_both(forks: Forks, tmp_path: Path) -> None:
    together(forks, tmp_path, PASSING_OF_TWO)
    for place in PASSING_OF_TWO:
        for rank in range(2):
            assert json.loads((tmp_path / f"{place}-{rank}.json").read_text()) == ["", None, True], (place, rank)


def test_what_stays_bad_in_the_other_process_ends_both_and_spoils_no_checkpoint(forks: Forks, tmp_path: Path) -> None:
    together(forks, tmp_path, LASTING_OF_TWO)
    for place in LASTING_OF_TWO:
        main, other = (json.loads((tmp_path / f"{place}-{rank}.json").read_text()) for rank in range(2))
        assert "the weights are still those from before" in main[0] and main[2], place
        assert "are not finite. The checkpoints hold only what was finite" in other[0] and not other[2], place
        found = load_latest(tmp_path / place / "checkpoints")
        assert found is not None and all(tensor.isfinite().all() for tensor in found.tensors["method"].values())


def together(forks: Forks, folder: Path, places: list[str]) -> None:
    """Let two processes train."""
    logs = [folder / f"{rank}.log" for rank in range(2)]
    pids = [
        forks.start({"file": __file__, "function": "one_of_two", "arguments": [rank, str(folder), places]}, log, world)
        for rank, (log, world) in enumerate(zip(logs, worlds(2), strict=True))
    ]
    assert [forks.wait(pid) for pid in pids] == [0, 0], "\n".join(log.read_text() for log in logs)
