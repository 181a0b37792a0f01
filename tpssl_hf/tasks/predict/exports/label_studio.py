"""Pre-annotated tasks of Label Studio, with the configuration of a project that takes them.

A class is a choice; a mask is painted with the brush of each class. Label Studio packs what is painted as the values
(red, green, blue, alpha) of all pixels in thi.ng's run lengths (rle-pack), a stream of bits, most significant first:

- 32 bits: how many values; 5 bits: bits of a value less 1; 4 times 4 bits: bits of a length less 1, of each kind;
- then for each run: 1 for equal values, 2 bits for the kind of its length, the length less 1, the value.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from tpssl_hf.tasks.predict.exports.predicted import Predicted, Row, run_lengths, write_json_list

LOCAL_FILES = "/data/local-files/?d="  # below Label Studio's document root
CHANNELS, PAINTED = 4, 255
VALUE_BITS, LENGTH_BITS = 8, (4, 8, 12, 16)


def write(predicted: Predicted, folder: Path) -> None:
    """Write ``tasks.json`` to import, and ``label_config.xml`` for the project's settings."""
    with (folder / "tasks.json").open("w", encoding="utf-8") as text:
        write_json_list(text, _tasks(predicted))
    masks = predicted.holds_masks
    entry, control = ("Label", "BrushLabels") if masks else ("Choice", "Choices")
    entries = "\n".join(f"    <{entry} value={quoteattr(name)}/>" for name in predicted.class_names)
    how = "" if masks else ' choice="single"'
    config = (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <{control} name="label" toName="image"{how}>\n{entries}\n  </{control}>\n</View>\n'
    )
    (folder / "label_config.xml").write_text(config, encoding="utf-8")


def _tasks(predicted: Predicted) -> Iterator[dict[str, Any]]:
    for row in predicted.rows():
        results = [{"from_name": "label", "to_name": "image", **found} for found in _results(predicted, row)]
        prediction = {"model_version": predicted.model_name, "score": row["confidence"], "result": results}
        data = {"image": LOCAL_FILES + quote(row["file"]), "file": row["file"], "row": row["row"]}
        yield {"data": data, "predictions": [prediction]}


def _results(predicted: Predicted, row: Row) -> Iterator[dict[str, Any]]:
    if "mask" not in row:
        yield {"type": "choices", "value": {"choices": [row["label"]]}}
        return
    size = {"original_width": row["width"], "original_height": row["height"], "image_rotation": 0}
    for number, mask in predicted.masks(row):
        painted = {"format": "rle", "rle": packed(mask), "brushlabels": [predicted.class_names[number]]}
        yield {"id": f"{row['row']}-{number}", "type": "brushlabels", **size, "value": painted}


def packed(mask: np.ndarray) -> list[int]:
    """Return (H, W) bool as Label Studio packs what is painted, a number from 0 to 255 for each byte."""
    header = [(mask.size * CHANNELS, 32), (VALUE_BITS - 1, 5), *((bits - 1, 4) for bits in LENGTH_BITS)]
    bits = [f"{number:0{width}b}" for number, width in header]
    for number, length in enumerate(run_lengths(mask.ravel())):
        value = f"{PAINTED * (number % 2):0{VALUE_BITS}b}"
        left = length * CHANNELS
        while left > 0:
            part = min(left, 1 << LENGTH_BITS[-1])
            kind = next(kind for kind, width in enumerate(LENGTH_BITS) if part <= 1 << width)
            bits.append(f"1{kind:02b}{part - 1:0{LENGTH_BITS[kind]}b}{value}")
            left -= part
    stream = np.frombuffer("".join(bits).encode(), dtype=np.uint8) - ord("0")
    found: list[int] = np.packbits(stream).tolist()
    return found
