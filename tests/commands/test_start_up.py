"""What the package and its commands import: modules are counted in a fresh process, not seconds."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "timm", "transformers", "datasets", "sklearn", "scipy", "matplotlib", "gradio"}
HEAVY |= {"accelerate", "pandas", "numpy"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules, file=sys.stderr)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split())


HELP = "import tpssl_hf.cli; tpssl_hf.cli.run({})"


@pytest.mark.parametrize("statement", ["import tpssl_hf", HELP.format(["--help"]), HELP.format(["pretrain", "-h"])])
def test_nothing_heavy_is_imported_before_a_command_runs(statement: str) -> None:
    modules = modules_after(statement)
    assert "tpssl_hf" in modules and not HEAVY & modules


def test_a_pretraining_begins_without_libraries_that_only_its_end_needs() -> None:
    modules = modules_after("import tpssl_hf.commands.pretrain")
    assert "torch" in modules and not {"transformers", "scipy", "sklearn", "gradio"} & modules
