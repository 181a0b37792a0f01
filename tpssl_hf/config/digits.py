"""The run that commands without a data set go on from: target pretraining on the embedded digits."""

from pathlib import Path
from typing import Any

from tpssl_hf.config.parser import read_config_file

DIGITS_RUN = Path("outputs/digits")  # where `tpssl-hf pretrain` without keys leaves it
DIGITS_SIZE = 64  # pixels at which weights of photographs are shown the digits
RUN_CONFIG = "config.yaml"


def digits_run(folder: Path = DIGITS_RUN) -> dict[str, Any]:
    """Return the keys of that run; empty if it has not been made, or not to its end."""
    config = folder / RUN_CONFIG
    return read_config_file(config) if config.is_file() and (folder / "model").is_dir() else {}
