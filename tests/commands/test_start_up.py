"""What the package and the overview of commands import: modules are counted in a fresh process, not seconds."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "transformers", "datasets", "sklearn", "scipy", "matplotlib", "gradio"}
HEAVY |= {"accelerate", "pandas", "numpy"}


@pytest.mark.parametrize("statement", ["import tpssl_hf", "import tpssl_hf.cli; tpssl_hf.cli.run(['--help'])"])
def test_nothing_heavy_is_imported_before_a_command_runs(statement: str) -> None:
    code = f"import sys; {statement}; print(*sys.modules, file=sys.stderr)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert "tpssl_hf" in modules and not HEAVY & set(modules)
