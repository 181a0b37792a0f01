"""The notebooks are committed with the outputs of all their steps, and each is run by a test."""

import json
from pathlib import Path

import pytest
from notebook_runs import NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_run_by_a_test(notebook: Path) -> None:
    test = Path(__file__).with_name(f"test_notebook_{notebook.stem}.py")
    assert f'run_notebook("{notebook.stem}"' in test.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    run = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert run == list(range(1, len(run) + 1))
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    assert "/home/" not in json.dumps(outputs) and "/tmp/" not in json.dumps(outputs)
