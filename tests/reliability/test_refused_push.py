"""A run of two processes whose push would fail is refused once, and neither process waits for the other."""

from collections.abc import Callable
from pathlib import Path

from forked_runs import Runs


def test_other_processes_learn_of_a_refusal_and_end(
    runs: Runs, smallest: Callable[..., list[str]], tmp_path: Path
) -> None:
    logs = [tmp_path / "logs" / name for name in ("0", "1")]
    arguments = smallest(tmp_path / "mine", push_to_hub=True, hub_model_id="me/x", hub_license="mit")
    codes = [runs.wait(pid) for pid in runs.start_group(arguments, logs)]
    assert codes == [2, 2], [log.read_text() for log in logs]
    assert logs[0].read_text().startswith("\nerror: this run could not be pushed when it is done: HF_HUB_OFFLINE or")
    assert logs[1].read_text() == "" and not (tmp_path / "mine").exists()
