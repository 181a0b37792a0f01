"""What trackers are given; in a file of its own, because it is tested where there is one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tpssl_hf.training.run_dir import read_metrics


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_gets_what_the_log_gets(
    adapt: Callable[..., int], images: Callable[..., Path], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert adapt(dataset=images(), log_with="tensorboard", log_every=1) == 0
    events = next((tmp_path / "run").rglob("events.out.tfevents.*"))
    reader = accumulator.EventAccumulator(str(events.parent)).Reload()
    log = read_metrics(tmp_path / "run" / "metrics.jsonl")
    shown = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert shown == [(line["step"], pytest.approx(line["loss"])) for line in log] and len(shown) == 3
