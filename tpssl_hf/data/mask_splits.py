"""Which images' masks may be used: drawn with a seed, or read from a file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tpssl_hf.data.image_cache import ImageCache
from tpssl_hf.data.image_names import rows_by_file
from tpssl_hf.data.label_files import read_text
from tpssl_hf.data.sources import Source
from tpssl_hf.errors import InputError

SHARE = re.compile(r"(?P<percent>\d+(\.\d+)?)\s*%")


@dataclass(frozen=True)
class ChosenMasks:
    """The images of a run whose masks are learned from.

    Attributes:
        indices: (N,) int64, their numbers in the store, ascending.
        chosen: how they were chosen, in a few words.
    """

    indices: np.ndarray
    chosen: str


def choose_masks(wanted: str, store: ImageCache, source: Source, *, seed: int = 1) -> ChosenMasks:
    """Choose the images whose masks are learned from.

    Args:
        wanted: how many, drawn with ``seed``; or a share of all images (``2%``), rounded to a number; or ``all``; or
            the path of a ``.json`` file that :func:`write_masks` wrote, or of a ``.txt`` file that names an image a
            line, by its path or name without suffix or by its row in the data set. A larger draw of the same seed
            holds the smaller one.
        store: the training images.
        source: what they were read from.
        seed: of drawing.

    Raises:
        InputError: if ``wanted`` is none of these, or there are not as many masks, or a file does not suit the data.
    """
    candidates = np.flatnonzero(store.has_mask)
    if Path(wanted).suffix.lower() in (".json", ".txt"):
        return _read_masks(Path(wanted), store, source)
    if wanted == "all":
        return ChosenMasks(candidates, "every mask of the data set")
    share = SHARE.fullmatch(wanted)
    count = round(len(store) * float(share["percent"]) / 100) if share else int(wanted) if wanted.isdecimal() else 0
    if count < 1:
        raise InputError(
            f"labels {wanted!r} is not a number above 0, a share that is at least one of {len(store):,} images "
            "(`2%`), `all`, or a .json or .txt file; give one of them."
        )
    if count > len(candidates):
        raise InputError(
            f"labels {wanted!r} are {count:,} masks, and {len(candidates):,} of the {len(store):,} images have one; "
            "give fewer, or `all`."
        )
    drawn = np.random.default_rng(seed).permutation(candidates)[:count]
    return ChosenMasks(np.sort(drawn), f"{count} masks, seed {seed}")


def write_masks(path: Path, masks: ChosenMasks, store: ImageCache, source: Source) -> None:
    """Write ``labels.json``: rows of the data set, which :func:`choose_masks` reads again."""
    content = {
        "dataset": source.name,
        "fingerprint": source.fingerprint,
        "chosen": masks.chosen,
        "rows": store.rows[masks.indices].tolist(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_masks(path: Path, store: ImageCache, source: Source) -> ChosenMasks:
    """Read a ``.json`` or ``.txt`` file."""
    text, _ = read_text(path)
    rows = _rows_of_json(text, path, source) if path.suffix.lower() == ".json" else _rows_of_list(text, path, source)
    where_of = {row: index for index, row in enumerate(store.rows.tolist())}
    found = sorted({where_of[row] for row in rows if row in where_of})  # else left out by the scan, or limit_images
    if not found:
        raise InputError(
            f"labels file {path} names none of the {len(store):,} images of {source.name!r}; name some of them."
        )
    indices = np.array(found, dtype=np.int64)
    if not store.has_mask[indices].all():
        row = store.rows[indices[~store.has_mask[indices]][0]]
        raise InputError(
            f"labels file {path} names the image in row {row} of {source.name!r}, which has no mask; remove it "
            "from the file, or add the mask."
        )
    return ChosenMasks(indices, f"masks of {path.name}")


def _rows_of_json(text: str, path: Path, source: Source) -> list[int]:
    try:
        content: dict[str, Any] = json.loads(text)
        rows, fingerprint = [int(row) for row in content["rows"]], content.get("fingerprint")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"labels file {path} is not JSON with a list `rows` of numbers; give a labels.json that a run of this "
            "recipe wrote, or a .txt file."
        ) from error
    if fingerprint not in (None, source.fingerprint):
        raise InputError(
            f"labels file {path} was written for other images ({content.get('dataset')!r}, not these of "
            f"{source.name!r}); give the data set it was made with."
        )
    return rows


def _rows_of_list(text: str, path: Path, source: Source) -> list[int]:
    """Read names if every line is one, else rows."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = _rows_by_stem(rows_by_file(source))
    if all(line in names for line in lines):
        return [names[line] for line in lines]
    if all(line.isdecimal() for line in lines):
        return [int(line) for line in lines]
    wrong = next(line for line in lines if line not in names)
    raise InputError(
        f"labels file {path} names {wrong!r}, which is no image of {source.name!r}; name images by their path or "
        "name without suffix, or all by their row, one a line."
    )


def _rows_by_stem(files: Mapping[str, int]) -> dict[str, int]:
    """Map paths without suffix, and every end of such a path that belongs to one row only, to rows."""
    ends: dict[str, set[int]] = {}
    for name, row in files.items():
        parts = PurePath(name).with_suffix("").parts
        for start in range(len(parts)):
            ends.setdefault("/".join(parts[start:]), set()).add(row)
    return {end: next(iter(rows)) for end, rows in ends.items() if len(rows) == 1}
