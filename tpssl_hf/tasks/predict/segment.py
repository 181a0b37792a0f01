"""Masks of a segmenter as palette PNGs, at the size of the images."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch.nn import functional as F

from tpssl_hf.tasks.predict.answers import SIZES, Columns, sizes, stacked
from tpssl_hf.tasks.predict.model import FinishedModel
from tpssl_hf.tasks.predict.read import PreparedImage

MASKS, OVERLAYS, CLASSES = "masks", "overlays", "classes.json"
OVERLAY_SIDE = 1600  # pixels; an overlay is to be looked at
FORBIDDEN = str.maketrans({c: "_" for c in '<>:"|?*' + "".join(map(chr, range(32)))})


class Segmentation:
    """Writes the mask of each image; the table says where it is, how sure the segmenter is and what it shows."""

    name = "predictions"
    schema = pa.schema(
        [("mask", pa.string()), ("confidence", pa.float32()), ("class_shares", pa.list_(pa.float32())), *SIZES]
    )

    def __init__(
        self, model: FinishedModel, folder: Path, names: Sequence[str], *, overlays: bool, num_workers: int
    ) -> None:
        self._model = model
        self._folder = folder
        self._stems = mask_stems(names)
        self.csv_columns: Sequence[str] = ["mask", "confidence", *(f"share_{name}" for name in model.class_names)]
        self.keep_pixels = overlays
        self._pool = ThreadPoolExecutor(num_workers, "tpssl-masks")
        self._colors = np.array(model.palette, dtype=np.uint8)
        self._write_classes()

    def _write_classes(self) -> None:
        """Write ``classes.json``: value in the masks, name and color of each class."""
        colors = [list(color) for color in self._model.palette]
        entries = [
            {"value": number, "name": name, "color": colors[number] if number < len(colors) else None}
            for number, name in enumerate(self._model.class_names)
        ]
        text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
        (self._folder / CLASSES).write_text(text, encoding="utf-8")

    def answer(self, images: Sequence[PreparedImage]) -> Columns:
        """Write the masks of a batch; ``confidence`` is the mean over pixels, ``class_shares`` sum to 1."""
        logits = self._model.network(stacked(images, self._model)).logits
        columns: Columns = {"mask": [], "confidence": [], "class_shares": [], **sizes(images)}
        jobs = []
        for image, own in zip(images, logits, strict=True):
            scores = F.interpolate(own[None], size=image.size, mode="bilinear", align_corners=False)[0]
            mask = scores.argmax(dim=0)
            sure = (scores.amax(dim=0) - scores.logsumexp(dim=0)).exp().mean()
            shares = mask.flatten().bincount(minlength=len(self._model.class_names)) / mask.numel()
            stem = self._stems[image.row]
            columns["mask"].append(f"{MASKS}/{stem}.png")
            columns["confidence"].append(sure.item())
            columns["class_shares"].append(shares.float().cpu().numpy())
            jobs.append(self._pool.submit(self._write, mask.cpu().numpy(), image.pixels, stem))
        for job in jobs:
            job.result()
        return columns

    def csv_values(self, row: dict[str, Any]) -> list[Any]:
        """Give the share of each class a column of its own."""
        return [row["mask"], row["confidence"], *row["class_shares"]]

    def _write(self, mask: np.ndarray, pixels: np.ndarray | None, stem: str) -> None:
        path = self._folder / MASKS / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(self._model.class_names) > 256:
            Image.fromarray(mask.astype(np.uint16)).save(path)
        else:
            image = Image.fromarray(mask.astype(np.uint8))
            image.putpalette(self._colors.tobytes())
            image.save(path)
        if pixels is not None:
            path = self._folder / OVERLAYS / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            painted = Image.fromarray(self._colors[mask % len(self._colors)])
            overlay = Image.blend(Image.fromarray(pixels), painted, 0.5)
            overlay.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
            overlay.save(path, quality=90)


def mask_stems(names: Sequence[str]) -> list[str]:
    """Return where each mask goes, without suffix: the path of its image, made different where it is not.

    Paths never leave the folder. Names that differ in suffix or case alone would share a file somewhere; they get
    their row as well.
    """
    stems = [_stem(name) for name in names]
    folded = [stem.casefold() for stem in stems]
    counts = Counter(folded)
    different = []
    for row, (stem, key) in enumerate(zip(stems, folded, strict=True)):
        if counts[key] > 1:
            stem = f"{stem}_row{row}"
            while stem.casefold() in counts:
                stem += "_"
        different.append(stem)
    return different


def _stem(name: str) -> str:
    parts = name.replace("\\", "/").translate(FORBIDDEN).split("/")
    kept = [part for part in parts if part not in ("", ".", "..")]
    return str(PurePosixPath(*kept).with_suffix("")) if kept else "_"
