"""COCO's JSON: a class for each image, as COCO Camera Traps has it, or a mask for each class that an image shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpssl_hf.tasks.predict.exports.predicted import Predicted, bounding_box, run_lengths, write_json_list


def write(predicted: Predicted, folder: Path) -> None:
    """Write ``annotations.json``; categories are numbered from 1, images by their row."""
    categories = [{"id": number, "name": name} for number, name in enumerate(predicted.class_names, 1)]
    with (folder / "annotations.json").open("w", encoding="utf-8") as text:
        text.write(f'{{"info": {json.dumps({"description": predicted.model_name})},\n"images": ')
        write_json_list(text, _images(predicted))
        text.write(f',\n"categories": {json.dumps(categories, ensure_ascii=False)},\n"annotations": ')
        write_json_list(text, ({"id": number, **found} for number, found in enumerate(_annotations(predicted), 1)))
        text.write("}\n")


def _images(predicted: Predicted) -> Iterator[dict[str, Any]]:
    for row in predicted.rows():
        size = {"width": row["width"], "height": row["height"]}
        yield {"id": row["row"], "file_name": row["file"], **size}


def _annotations(predicted: Predicted) -> Iterator[dict[str, Any]]:
    for row in predicted.rows():
        common = {"image_id": row["row"], "score": row["confidence"]}
        if "mask" not in row:
            yield {**common, "category_id": predicted.class_names.index(row["label"]) + 1}
            continue
        for number, mask in predicted.masks(row):
            # run lengths down the columns, not packed into a string: what COCO has for crowds
            where = {"size": list(mask.shape), "counts": run_lengths(mask.ravel(order="F"))}
            box = {"bbox": list(bounding_box(mask)), "area": int(mask.sum())}
            yield {**common, "category_id": number + 1, "iscrowd": 1, "segmentation": where, **box}
