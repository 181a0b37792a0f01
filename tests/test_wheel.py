"""What `pip install tpssl-hf` gives: the command and everything it needs, outside of the repository."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# One process for all commands, because importing torch takes longer than what they do. The installed wheel comes first
# on the path, the working folder is an empty one, and the entry point is the wheel's own.
RUN = """
import json, sys
from importlib.metadata import distribution
import tpssl_hf
[entry] = distribution("tpssl-hf").entry_points
assert entry.name == "tpssl-hf"
run = entry.load()
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tpssl-hf", *arguments]
    try:
        run()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments} ended with {end.code}")
print("FROM", tpssl_hf.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, as an installer lays it out."""
    built = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_what_is_read_at_run_time_and_nothing_else(installed: Path) -> None:
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert "tpssl_hf/py.typed" in files
    assert {f"tpssl_hf/tasks/{name}.yaml" for name in ("pretrain/defaults/byol", "classify/defaults/digits")} <= files
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "tpssl_hf").rglob("*") if path.is_file()}
    presets = {name for name in files if name.startswith("tpssl_hf/paper/presets/")}
    configs = [path for path in (ROOT / "recipes" / "configs").rglob("*.yaml") if path.parent.name != "accelerate"]
    assert len(presets) >= len(configs) > 0
    assert {n for n in source if "__pycache__" not in n} == {n for n in files - presets if n.startswith("tpssl_hf/")}
    assert all(name.startswith(("tpssl_hf/", "tpssl_hf-")) for name in files)


def test_its_commands_run_outside_of_the_repository(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    short = ["--max_steps", "2", "--backbone", "test_resnet", "--image_size", "32", "--precision", "fp32"]
    short += ["--limit_images", "64", "--batch_size", "8", "--log_every", "1"]
    commands: list[list[str]] = [
        ["--version"],
        ["pretrain", *short, "--output_dir", "adapted"],
        ["classify", *short, "--labels", "20", "--init", "adapted/model", "--limit_test_images", "20"],
        ["predict", "--model", "outputs/digits_fixmatch", "--dataset", "photos", "--output_dir", "answers"],
    ]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(installed), "HF_HOME": str(tmp_path / "hf")}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", RUN, json.dumps(commands)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"FROM {installed}" in done.stdout
    assert (tmp_path / "adapted" / "model" / "config.json").is_file()
    lines = (tmp_path / "answers" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("row,file,label,confidence")
