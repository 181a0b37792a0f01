"""CVAT's XML 1.1 for images: a tag for each image, or a mask for each class that it shows."""

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from tpssl_hf.tasks.predict.exports.predicted import Predicted, Row, bounding_box, run_lengths


def write(predicted: Predicted, folder: Path) -> None:
    """Write ``annotations.xml``; CVAT finds an image by its name."""
    with (folder / "annotations.xml").open("w", encoding="utf-8") as text:
        text.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        text.write(tostring(_meta(predicted), encoding="unicode") + "\n")
        for row in predicted.rows():
            text.write(tostring(_image(predicted, row), encoding="unicode") + "\n")
        text.write("</annotations>\n")


def _meta(predicted: Predicted) -> Element:
    meta = Element("meta")
    labels = SubElement(SubElement(meta, "task"), "labels")
    for name in predicted.class_names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "attributes")
    return meta


def _image(predicted: Predicted, row: Row) -> Element:
    size = {"width": str(row["width"]), "height": str(row["height"])}
    image = Element("image", {"id": str(row["row"]), "name": row["file"], **size})
    if "mask" not in row:
        SubElement(image, "tag", {"label": row["label"], "source": "auto"})
        return image
    for number, mask in predicted.masks(row):
        left, top, width, height = bounding_box(mask)
        lengths = run_lengths(mask[top : top + height, left : left + width].ravel())  # row by row, in the box
        box = {"left": left, "top": top, "width": width, "height": height, "z_order": 0, "occluded": 0}
        named = {"label": predicted.class_names[number], "source": "auto", "rle": ", ".join(map(str, lengths))}
        SubElement(image, "mask", {**named, **{name: str(value) for name, value in box.items()}})
    return image
