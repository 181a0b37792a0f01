"""A cell of the evidence: a pair of weights and data by name, and its JSON file."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).parent / "evidence"
BATCH_SIZE, BATCH_SIZES = 128, {"distill": 64}  # of adaptation: of most methods, of some


@dataclass(frozen=True)
class Pair:
    """A pair of weights and data.

    Attributes:
        weights: name of the weights.
        architecture: a timm model.
        init: what is loaded.
        data: name of the data.
        dataset: where they are.
    """

    weights: str
    architecture: str
    init: str
    data: str
    dataset: str


def read_pair(weights: str, data: str) -> Pair:
    """Read ``NAME=ARCHITECTURE:INIT`` and ``NAME=DATASET`` of a command line."""
    (name, _, what), (data_name, _, dataset) = weights.partition("="), data.partition("=")
    architecture, _, init = what.partition(":")
    return Pair(name, architecture, init, data_name, dataset)


def read_cell(file: Path) -> dict[str, Any]:
    """Return what there is of a cell already."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def write_cell(file: Path, cell: dict[str, Any]) -> None:
    """Write a cell, with the day."""
    file.parent.mkdir(exist_ok=True)
    cell["written"] = time.strftime("%Y-%m-%d")
    file.write_text(json.dumps(cell, indent=1) + "\n")
