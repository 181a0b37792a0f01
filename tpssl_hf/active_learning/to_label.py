"""The list of images to label, as to_label.csv and to_label.json: what people fill in and finetunings read."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpssl_hf.active_learning.config import PickLabelsConfig
from tpssl_hf.active_learning.strategies import NONE_KNOWN
from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.image_names import row_digests, rows_by_file
from tpssl_hf.data.labeled import Labeled
from tpssl_hf.data.sources import Source
from tpssl_hf.plots.contact_sheet import draw_contact_sheet

TO_LABEL = "to_label.csv"


def names_of(source: Source, store: ImageCache, indices: np.ndarray) -> list[str]:
    """Return files as paths below the data set's folder, or ``row N`` where the images are no files of their own."""
    files: dict[int, str] = {}
    if source.folder is not None:
        for name, row in rows_by_file(source).items():
            if (source.folder / name).is_file() and len(name) >= len(files.get(row, "")):  # not its last part alone
                files[row] = name
    return [files.get(row, f"row {row}") for row in store.rows[indices].tolist()]


def write_lists(
    folder: Path,
    config: PickLabelsConfig,
    source: Source,
    store: ImageCache,
    chosen: np.ndarray,
    labeled: Labeled | None,
) -> None:
    """Write to_label.csv and to_label.json: the chosen images without labels, then those labeled already."""
    before = labeled.indices if labeled else NONE_KNOWN.indices
    given = [labeled.class_names[number] for number in labeled.labels.tolist()] if labeled else []
    indices = np.concatenate([chosen, before])
    rows, names = store.rows[indices].tolist(), names_of(source, store, indices)
    labels = [None] * len(chosen) + given
    by_file = not any(name == f"row {row}" for name, row in zip(names, rows, strict=True))
    with (folder / TO_LABEL).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", *(["file"] if by_file else ["row", "digest"]), "label"])
        digests = row_digests(source, [] if by_file else rows)  # so that rows of changed data are not taken for these
        known = [[name] for name in names] if by_file else zip(rows, digests, strict=True)
        for number, (image, label) in enumerate(zip(known, labels, strict=True), start=1):
            writer.writerow([number, *image, label or ""])
    entries = zip(rows, names, labels, strict=True)
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": f"{config.count} images by {config.strategy}, seed {config.seed}",
        "class_names": list(source.class_names or ()),  # none: those that are filled in
        "labels": [
            {"row": row, **({"file": name} if by_file else {}), "label": label} for row, name, label in entries
        ],
    }
    (folder / "to_label.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_contact_sheet(path: Path, store: ImageCache, chosen: np.ndarray, names: Sequence[str]) -> None:
    """Draw the chosen images with the numbers they have in the list."""
    images = [store.gather(np.array([index]), epoch=0).pixels[0].numpy() for index in chosen.tolist()]
    draw_contact_sheet(path, images, [(f"{number}", name) for number, name in enumerate(names, start=1)])
