"""Start the command of a stage and wait for it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tpssl_hf.paper.cells import Stage
from tpssl_hf.training.run_dir import StopSignals

RECIPES = Path(__file__).parents[2] / "recipes"
COMMANDS = {"target_pretrain": "pretrain", "ssl_classify": "classify", "ssl_segment": "segment", "analyze": "analyze"}
LISTENING = 0.2  # seconds between looks at whether somebody wants this to stop


def presets() -> Path:
    """Return the folder of presets and tables: that of the wheel, or ``recipes/configs`` of a checkout."""
    shipped = Path(__file__).with_name("presets")
    return shipped if shipped.is_dir() else RECIPES / "configs"


def command_of(stage: Stage, folder: Path) -> list[str]:
    """Return the command line of one stage: the recipe of a checkout, or ``tpssl-hf`` where there are no recipes."""
    script = RECIPES / f"{stage.recipe}.py"
    start = [os.path.relpath(script)] if script.is_file() else ["-m", "tpssl_hf.cli", COMMANDS[stage.recipe]]
    where = str(presets())
    arguments = [argument.replace(where, os.path.relpath(where)) for argument in stage.arguments(folder / "runs")]
    return [sys.executable, *start, *arguments]


def log_of(stage: Stage, folder: Path) -> Path:
    """Return where a stage's output goes."""
    return folder / "logs" / f"{stage.name}.log"


def run_stage(stage: Stage, folder: Path, signals: StopSignals) -> int:
    """Run one command, pass on a wish to stop, and return its exit code."""
    log_of(stage, folder).parent.mkdir(parents=True, exist_ok=True)
    with log_of(stage, folder).open("ab") as log:
        process = subprocess.Popen(command_of(stage, folder), stdout=log, stderr=subprocess.STDOUT)
        told = False
        while process.poll() is None:
            if signals.requested and not told:
                process.send_signal(signals.requested)
                told = True
            time.sleep(LISTENING)
    return process.returncode


def last_words(stage: Stage, folder: Path) -> str:
    """Return the sentence a stage ended with, or else the last line of its log."""
    text = log_of(stage, folder).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]
