"""Hostile names, and a table of predictions, shared by the tests of a review."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = ["cat", "dog", "</script><img src=x onerror=alert(1)>"]
HOSTILE = [
    "a, b.png",
    "<img src=x onerror=alert(1)>.png",
    'quo"te.png',
    "=1+1.png",
    "sub/Zürich 東京 &amp;.png",
    "plain.png",
]


def write_table(folder: Path, names: list[str]) -> None:
    count = len(names)
    columns: dict[str, Any] = {
        "row": list(range(count)),
        "file": names,
        "label": [CLASSES[number % 3] for number in range(count)],
        "confidence": pa.array([0.99 - 0.1 * number % 0.9 for number in range(count)], pa.float32()),
        "second_label": [CLASSES[(number + 1) % 3] for number in range(count)],
    }
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
