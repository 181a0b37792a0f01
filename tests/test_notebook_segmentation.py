"""docs/notebooks/segmentation.ipynb runs; in a file of its own, so that another process may run the others."""

from pathlib import Path

from notebook_runs import run_notebook


def test_it_runs(tmp_path: Path) -> None:
    run_notebook("segmentation", tmp_path)
