"""A folder of images for each class, as torchvision, ``datasets`` and ``--label_column folder`` read it."""

import io
import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from tpssl_hf.data.image_cache_writer import EncodedImages
from tpssl_hf.tasks.predict.exports.predicted import Predicted
from tpssl_hf.tasks.predict.segment import mask_stems


def write(predicted: Predicted, folder: Path) -> None:
    """Put a link to each image, or the image where the data set holds its bytes, into the folder of its class."""
    folders = dict(zip(predicted.class_names, class_folders(predicted.class_names), strict=True))
    rows = [(row["row"], row["file"], row["label"]) for row in predicted.rows()]
    stems = mask_stems([str(PurePosixPath(file)).replace("/", "__") for _, file, _ in rows])
    encoded = EncodedImages(predicted.source)
    for (number, file, label), stem in zip(rows, stems, strict=True):
        place = folder / folders[label]
        place.mkdir(exist_ok=True)
        _place_image(encoded.read([number])[0], place, stem, PurePosixPath(file).suffix)


def class_folders(names: tuple[str, ...]) -> list[str]:
    """Return a folder name for each class: its own where that can be one, and different ones for all."""
    allowed = ["".join("_" if c in '<>:"/\\|?*' or ord(c) < 32 else c for c in name).strip(". ") for name in names]
    counts = Counter(name.casefold() for name in allowed)
    return [f"{name}_{k}" if not name or counts[name.casefold()] > 1 else name for k, name in enumerate(allowed)]


def _place_image(value: dict[str, Any] | None, place: Path, stem: str, suffix: str) -> None:
    assert value is not None, "it was predicted"
    if value["bytes"] is None:
        path = Path(value["path"])
        target = place / f"{stem}{path.suffix}"
        try:
            os.symlink(path.resolve(), target)
        except OSError:  # Windows lets few users link
            shutil.copyfile(path, target)
        return
    if not suffix:
        with Image.open(io.BytesIO(value["bytes"])) as image:
            suffix = f".{(image.format or 'png').lower()}"
    (place / f"{stem}{suffix}").write_bytes(value["bytes"])
